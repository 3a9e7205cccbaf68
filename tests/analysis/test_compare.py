"""Runs side by side: what they skipped, what they cost, what tells them apart."""
import csv
import json
import os.path as osp
import shutil
from dataclasses import replace

import pytest
import torch
from support import ROOT
from support.running import tool
from support.toy import toy_runner, validation

from ela_mm.analysis.compare import common_folder, compare_runs, find_runs
from ela_mm.analysis.history import read_run
from ela_mm.analysis.report.compare import (
    _narrowly,
    _when,
    compare_sections,
    summarize_comparison,
)
from ela_mm.analysis.run_names import name_of, names_of
from ela_mm.engine.journal.record import FILE_NAME, edit_to_json, read_record
from ela_mm.errors import UsageError
from ela_mm.experiments.grid import cells, read_grid
from ela_mm.pruning.decision import Outcome
from ela_mm.pruning.edit import MaskEdit

SMALL = {'model.backbone.depth': 18}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """One that skips a layer, one that skips more, one without the hook."""
    folder = tmp_path_factory.mktemp('runs')
    for name, hook in (('few', dict(criterion=dict(type='fixed', n=1))),
                       ('many', dict(criterion=dict(type='fixed', n=3))),
                       ('plain', None)):
        toy_runner(folder / name, max_epochs=2, hook=hook or {},
                   **(dict(windows=None) if hook is None else {}),
                   **validation(), **SMALL).train()
    return folder


def rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def test_what_tells_runs_apart(runs):
    found = compare_runs([str(runs / n) for n in ('few', 'many', 'plain')])
    assert found.names == ['few', 'many', 'plain'] and not found.notes
    few, many = (set(read_record(runs / n)['decisions'][0]['skipped'])
                 for n in ('few', 'many'))
    assert few < many
    assert found.differing == [n for n in found.layers if n in many - few]
    total = {p.total for p in found.parameters}
    unused = [p.unused for p in found.parameters]
    assert len(total) == 1 and 0 == unused[2] < unused[0] < unused[1]
    for run in found.runs:
        assert [x for x, _ in run.losses] == [1, 2]
        assert run.metric == 'energy' and len(run.metrics) == 2
    said = ' '.join(summarize_comparison(found))
    assert ('1 of 8 attention layers are skipped in all runs that have them, 2 in '
            'some, 5 in none') in said
    assert 'of the same name' not in said
    shorter = found.fates[0].copy()
    shorter.popitem()
    said = ' '.join(summarize_comparison(
        found._replace(fates=[shorter, *found.fates[1:]])))
    assert 'The networks have 7 to 8 layers; layers of the same name' in said


def test_layers_changed_by_hand_are_named(runs):
    run = read_run(str(runs / 'few'))
    edit = edit_to_json(MaskEdit(2, 8, ['layer2.1'], ['layer3.1']))
    run = run._replace(record=dict(run.record, edits=[edit]))
    assert _when(run).endswith(
        '; by hand: restored layer2.1 and skipped layer3.1')


def test_results_of_several_runs_lie_in_none_of_them(runs):
    few, many = str(runs / 'few'), str(runs / 'many')
    assert osp.samefile(common_folder([few, many]), runs)
    assert osp.samefile(common_folder([str(runs)]), runs)  # of a grid
    assert common_folder([few, '/proc']) == few  # the root is no place


def test_parameters_are_those_of_the_network(runs):
    """Counted by hand: all tensors of a checkpoint that learn."""
    state = torch.load(runs / 'few' / 'epoch_2.pth')['state_dict']
    by_hand = {
        name: value.numel() for name, value in state.items()
        if not name.endswith(('running_mean', 'running_var', 'active',
                              'visible', 'num_batches_tracked', 'fresh'))
        and value.is_floating_point()
    }
    (name, ) = read_record(runs / 'few')['decisions'][0]['skipped']
    stage, index = name.split('.')
    (first, _) = compare_runs([str(runs / n) for n in ('few', 'plain')]
                              ).parameters
    assert first.total == sum(by_hand.values())
    assert first.unused == sum(
        number for key, number in by_hand.items()
        if key.startswith(f'backbone.{stage}.attention.{index}.'))


