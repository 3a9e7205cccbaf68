"""The grid runner: from a file of variants to tables."""
import csv
import json
import re

import pytest
from mmengine.config import Config
from support import ROOT
from support.running import tool

from ela_mm.apis.launch import UsageError
from ela_mm.experiments.grid import apply_overrides, cells, read_grid
from ela_mm.pruning.build import build_criterion

PRESETS = sorted(
    p for p in (ROOT / 'configs' / 'ablations').iterdir() if p.is_file())

GRID = """
title: A small grid
config: configs/ela_resnet20_digits.py
depths: [20]
seeds: [0, 1]
overrides:
  train_cfg.max_epochs: 2
  train_dataloader.dataset.indices: 96
  val_dataloader.dataset.indices: 64
  custom_hooks.0.windows: [[1, 1]]
variants:
  plain: {custom_hooks: [], model.backbone.attention: null}
  two smallest:
    custom_hooks.0.criterion: {type: fixed, n: 2}
paper:
  plain: {20: 91.35}
"""


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp('grid')
    (folder / 'grid.yaml').write_text(GRID)
    process = tool('ablation.py', folder / 'grid.yaml', '--out',
                   folder / 'out')
    assert process.returncode == 0, process.stdout + process.stderr
    return folder, process.stdout


def test_tables_hold_every_run(ran):
    folder, output = ran
    with open(folder / 'out' / 'results.csv') as file:
        rows = list(csv.DictReader(file))
    assert [(r['variant'], r['seed']) for r in rows] == [
        ('plain', '0'), ('two smallest', '0'), ('plain', '1'),
        ('two smallest', '1')]
    assert [r['skipped'] for r in rows] == ['0', '2', '0', '2']
    assert all(len(r['skipped_layers'].split()) == int(r['skipped'])
               for r in rows)
    assert {round(int(r['parameters']) / 1e6, 4) for r in rows} == {
        .2204, .2303}  # table 1
    assert all(float(r['last_epoch_seconds']) > 0 for r in rows)
    table = (folder / 'out' / 'results.md').read_text()
    assert table in output
    plain = next(x for x in table.splitlines() if x.startswith('| plain'))
    mean = sum(float(r['top1']) for r in rows
               if r['variant'] == 'plain') / 2
    assert f'| {mean:.2f} ± ' in plain and '| 91.35 |' in plain
    assert '2 of 2' in plain


def test_what_is_finished_is_not_run_again(ran):
    folder, _ = ran
    lost = folder / 'out' / 'plain' / 'depth_20' / 'seed_1'
    kept = folder / 'out' / 'plain' / 'depth_20' / 'seed_0' / 'result.json'
    top1 = json.loads((lost / 'result.json').read_text())['top1']
    before = kept.stat().st_mtime_ns
    (lost / 'result.json').unlink()  # as if killed right before the end
    process = tool('ablation.py', folder / 'grid.yaml', '--out',
                   folder / 'out')
    assert process.returncode == 0
    assert process.stdout.count('finished before') == 3
    assert kept.stat().st_mtime_ns == before
    assert json.loads((lost / 'result.json').read_text())['top1'] == top1
    # It went on from its last checkpoint: nothing was left to train.
    log = (lost / 'output.log').read_text()
    assert 'resumed epoch: 2' in log
    assert log.count('Epoch(train)  [1]') == log.count('Epoch(train)  [2]')


def test_other_settings_do_not_mix_with_finished_runs(ran):
    folder, _ = ran
    other = folder / 'other.yaml'
    other.write_text(GRID.replace('n: 2', 'n: 1'))
    process = tool('ablation.py', other, '--out', folder / 'out', '--collect')
    assert process.returncode == 1
    assert re.search('two_smallest.*begun under other settings',
                     process.stderr)


