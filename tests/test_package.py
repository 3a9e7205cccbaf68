"""What the wheel holds."""
import subprocess
import sys
import zipfile

from conftest import ROOT


def test_wheel_holds_configs_and_tools(tmp_path):
    # From a copy, so that no build folder appears in the working tree.
    source = tmp_path / 'source'
    source.mkdir()
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'ela_mm',
                 'configs', 'tools'):
        (source / name).symlink_to(ROOT / name)
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps',
         '--no-build-isolation', '--wheel-dir', str(tmp_path), str(source)],
        check=True, capture_output=True)
    (wheel, ) = tmp_path.glob('*.whl')
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        'ela_mm/pruning/ebqm.py', 'ela_mm/.mim/tools/train.py',
        'ela_mm/.mim/configs/faster_rcnn_ela_r50.py',
        'ela_mm/.mim/configs/ablations/digits.yaml'
    } <= names
    for path in ROOT.glob('configs/*.py'):
        assert f'ela_mm/.mim/configs/{path.name}' in names
    assert not any('__pycache__' in name for name in names)
