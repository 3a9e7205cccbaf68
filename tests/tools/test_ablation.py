"""The grid runner: from a file of variants to tables."""
import copy
import csv
import json
import re
import shutil
from functools import lru_cache

import pytest
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmpretrain.evaluation import Accuracy
from support import ROOT
from support.running import tool
from support.versions import TORCH_2_1

from ela_mm.apis.launch import UsageError
from ela_mm.experiments.grid import (
    apply_overrides,
    cells,
    published_number,
    read_grid,
    short_name,
)
from ela_mm.experiments.published import read_table
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
    assert all(float(r['last_epoch_seconds']) > float(r['step_seconds']) > 0
               for r in rows)
    if TORCH_2_1:  # which counts operations
        assert int(rows[0]['macs']) < int(rows[1]['macs'])
    table = (folder / 'out' / 'results.md').read_text()
    assert table in output
    plain = next(x for x in table.splitlines() if x.startswith('| plain'))
    mean = sum(float(r['top1']) for r in rows
               if r['variant'] == 'plain') / 2
    assert f'| {mean:.2f} ± ' in plain and '| 91.35 |' in plain
    counted = '0.0' if TORCH_2_1 else '-'
    assert f'| 1.00 ± 0.00 | 0.2204 M | {counted}' in plain
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
    assert re.search(
        'two_smallest.*begun under other settings.*'
        r'\(overrides.custom_hooks.0.criterion.n was 2, is 1\)',
        process.stderr)


def test_a_failed_run_does_not_stop_the_others(ran, tmp_path):
    """Of a kind that is known only as the training starts."""
    shutil.copytree(ran[0] / 'out', tmp_path / 'out')
    grid = tmp_path / 'grid.yaml'
    grid.write_text(GRID.replace('seeds: [0, 1]', 'seeds: [0]').replace(
        'variants:',
        'variants:\n  too late: {custom_hooks.0.windows: [[1, 9]]}'))
    process = tool('ablation.py', grid, '--out', tmp_path / 'out')
    assert process.returncode == 1
    assert re.search('too late, depth 20, seed 0: failed, see .*output.log: '
                     r'.*window \(1, 9\) lies past the last epoch'
                     '(?s:.*)plain, depth 20, seed 0: finished before',
                     process.stdout)
    assert '1 of 3 runs failed' in process.stderr
    assert '| plain | 20 |' in process.stdout


def test_a_wrong_variant_is_said_before_the_first_run(tmp_path):
    grid = tmp_path / 'grid.yaml'
    grid.write_text(GRID.replace('type: fixed', 'type: fixd'))
    process = tool('ablation.py', grid, '--out', tmp_path / 'out')
    assert process.returncode == 1
    assert re.search("two smallest, depth 20, seed 0: .*'fixd'",
                     process.stderr)
    assert 'training ...' not in process.stdout
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('path', PRESETS, ids=lambda path: path.stem)
def test_presets_lead_somewhere(path):
    grid = read_grid(str(path))
    runs = cells(grid, str(ROOT))
    assert len({cell.folder for cell in runs}) == len(runs)
    assert len({cell.fingerprint for cell in runs}) == len(runs)
    assert {cell.variant for cell in runs} == {*grid['variants'],
                                               *grid['systems']}
    networks = {cell.network for cell in runs}
    assert networks == set(grid.get('depths') or grid['config'])
    for cell in runs:
        if cell.seed != runs[0].seed:
            continue
        cfg = Config(copy.deepcopy(content(cell.config)))
        apply_overrides(cfg, cell.overrides)
        for hook in cfg.custom_hooks:
            if hook.type == 'ELAPruneHook':
                build_criterion(hook.criterion)
    if isinstance(grid['paper'], str):
        # Every row of the table, and no run of a row that it lacks.
        rows = read_table(grid['paper']).rows
        pairs = {(cell.variant, cell.network) for cell in runs}
        assert set(rows) <= pairs
        assert {name for name, _ in pairs - set(rows)} <= {'MRLA-B'}
        for (name, network), row in rows.items():
            assert published_number(
                grid, name, network,
                grid['metrics'][0]) == row.numbers[short_name(
                    grid['metrics'][0])]
    else:
        for variant, numbers in grid['paper'].items():
            assert variant in grid['variants']
            assert set(numbers) <= networks


@lru_cache(maxsize=None)
def content(config):
    return Config.fromfile(config).to_dict()


def test_metrics_of_the_presets_are_evaluated():
    """Names and spelling as the hosts' evaluators have them."""
    coco = CocoMetric(metric=['bbox', 'segm'])
    names = {f'{coco.prefix or coco.default_prefix}/{m}_mAP'
             for m in coco.metrics}
    assert set(read_grid(str(ROOT / 'configs/ablations/table5.yaml'))['metrics']
               ) == names
    assert set(read_grid(str(ROOT / 'configs/ablations/table2.yaml'))['metrics']
               ) == {f'{Accuracy.default_prefix}/top{k}' for k in (1, 5)}


