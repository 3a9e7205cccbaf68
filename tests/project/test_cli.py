"""The command ela: every tool by one name, and the configs that come along."""
import re
import warnings

import pytest
from mmengine.config import Config
from support import ROOT

from ela_mm import cli
from ela_mm.apis.launch import run

CONFIGS = str(ROOT / 'configs')


def test_every_tool_has_a_name():
    tools = {path.name for path in (ROOT / 'tools').glob('*.py')}
    named = {tool for tool, *_ in cli.TOOLS.values()}
    assert tools - named == {'demo.py'}  # which is of the repository


def test_every_question_of_analyze_has_a_short_form(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['ela'])
    with pytest.raises(SystemExit):
        cli.main(['analyze', '--help'])
    known = re.search(r'{([\w,]+)}', capsys.readouterr().out)[1].split(',')
    assert ['plan', *cli.QUESTIONS] == known and 'plan' in cli.TOOLS


@pytest.mark.parametrize('words, said', [
    (['analyze', 'cost', '--help'], 'usage: ela analyze cost'),
    (['whatif', '--help'], 'usage: ela whatif'),
    (['export', '--help'], 'usage: ela export'),
    (['edit-mask', '--help'], 'usage: ela edit-mask'),
])
def test_a_tool_runs_under_its_name(words, said, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['ela'])
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0 and said in capsys.readouterr().out


def test_help_has_every_command(capsys):
    cli.main([])
    text = capsys.readouterr().out
    for name in (*cli.TOOLS, 'configs'):
        assert re.search(rf'^  {name} +\w', text, re.M), name
    with pytest.raises(SystemExit, match="no command 'trian': expected .*train"):
        cli.main(['trian'])


def test_tools_of_a_wheel_come_first(tmp_path, monkeypatch):
    package = tmp_path / 'ela_mm'
    for folder in (package / '.mim' / 'tools', tmp_path / 'tools'):
        folder.mkdir(parents=True)
        (folder / 'train.py').write_text('')
    monkeypatch.setattr(cli, '__file__', str(package / 'cli.py'))
    assert cli.find_place().configs == str(package / '.mim' / 'configs')
    (package / '.mim' / 'tools' / 'train.py').unlink()
    assert cli.find_place().tools == str(tmp_path / 'tools')
    (tmp_path / 'tools' / 'train.py').unlink()
    with pytest.raises(FileNotFoundError, match='without its tools'):
        cli.find_place()


def test_all_configs_are_listed(capsys):
    cli.main(['configs'])
    lines = capsys.readouterr().out.splitlines()
    names = {line.split()[0] for line in lines}
    assert {path.name for path in ROOT.glob('configs/*.py')} <= names
    assert 'ablations/digits.yaml' in names
    assert not any('_base_' in name or 'metafile' in name for name in names)
    assert all(len(line.split()) > 2 for line in lines), 'says what it is'
    cli.main(['configs', 'mask', 'R50'])
    assert capsys.readouterr().out.startswith('mask_rcnn_ela_r50.py ')


@pytest.mark.parametrize('name', ['ela_resnet20_digits', 'mask_rcnn_ela_r50.py',
                                  'pure_python/ela_resnet20_digits',
                                  'ablations/digits'])
def test_a_copy_is_the_same_config(name, tmp_path, capsys):
    """What it inherits from is copied with it."""
    cli.main(['configs', '--copy', name, '--to', str(tmp_path)])
    path = capsys.readouterr().out.splitlines()[0]
    original = next(ROOT.glob(f'configs/{name}*'))
    if name.startswith('ablations'):
        assert (tmp_path / 'ablations' / 'digits.yaml'
                ).read_text() == original.read_text()
        return
    assert Config.fromfile(path).to_dict() == Config.fromfile(
        original).to_dict()


def test_a_copy_replaces_nothing(tmp_path, capsys):
    mine = tmp_path / 'ela_resnet20_cifar10.py'
    mine.write_text('# mine')
    assert cli.copy_config(CONFIGS, 'ela_resnet20_digits', str(tmp_path)) == [
        str(tmp_path / 'ela_resnet20_digits.py')]
    assert mine.read_text() == '# mine'
    assert 'is there already' in capsys.readouterr().err


@pytest.mark.parametrize('words, message', [
    (['--copy', 'faster_rcnn'], 'near to it: .*faster_rcnn_ela_r101.py'),
    (['--copy', 'yolo'], 'ela configs lists them'),
    (['--copy'], 'expected a value'),
    (['x', '--copy', 'ela_resnet20_digits'], 'is too much'),
])
def test_wrong_names_are_said(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        cli.configs(CONFIGS, words)
    assert not list(tmp_path.iterdir())


def test_a_host_that_loads_what_is_deprecated_does_not_fill_the_screen():
    def main():
        warnings.warn('pkg_resources is deprecated as an API', stacklevel=2)
        warnings.warn('a warning of another kind', stacklevel=2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        run(main)
    assert [str(w.message) for w in caught] == ['a warning of another kind']
