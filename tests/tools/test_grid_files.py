"""Grids, configs and results from outside: read without running code."""
import json
import os
import runpy

import pytest
import yaml
from mmengine.config import Config
from mmengine.fileio import dump, load
from support import ROOT

from ela_mm.apis.loading import config_from_file, read_config
from ela_mm.errors import UsageError
from ela_mm.experiments.checks import check_cells, config_of
from ela_mm.experiments.grid import Cell, cells, read_grid

GRID = dict(
    config='configs/ela_resnet{depth}_cifar10.py', depths=[20], seeds=[0],
    variants={'ELA': {}})
# How pickles and YAML ask for a call, at any place of a document.
CODE = '!!python/object/apply:os.system ["touch {}"]'


def write(folder, **changes) -> str:
    path = folder / 'grid.json'
    path.write_text(json.dumps({**GRID, **changes}), encoding='utf-8')
    return str(path)


@pytest.mark.parametrize('line', [
    '{}', 'config: {}', 'seeds: [{}]', 'variants: {{a: {}}}', 'title: {}',
    'paper: {{a: {{20: {}}}}}'
])
def test_a_yaml_grid_runs_no_code(tmp_path, line):
    path, ran = tmp_path / 'grid.yaml', tmp_path / 'ran'
    path.write_text(line.format(CODE.format(ran)))
    with pytest.raises(UsageError, match='grid.yaml: Constructor.*os.system'):
        read_grid(str(path))
    assert not ran.exists()


@pytest.mark.parametrize('line', [
    'model: {}', 'a: "{{{{$NOT_SET:\' {} \'}}}}"\nb: {}', '_base_: [base.yaml]'
])
def test_a_yaml_config_makes_no_objects(tmp_path, line):
    ran = tmp_path / 'ran'
    code = CODE.format(ran)
    (tmp_path / 'base.yaml').write_text(f'model: {code}')
    path = tmp_path / 'config.yaml'
    path.write_text(line.format(code.replace('"', "'"), code))
    with pytest.raises(UsageError, match='config.yaml.*os.system'):
        read_config(str(path))
    assert not ran.exists()
    # Nobody else's YAML is read otherwise than before.
    dump(dict(a=1j), tmp_path / 'own.yaml')
    assert load(tmp_path / 'own.yaml') == dict(a=1j)


def test_a_config_is_the_same_in_yaml(tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / 'faster_rcnn_ela_r50.py')
    cfg.dump(tmp_path / 'config.yaml')
    text = (tmp_path / 'config.yaml').read_text()
    if 'mmengine.config' in text:
        pytest.skip('mmengine 0.8 dumps objects, which are not read')
    assert '!!python/tuple' in text
    found = config_from_file(str(tmp_path / 'config.yaml'))
    assert found.to_dict() == cfg.to_dict()


@pytest.mark.parametrize('changes, text', [
    (dict(depths=['../../20']), "'../../20' among depths and seeds"),
    (dict(depths=[True]), 'True among depths'),
    (dict(depths=[2.5]), '2.5 among depths'),
    (dict(seeds=['../../../0']), "'../../../0' among depths"),
    (dict(seeds=[-1]), '-1 among depths'),
    (dict(seeds={'20': 5, '../x': [1]}), "'../x' among depths"),
    (dict(variants={'': {}}), "'' is no name"),
    (dict(config={'a': 5}), '5 is no name'),
    (dict(metrics=[5]), '5 is no name'),
    (dict(systems=[None]), 'None is no name'),
    (dict(systems=['ELA']), "'ELA' is a system and a variant"),
])
def test_values_that_could_lead_elsewhere_are_refused(tmp_path, changes, text):
    with pytest.raises(UsageError, match=text) as error:
        read_grid(write(tmp_path, **changes))
    assert '\n' not in str(error.value) and 'grid.json: ' in str(error.value)


@pytest.mark.parametrize('text, name', [
    ('{1: {}}', '1'), ('{yes: {}}', 'True'), ('{null: {}}', 'None'),
    ('{a: {1: 2}}', '1')
])
def test_names_that_yaml_takes_for_something_else(tmp_path, text, name):
    path = tmp_path / 'grid.yaml'
    path.write_text(f'config: a\nseeds: [0]\nvariants: {text}\n')
    with pytest.raises(UsageError, match=f'{name} is no name.*in quotes'):
        read_grid(str(path))


@pytest.mark.parametrize('name', [
    '..', '../../elsewhere', '/etc', 'a/b', 'a\\b', '~', '\0', 'a\nb', '‮x', 'é'
])
def test_no_run_lies_outside_of_the_grids_folder(tmp_path, name):
    out = tmp_path / 'out'
    (cell, ) = cells(read_grid(write(tmp_path, variants={name: {}})), str(ROOT))
    folder = os.path.realpath(out / cell.folder)
    assert folder.startswith(f'{out}{os.sep}') and '\0' not in folder
    assert len(os.path.relpath(folder, out).split(os.sep)) == 3


@pytest.mark.parametrize('changes, text', [
    (dict(variants={'a b': {}, 'a/b': {}}), 'a b, .*; a/b, .*a_b/depth_20'),
    (dict(seeds=[0, 1, 0]), 'depth_20/seed_0'),
    (dict(depths=[20, 20]), 'depth_20/seed_0'),
    (dict(config={'x.y': GRID['config'], 'x y': GRID['config']}), 'ELA/x_y/'),
])
def test_two_runs_in_one_folder_are_an_error(tmp_path, changes, text):
    with pytest.raises(UsageError, match=f'two runs of the grid .*{text}'):
        cells(read_grid(write(tmp_path, **changes)), str(ROOT))