def test_what_later_layers_still_see_is_used(runs, tmp_path):
    """Of a layer whose retrieval alone is skipped, key and value stay."""
    for mode in ('layer', 'retrieval'):
        shutil.copytree(runs / 'few', tmp_path / mode)
        path = tmp_path / mode / FILE_NAME
        record = json.loads(path.read_text())
        (decision, ) = record['decisions']
        decision['skip'] = record['skip'] = mode
        for layer in decision['layers']:
            gone = layer['name'] == 'layer3.0'
            layer['status'] = 'skipped' if gone else 'kept'
        record['active'] = [x for x in record['layers'] if x != 'layer3.0']
        path.write_text(json.dumps(record))
    whole, retrieval = compare_runs(
        [str(tmp_path / mode) for mode in ('layer', 'retrieval')]).parameters
    state = torch.load(runs / 'few' / 'epoch_2.pth')['state_dict']
    seen = sum(value.numel() for key, value in state.items() if key.startswith(
        ('backbone.layer3.attention.0.key', 'backbone.layer3.attention.0.value')))
    assert 0 < seen == whole.unused - retrieval.unused


def test_how_narrowly_a_layer_was_decided(runs, tmp_path):
    for name, mapped in (('a', .1), ('b', .35)):
        shutil.copytree(runs / 'few', tmp_path / name)
        path = tmp_path / name / FILE_NAME
        record = json.loads(path.read_text())
        (decision, ) = record['decisions']
        decision['criterion'] = dict(
            type='EBQM', gamma=.75, alpha=2., beta=5., mu=.3)
        layer = next(x for x in decision['layers'] if x['kl'] is not None)
        for other in decision['layers']:
            other['status'] = 'kept'
        layer.update(mapped=mapped, stability=mapped * 2,
                     status='skipped' if mapped < .3 else 'kept')
        record['active'] = [n for n in record['layers']
                            if mapped > .3 or n != layer['name']]
        path.write_text(json.dumps(record))
    found = compare_runs([str(tmp_path / n) for n in 'ab'], count=False)
    assert found.differing == [layer['name']]
    margins = [f[layer['name']].margin for f in found.fates]
    assert margins == pytest.approx([.2, -.05])
    (table, ) = compare_sections(found)[-1].tables
    assert table.rows == [[layer['name'], 'skipped, 0.2 below mu, 20%',
                           'kept, 0.05 above mu, 70%']]
    # What its value does not say: rules of the hook, and edits by hand.
    fate = found.fates[0][layer['name']]
    for active, outcome, said in (
            (True, Outcome.UNSTABLE, 'kept (unstable), '),
            (True, Outcome.KEPT, 'kept (ranking says nothing), '),
            (True, Outcome.SKIPPED, 'restored by hand, '),
            (False, Outcome.SKIPPED, 'skipped, ')):
        other = fate._replace(active=active, layer=replace(
            fate.layer, outcome=outcome))
        assert _narrowly(other) == f'{said}0.2 below mu, 20%'


