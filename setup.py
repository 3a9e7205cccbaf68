"""Packages ela_mm. The wheel has configs and tools in ``ela_mm/.mim``.

The hosts keep theirs there too, and the command ``ela`` looks there.
"""
import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Adds configs and tools to the wheel, where ``mim`` looks for them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the working tree is used as it is
            return
        for folder in ('configs', 'tools'):
            shutil.copytree(
                ROOT / folder,
                os.path.join(self.build_lib, 'ela_mm', '.mim', folder),
                ignore=shutil.ignore_patterns('__pycache__'),
                dirs_exist_ok=True)
        shutil.copyfile(
            ROOT / 'model-index.yml',
            os.path.join(self.build_lib, 'ela_mm', '.mim', 'model-index.yml'))


def read_version() -> str:
    text = (ROOT / 'ela_mm' / 'version.py').read_text()
    return re.search(r"__version__ = '(.+)'", text).group(1)


DETECTION = ['mmdet>=3.1,<3.4']
CLASSIFICATION = ['mmpretrain>=1.0,<1.3']
# mmseg always imports ftfy and regex, but declares them for text encoders only.
SEGMENTATION = ['mmsegmentation>=1.2.2,<1.3', 'ftfy', 'regex']
DEMO = ['scikit-learn>=1.2']
EXPORT = ['onnx', 'onnxruntime', 'onnxscript']
# For the HTML page and Score-CAM of tools/analyze.py.
ANALYZE = ['Jinja2>=3', 'grad-cam>=1.5']
# The attention modules that the paper compares with: SE, ECA, CBAM.
SYSTEMS = ['timm>=0.9.2']
DOCS = ['sphinx', 'myst-parser', 'furo']
NOTEBOOK = ['ipykernel', 'nbclient', 'nbformat']

setup(
    name='ela_mm',
    version=read_version(),
    description='Efficient Layer Attention for MMDetection, MMPretrain and '
    'MMSegmentation: '
    'layer attention that prunes its own redundancy while it trains',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['ela_mm', 'ela_mm.*']),
    package_data={
        'ela_mm.analysis.report': ['page.html'],
        'ela_mm.experiments': ['published.yaml'],
    },
    # Not ela_mm.cli, which would import the package before --help is answered.
    py_modules=['ela_command'],
    entry_points=dict(console_scripts=['ela = ela_command:main']),
    python_requires='>=3.8',
    # Not listed: torch, torchvision, mmengine and mmcv. Users choose their builds,
    # and mmcv-lite and the onedl forks have other distribution names.
    install_requires=['matplotlib>=3.5', 'numpy>=1.20', 'scipy>=1.6', 'rich>=13'],
    extras_require=dict(
        det=DETECTION,
        cls=CLASSIFICATION,
        seg=SEGMENTATION,
        demo=DEMO,
        export=EXPORT,
        analyze=ANALYZE,
        systems=SYSTEMS,
        docs=DOCS,
        dev=DEMO + EXPORT + ANALYZE + SYSTEMS + DOCS + NOTEBOOK +
        ['hypothesis', 'pytest', 'pytest-xdist', 'ruff', 'tensorboard']),
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    cmdclass=dict(build_py=BuildWithConfigs),
    zip_safe=False,
)