@pytest.mark.parametrize('overrides, reason', [
    ({'model.nowhere.depth': 3}, "'model.nowhere.depth' leads nowhere"),
    ({'custom_imports': dict(imports=['gone_module'])}, 'gone_module'),
    ({'custom_hooks.0.criterion': dict(type='EBQM', mu=7)}, 'mu=7'),
    ({'custom_hooks.0.windows': [[3, 1]]}, 'is reversed'),
    ({'model.backbone.attention': 'bas'}, "'bas'"),
    ({'model.head.type': 'NoHead'}, 'NoHead'),
    ({'train_dataloader.dataset.data_root': 'nowhere',
      'train_dataloader.dataset.type': 'CustomDataset'}, "'nowhere' does not"),
])
def test_a_variant_that_cannot_run_is_named(tmp_path, overrides, reason):
    runs = cells(read_grid(write(
        tmp_path, config='configs/ela_resnet20_digits.py',
        variants={'good': {}, 'bad': overrides})), str(ROOT))
    with pytest.raises(UsageError, match=f'^bad, depth 20, seed 0: .*{reason}'):
        check_cells(runs)
    check_cells(runs[:1])


def test_what_an_override_imports_is_there(tmp_path, monkeypatch):
    """As a criterion of a user's own, in a file beside the grid."""
    (tmp_path / 'my_rule.py').write_text(
        'import numpy as np\n'
        'from mmengine.registry import FUNCTIONS\n\n\n'
        '@FUNCTIONS.register_module()\n'
        'def none_at_all(kl):\n'
        '    return np.zeros(len(kl), dtype=bool)\n')
    monkeypatch.syspath_prepend(tmp_path)
    runs = cells(read_grid(write(
        tmp_path, config='configs/ela_resnet20_digits.py', variants={'mine': {
            'custom_imports': dict(imports=['ela_mm', 'my_rule']),
            'custom_hooks.0.criterion': dict(type='none_at_all')}})), str(ROOT))
    check_cells(runs)
    assert config_of(runs[0]).randomness.seed == 0
    assert config_of(runs[0]).model.backbone.depth == 20


@pytest.mark.parametrize('change, said', [
    (dict(overrides={'train_cfg.max_epochs': 3}),
     'overrides.train_cfg.max_epochs was 2, is 3'),
    (dict(overrides={}), 'overrides.train_cfg.max_epochs was 2, is not there'),
    (dict(config='b.py'), "config.lr was 0.1, is 0.2"),
])
def test_the_setting_that_differs_is_named(tmp_path, change, said):
    for name, rate in (('a.py', .1), ('b.py', .2)):
        (tmp_path / name).write_text(f'lr = {rate}')
    cell = Cell('x', 20, 0, str(tmp_path / 'a.py'),
                {'train_cfg.max_epochs': 2})
    begun = cell.begin()
    assert json.loads(json.dumps(begun)) == begun
    assert cell.difference(begun) is None
    if 'config' in change:
        change = dict(config=str(tmp_path / change['config']))
    other = cell._replace(**change)
    assert other.difference(begun) == said
    del begun['settings']  # of an earlier version
    assert other.difference(begun) == (
        'its config has changed' if 'config' in change else said)


def test_grids_without_depths(tmp_path):
    """The config's network is taken as it is."""
    grid = {**GRID, 'config': 'configs/ela_resnet20_digits.py'}
    del grid['depths']
    path = tmp_path / 'grid.json'
    path.write_text(json.dumps(grid))
    (cell, ) = cells(read_grid(str(path)), str(ROOT))
    assert cell.depth is None and 'depth' not in cell.folder
    assert config_of(cell).model.backbone.depth == 20


@pytest.fixture(scope='module')
def ablation():
    return runpy.run_path(str(ROOT / 'tools' / 'ablation.py'), run_name='tool')


@pytest.mark.parametrize('content', [
    b'', b'\xff\xfe', b'[' * 10_000, b'[]', b'{}', b'{"top1": 5}'
])
@pytest.mark.parametrize('name', ['cell.json', 'result.json'])
def test_a_damaged_result_is_named(ablation, tmp_path, name, content):
    cell = Cell('ELA', 20, 0, str(ROOT / GRID['config'].format(depth=20)), {})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=f'{name} is damaged: remove'):
        ablation['finished'](cell, str(tmp_path))


def test_names_do_not_break_the_table(ablation, tmp_path):
    name = 'a|b\nc'
    grid = read_grid(write(tmp_path, variants={name: {}}, title='x\n# y'))
    (cell, ) = runs = cells(grid, str(ROOT))
    folder = tmp_path / cell.folder
    folder.mkdir(parents=True)
    (folder / 'result.json').write_text(json.dumps(dict(
        variant=name, depth=20, seed=0, top1=50., skipped=0, skipped_layers=[],
        parameters=10, last_epoch_seconds=1.)))
    table = ablation['tabulate'](grid, runs, str(tmp_path))
    first, _, header, _, row = table.splitlines()
    assert first == r'# x\n# y' and row.startswith(r'| a\|b\nc | 20 | 50.00 |')
    assert header.replace(r'\|', '').count('|') == row.replace(
        r'\|', '').count('|')


def test_yamls_own_reader_agrees_on_the_presets():
    for path in sorted((ROOT / 'configs' / 'ablations').glob('*.yaml')):
        grid = read_grid(str(path))
        for key, value in yaml.safe_load(path.read_text()).items():
            if key not in ('paper', 'seeds'):
                assert grid[key] == value