def test_systems_are_overrides_of_one_config(tmp_path):
    path = tmp_path / 'grid.yaml'
    path.write_text("""
config: configs/ela_resnet20_digits.py
depths: [20, 56]
seeds: {20: [0, 1], 56: [0]}
overrides: {train_dataloader.dataset.size: 8, val_dataloader.dataset.size: 8}
systems: [ResNet, SE, NL, AA, RLA, ELA]
variants:
  ELA, all skipped: {custom_hooks.0.criterion: {type: fixed, n: 99}}
""")
    runs = cells(read_grid(str(path)), str(ROOT))
    assert [(c.depth, c.seed) for c in runs[::7]] == [(20, 0), (56, 0), (20, 1)]
    assert len(runs) == 21
    found = {(c.variant, c.depth): c.overrides for c in runs}

    def hooks(variant):
        cfg = Config.fromfile(str(ROOT / 'configs/ela_resnet20_digits.py'))
        apply_overrides(cfg, found[variant, 20])
        return [hook.type for hook in cfg.custom_hooks]

    assert hooks('SE') == hooks('RLA') == ['ReseedHook']
    assert hooks('ELA') == ['ELAPruneHook', 'ReseedHook']
    backbone = 'model.backbone.'
    assert found['ResNet', 20][backbone + 'attention'] is None
    assert found['ELA', 20][backbone + 'attention'] == 'base'
    # Before the last block of the second of three stages.
    assert [found['NL', depth][backbone + 'plugins'][0]['blocks']
            for depth in (20, 56)] == [(0, ), (4, )]
    # Maps of 8 x 8 pictures; the head reads the state as well.
    assert [plugin['cfg']['map_size']
            for plugin in found['AA', 20][backbone + 'plugins']] == [
                (4, 4), (2, 2)]
    assert found['RLA', 20]['model.head.in_channels'] == 256 + 32


def test_detectors_start_as_the_plain_network_where_they_can():
    grid = read_grid(str(ROOT / 'configs/ablations/table5.yaml'))
    starts = {}
    for cell in cells(grid, str(ROOT)):
        cfg = Config(copy.deepcopy(content(cell.config)))
        assert cfg.model.backbone.init_cfg.checkpoint.startswith('torchvision')
        apply_overrides(cfg, cell.overrides)
        starts.setdefault(cell.variant, set()).add(
            cfg.model.backbone.zero_init_attention)
    zero = dict.fromkeys(('RLA', 'MRLA-L', 'ELA'), {True})
    assert starts == {**dict.fromkeys(grid['systems'], {False}), **zero}


def test_tables_of_detectors(tmp_path):
    """Fractions become percent, and networks without a mask have none."""
    grid = dict(
        config=dict(faster='configs/faster_rcnn_ela_r50.py',
                    mask='configs/mask_rcnn_ela_r50.py'),
        seeds=[0], variants={'ELA': {}},
        metrics=['coco/bbox_mAP', 'coco/segm_mAP'],
        paper={'ELA': {'mask': 41.4}})
    (tmp_path / 'grid.json').write_text(json.dumps(grid))
    runs = cells(read_grid(str(tmp_path / 'grid.json')), str(ROOT))
    assert [c.folder for c in runs] == ['ELA/faster/seed_0', 'ELA/mask/seed_0']
    for cell, scores in zip(runs, (dict(bbox_mAP=.405),
                                   dict(bbox_mAP=.414, segm_mAP=.373))):
        folder = tmp_path / 'out' / cell.folder
        folder.mkdir(parents=True)
        (folder / 'result.json').write_text(json.dumps(dict(
            variant='ELA', network=cell.network, depth=None, seed=0, skipped=3,
            skipped_layers=[], parameters=10**6, macs=None,
            last_epoch_seconds=2., step_seconds=.5, **scores)))
    process = tool('ablation.py', tmp_path / 'grid.json', '--out',
                   tmp_path / 'out', '--collect')
    assert process.returncode == 0, process.stderr
    assert ('| ELA | faster | 40.50 | - | - | - | 3.0 | 2.00 | 1.00 | '
            '1.0000 M | - | 1 of 1 |') in process.stdout
    assert '| ELA | mask | 41.40 | 41.4 | 37.30 | - | 3.0 |' in process.stdout


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
    ('config: a\nseeds: [0]\nsystems: [SE]\npaper: table9',
     "no published table 'table9': expected one of table1_cifar10"),
    ('config: a\ndepths: [20]\nseeds: [0]\nvariants: {a: 3}',
     "variant 'a' is 3"),
])
def test_wrong_grids_are_explained(tmp_path, text, message):
    path = tmp_path / 'grid.yaml'
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)):
        read_grid(str(path))


def test_missing_files_are_named(tmp_path):

    def grid(config, *systems):
        return dict(config=config, depths=[20], seeds=[0], paper={},
                    metrics=['accuracy/top1'], systems=list(systems),
                    variants={'a': {}})

    plain = tmp_path / 'plain'
    (plain / 'configs').mkdir(parents=True)
    (plain / 'configs' / 'plain.py').write_text(
        "_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'\n"
        "model = dict(backbone=dict(type='ResNet'))\n")
    with pytest.raises(UsageError, match="grid 'none.yaml' does not exist"):
        read_grid('none.yaml')
    with pytest.raises(UsageError, match='faster_rcnn.*not evaluate accuracy/top1'):
        cells(grid('configs/faster_rcnn_ela_r50.py'), str(ROOT))
    with pytest.raises(UsageError, match='none.py.*of the grid does not'):
        cells(grid('none.py'), str(tmp_path))
    with pytest.raises(UsageError, match="system 'SEE': expected.* SE, ECA"):
        cells(grid('configs/ela_resnet20_digits.py', 'SEE'), str(ROOT))
    with pytest.raises(UsageError, match="'SE' needs a backbone.*'ResNet'"):
        cells(grid('configs/plain.py', 'SE'), str(plain))


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