def test_a_failed_run_does_not_stop_the_others(tmp_path):
    grid = tmp_path / 'grid.yaml'
    grid.write_text(GRID.replace('seeds: [0, 1]', 'seeds: [0]').replace(
        'type: fixed', 'type: fixd'))
    process = tool('ablation.py', grid, '--out', tmp_path / 'out')
    assert process.returncode == 1
    assert 'two smallest, depth 20, seed 0: failed, see' in process.stdout
    assert '1 of 2 runs failed' in process.stderr
    assert '| plain | 20 |' in process.stdout
    log = tmp_path / 'out' / 'two_smallest' / 'depth_20' / 'seed_0'
    assert "unknown criterion 'fixd'" in (log / 'output.log').read_text()


@pytest.mark.parametrize('path', PRESETS, ids=lambda path: path.stem)
def test_presets_lead_somewhere(path):
    grid = read_grid(str(path))
    runs = cells(grid, str(ROOT))
    assert len(runs) == len(grid['variants']) * len(grid['depths']) * len(
        grid['seeds'])
    assert len({cell.folder for cell in runs}) == len(runs)
    assert len({cell.fingerprint for cell in runs}) == len(runs)
    for cell in runs[:len(grid['variants']) * len(grid['depths'])]:
        cfg = Config.fromfile(cell.config)
        apply_overrides(cfg, cell.overrides)
        for hook in cfg.custom_hooks:
            if hook.type == 'ELAPruneHook':
                build_criterion(hook.criterion)
    for variant, numbers in grid.get('paper', {}).items():
        assert variant in grid['variants']
        assert set(numbers) <= set(grid['depths'])


def test_python_grids_say_the_same(tmp_path):
    path = tmp_path / 'grid.py'
    path.write_text('config = "configs/ela_resnet{depth}_cifar10.py"\n'
                    'depths, seeds = [20, 56], list(range(2))\n'
                    '_n = 3\nvariants = {"ELA": {}}\n')
    runs = cells(read_grid(str(path)), str(ROOT))
    assert [(c.depth, c.seed) for c in runs] == [(20, 0), (56, 0), (20, 1),
                                                 (56, 1)]
    assert runs[1].config.endswith('ela_resnet56_cifar10.py')


@pytest.mark.parametrize('text, message', [
    ('config: [', 'grid.yaml: '),
    ('[1, 2]', 'expected keys config'),
    ('config: a\ndepth: [20]', "unknown key 'depth'"),
    ('config: a\ndepths: [20]\nseeds: [0]', "'variants' is missing"),
    ('config: a\ndepths: 20\nseeds: [0]\nvariants: {a: {}}',
     'depths is 20, expected a list'),
    ('config: a\ndepths: [20]\nseeds: [0]\nvariants: {a: 3}',
     "variant 'a' is 3"),
])
def test_wrong_grids_are_explained(tmp_path, text, message):
    path = tmp_path / 'grid.yaml'
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)):
        read_grid(str(path))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="grid 'none.yaml' does not exist"):
        read_grid('none.yaml')
    with pytest.raises(UsageError, match='faster_rcnn.*evaluate top-1'):
        cells(dict(config='configs/faster_rcnn_ela_r50.py', depths=[50],
                   seeds=[0], variants={'a': {}}), str(ROOT))
    with pytest.raises(UsageError, match='none.py.*of the grid does not'):
        cells(dict(config='none.py', depths=[20], seeds=[0],
                   variants={'a': {}}), str(tmp_path))


def test_overrides_replace_mappings_and_lead_somewhere():
    cfg = Config(dict(a=[dict(b=dict(c=1, d=2))], e=3))
    apply_overrides(cfg, {'a.0.b': dict(c=5), 'e': None})
    assert cfg.a[0].b == dict(c=5) and cfg.e is None
    with pytest.raises(UsageError, match="'a.1.b' leads nowhere"):
        apply_overrides(cfg, {'a.1.b': 0})


def test_unknown_presets_are_named():
    process = tool('ablation.py', '--preset', 'table9')
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert "unknown preset 'table9'" in last and 'table4' in last
