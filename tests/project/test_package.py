"""What the wheel holds."""
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from support import ROOT

from ela_mm.apis.loading import build_model


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Built from a copy, so that no build folder appears in the working tree."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    source.mkdir()
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'model-index.yml',
                 'ela_command.py', 'ela_mm', 'configs', 'tools'):
        (source / name).symlink_to(ROOT / name)
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps',
         '--no-build-isolation', '--wheel-dir', str(folder), str(source)],
        check=True, capture_output=True)
    (path, ) = folder.glob('*.whl')
    return path


def test_wheel_holds_configs_and_tools(wheel):
    archive = zipfile.ZipFile(wheel)
    names = set(archive.namelist())
    assert {
        'ela_command.py', 'ela_mm/pruning/ebqm.py',
        'ela_mm/analysis/report/page.html',
        'ela_mm/.mim/tools/train.py', 'ela_mm/.mim/tools/analyze.py',
        'ela_mm/.mim/configs/faster_rcnn_ela_r50.py',
        'ela_mm/.mim/configs/ablations/digits.yaml',
        'ela_mm/.mim/model-index.yml'
    } <= names
    (entry, ) = (n for n in names if n.endswith('entry_points.txt'))
    assert 'ela = ela_command:main' in archive.read(entry).decode()
    for path in ROOT.glob('configs/**/*.py'):
        assert f'ela_mm/.mim/{path.relative_to(ROOT)}' in names
    assert not any('__pycache__' in name for name in names)


@pytest.mark.parametrize('name', ['stack', 'onedl', 'oldest'])
def test_an_environment_keeps_what_it_has(name, wheel, tmp_path):
    """pip would install this package and change no version that is there."""
    for distribution, version in pins(name).items():
        folder = tmp_path / f'{distribution.replace("-", "_")}-{version}.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n')
    asked = str(wheel)
    if name != 'onedl':  # whose hosts go by other names
        asked += '[det,cls,analyze,demo]'
    process = subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--dry-run', '--quiet',
         '--no-index', '--report', '-', asked],
        env={**os.environ, 'PYTHONPATH': str(tmp_path)}, check=True,
        capture_output=True, text=True)
    changed = [x['metadata']['name'] for x in json.loads(process.stdout)['install']]
    assert {x.replace('-', '_') for x in changed} <= {'ela_mm'}


def test_every_config_is_in_a_metafile():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    models = [model for path in index['Import'] for model in yaml.safe_load(
        (ROOT / path).read_text())['Models']]
    configs = [model['Config'] for model in models]
    assert sorted(configs) == sorted(
        str(path.relative_to(ROOT)) for path in ROOT.glob('configs/*.py')
    ), 'every config has an entry in configs/metafile.yml'
    for model in models:
        assert model['Name'] == Path(model['Config']).stem
        assert model['Metadata']['Parameters'] > 0
        # There are none yet; a link that leads nowhere is worse than none.
        assert 'Weights' not in model


@pytest.mark.parametrize('name', ['ela_resnet20_digits',
                                  'faster_rcnn_ela_r50_digits'])
def test_parameters_in_the_metafile_are_those_of_the_config(name):
    text = (ROOT / 'configs' / 'metafile.yml').read_text()
    (model, ) = (m for m in yaml.safe_load(text)['Models'] if m['Name'] == name)
    built = build_model(Config.fromfile(ROOT / model['Config']))
    assert model['Metadata']['Parameters'] == sum(
        p.numel() for p in built.parameters())


def pins(name):
    """Distribution to version, of a file of requirements/."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return dict(line.split('==') for line in lines if '==' in line)


def test_the_oldest_that_setup_admits_is_what_is_tried():
    text = (ROOT / 'setup.py').read_text()
    bounds = dict(re.findall(r"'([\w-]+)>=([\d.]+)", text))
    assert {'numpy', 'scipy', 'rich', 'mmdet', 'mmpretrain'} <= bounds.keys()
    tried = pins('oldest')
    for name, bound in bounds.items():
        assert f'{tried[name]}.'.startswith(f'{bound}.'), name
    python = re.search(r"python_requires='>=(.+)'", text).group(1)
    assert f'# python: {python}\n' in (
        ROOT / 'requirements' / 'oldest.txt').read_text()


@pytest.fixture
def versions():
    """dev/versions.py as a module."""
    spec = importlib.util.spec_from_file_location(
        'versions', ROOT / 'dev' / 'versions.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_versions_passes_arguments_on_to_pytest(versions, capsys):
    args = versions.parse_args(['oldest', '--python', 'python3.8', '--venv',
                                'x', '--', '-k', 'kl', 'tests/method'])
    assert (args.set, args.python, args.venv) == ('oldest', 'python3.8', 'x')
    assert args.pytest == ['-k', 'kl', 'tests/method']
    assert versions.parse_args(['onedl', '--', '-x']).pytest == ['-x']
    assert versions.parse_args(['stack']).pytest == []
    with pytest.raises(SystemExit):
        versions.parse_args(['stack', '-x'])
    assert '[-- PYTEST ...]' in capsys.readouterr().err


def test_forks_are_built_before_torch_is_there(tmp_path, monkeypatch, versions):
    """With torch, onedl-mmcv would compile its ops for an hour."""
    installed = []
    monkeypatch.setattr(
        versions.subprocess, 'run',
        lambda command, **_: installed.append(' '.join(map(str, command))))
    (tmp_path / 'venv').mkdir()
    versions.install('onedl', tmp_path / 'venv', sys.executable, [])
    first = {name: next(i for i, command in enumerate(installed)
                        if f' {name}==' in command)
             for name in ('onedl-mmcv', 'torch', 'onedl-mmdetection')}
    assert first['onedl-mmcv'] < first['torch'] < first['onedl-mmdetection']
    assert '--no-deps' in installed[first['onedl-mmcv']]
    assert '--no-deps' not in installed[first['onedl-mmdetection']]
    for name in pins('onedl'):
        assert f' {name}==' in installed[-1]
    count = len(installed)
    versions.install('onedl', tmp_path / 'venv', sys.executable, [])
    assert len(installed) == count, 'what is there is used again'


def test_reliability_names_tests_that_exist():
    named = set(re.findall(r'`(test_\w+)', (ROOT / 'docs' /
                                           'reliability.md').read_text()))
    defined = {
        name
        for path in ROOT.glob('tests/*/test_*.py')
        for name in re.findall(r'^def (test_\w+)', path.read_text(), re.M)
    }
    assert named and named <= defined, named - defined