def test_the_tool_writes_tables_pictures_and_a_page(runs, tmp_path):
    process = tool('analyze.py', 'compare', runs / 'few', runs / 'many',
                   runs / 'plain', '--no-parameters', '--out', tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    table = rows(tmp_path / 'runs.csv')
    assert [x['run'] for x in table] == ['few', 'many', 'plain']
    assert table[1]['layers'] == '8' and table[2]['layers'] == '0'
    for name in ('compare_curves', 'compare_layers'):
        assert (tmp_path / f'{name}.png').stat().st_size > 10_000
    assert '5 of 8' in process.stdout and 'epoch 1' in process.stdout
    page = (tmp_path / 'compare.html').read_text()
    assert page.count('<img') == 2 and 'Decisions that differ' in page


def test_many_runs_are_summed_up(runs):
    """Where a column each would be unreadable."""
    found = compare_runs([str(runs / n) for n in ('few', 'many', 'plain')],
                         count=False)
    many = found._replace(**{
        field: 5 * getattr(found, field)
        for field in ('names', 'runs', 'parameters', 'fates')})
    _, layers, differing = compare_sections(many)
    (table, ) = layers.tables
    counts = {row[0]: row[1] for row in table.rows}
    (everywhere, ) = read_record(runs / 'few')['decisions'][0]['skipped']
    assert counts[everywhere] == '10 of 10 runs'  # the plain ones have none
    assert {counts[name] for name in found.differing} == {'5 of 10 runs'}
    assert len(differing.tables[0].rows) == 10 * len(found.differing)


GRID = dict(
    config='configs/ela_resnet20_digits.py', seeds=[2, 10], depths=[20, 56],
    overrides={'train_cfg.max_epochs': 6},
    variants={'ELA (EBQM)': {}, 'MRLA-base': {'custom_hooks': []}})


def begin_grid(folder, **changes):
    """As tools/ablation.py begins its runs; returns the cells."""
    path = folder.with_suffix('.json')
    path.write_text(json.dumps({**GRID, **changes}))
    found = cells(read_grid(str(path)), str(ROOT))
    for cell in found:
        place = folder / cell.folder
        place.mkdir(parents=True)
        (place / 'cell.json').write_text(json.dumps(cell.begin()))
    return found


def test_runs_of_a_grid_have_its_labels(tmp_path):
    begun = begin_grid(tmp_path / 'grid')
    folders = find_runs([str(tmp_path / 'grid')])
    names = names_of(folders)
    assert sorted(names.runs) == sorted(cell.label for cell in begun)
    assert [name_of(folder) for folder in folders] == names.runs
    assert name_of(str(tmp_path / 'grid')) == 'grid'
    assert names.runs[:2] == ['ELA (EBQM), depth 20, seed 2',
                              'ELA (EBQM), depth 20, seed 10']
    assert names.settings == {'ELA (EBQM)': [],
                              'MRLA-base': ['custom_hooks: []']}


def test_what_all_runs_share_is_left_out(tmp_path):
    begin_grid(tmp_path / 'grid', depths=[56], seeds=[0])
    names = names_of(find_runs([str(tmp_path / 'grid')])).runs
    assert names == ['ELA (EBQM)', 'MRLA-base']


def test_several_grids_and_other_runs_are_told_apart(tmp_path):
    begin_grid(tmp_path / 'short', depths=[56], seeds=[0])
    begin_grid(tmp_path / 'long', depths=[56], seeds=[0],
               overrides={'train_cfg.max_epochs': 9})
    (tmp_path / 'MRLA-base').mkdir()
    found = names_of(find_runs([str(tmp_path / name)
                                for name in ('short', 'long', 'MRLA-base')]))
    assert found.runs == ['short: ELA (EBQM)', 'short: MRLA-base',
                          'long: ELA (EBQM)', 'long: MRLA-base', 'MRLA-base']
    assert found.settings['long: MRLA-base'] == [
        'train_cfg.max_epochs: 9', 'custom_hooks: []']


def test_a_variant_may_be_set_otherwise_in_each_network(tmp_path):
    """As systems are, whose plugins depend on the depth."""
    grid = tmp_path / 'grid'
    begin_grid(grid, seeds=[0])
    path = grid / 'MRLA-base' / 'depth_56' / 'seed_0' / 'cell.json'
    path.write_text(path.read_text().replace('"custom_hooks": []',
                                             '"model.backbone.plugins": null'))
    settings = names_of(find_runs([str(grid)])).settings
    assert settings == {
        'ELA (EBQM)': [],
        'MRLA-base, depth 20': ['custom_hooks: []'],
        'MRLA-base, depth 56': ['model.backbone.plugins: null']}


@pytest.mark.parametrize('text', ['{}', '', '[' * 10_000, '{"cell": []}',
                                  '{"cell": {"depth": 1, "seed": 0}}'])
def test_a_grid_stands_for_its_runs(runs, tmp_path, text):
    """By their folders, where what it calls them is damaged."""
    for name in ('few', 'many'):
        folder = tmp_path / 'grid' / name / 'seed_0'
        shutil.copytree(runs / name, folder)
        (folder / 'cell.json').write_text(text)
    folders = find_runs([str(tmp_path / 'grid')])
    assert compare_runs(folders, count=False).names == ['few', 'many']


def test_what_a_grid_sets_stands_below_its_runs(runs, tmp_path):
    for cell, name in zip(begin_grid(tmp_path / 'grid', depths=[18],
                                     seeds=[0]), ('few', 'many')):
        shutil.copytree(runs / name, tmp_path / 'grid' / cell.folder,
                        dirs_exist_ok=True)
    found = compare_runs(find_runs([str(tmp_path / 'grid')]), count=False)
    first, settings = compare_sections(found)[0].tables
    assert [row[0] for row in first.rows] == ['ELA (EBQM)', 'MRLA-base']
    assert settings.rows == [['ELA (EBQM)', 'none'],
                             ['MRLA-base', 'custom_hooks: []']]


def test_what_is_no_run_is_said(runs, tmp_path):
    with pytest.raises(UsageError, match='one run .*expected two'):
        find_runs([str(runs / 'few'), str(runs / 'few')])
    with pytest.raises(UsageError, match='is no folder'):
        find_runs(['nowhere'])
    with pytest.raises(UsageError, match='holds no run'):
        compare_runs([str(runs / 'few'), str(tmp_path)])
    (config, ) = (runs / 'few').glob('*/vis_data/config.py')
    broken = shutil.copytree(runs / 'few', tmp_path / 'broken')
    for path in broken.rglob('config.py'):
        path.write_text("model = dict(type='Gone')\n")
    found = compare_runs([str(broken), str(runs / 'many')])
    assert found.parameters[0] is None and found.parameters[1] is not None
    assert "parameters of" in found.notes[0] and 'Gone' in found.notes[0]


def test_configs_and_checkpoints_of_one_s_own(runs, tmp_path):
    """Of a work dir that was moved, and of a run before it pruned."""
    import torch
    (config, ) = (runs / 'few').glob('*/vis_data/config.py')
    shutil.copy(config, tmp_path / 'moved.py')
    broken = shutil.copytree(runs / 'few', tmp_path / 'broken')
    for path in broken.rglob('config.py'):
        path.write_text("model = dict(type='Gone')\n")
    checkpoint = torch.load(runs / 'many' / 'epoch_2.pth')
    checkpoint['ela_prune_hook']['decisions'] = []
    torch.save(checkpoint, tmp_path / 'early.pth')
    folders = [str(broken), str(runs / 'many')]
    found = compare_runs(
        folders, configs=[str(tmp_path / 'moved.py')],
        checkpoints=[str(broken / 'epoch_2.pth'), str(tmp_path / 'early.pth')])
    assert not found.notes
    assert found.parameters == [
        *compare_runs([str(runs / n) for n in ('few', 'plain')]).parameters[:1],
        (found.parameters[0].total, 0)]
    assert [len(run.record['active']) for run in found.runs] == [7, 8]
    for option, paths in (('configs', ['a', 'b', 'c']), ('checkpoints', ['a'])):
        with pytest.raises(UsageError, match=f'--{option[:-1]}: {len(paths)} '
                           'for 2 runs: expected .*one each'):
            compare_runs(folders, **{option: paths})
