"""The study of whether redundancy finds the layers that matter least."""
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, sem, t
from sklearn.metrics import jaccard_score
from support import ROOT
from support.running import tool

from ela_mm.errors import UsageError
from ela_mm.experiments.validity import cells as cells_module
from ela_mm.experiments.validity.cells import Measures, cells_of, choose
from ela_mm.experiments.validity.numbers import (
    chance_overlap,
    chance_range,
    correlation,
    correlation_within,
    interval,
    jaccard,
    overlaps,
)
from ela_mm.experiments.validity.report import write_report
from ela_mm.experiments.validity.run import run_study
from ela_mm.experiments.validity.starts import start_cells
from ela_mm.experiments.validity.study import SELECTORS, is_study, read_study
from ela_mm.experiments.validity.summary import accuracies, paired_with, told
from ela_mm.experiments.validity.training import (
    NetworkRun,
    PictureSet,
    augmented,
    lr_factor,
)

STUDIES = sorted((ROOT / 'configs' / 'studies').glob('*.yaml'))
TINY = dict(
    study='validity', title='Tiny', config='configs/ela_resnet20_digits.py',
    depths={20: 1}, seeds=[0, 1],
    overrides={
        'model.backbone.zero_init_attention': True,
        'train_dataloader.dataset.size': 8,
        'val_dataloader.dataset.size': 8
    },
    pictures=dict(train=[0, 64], held_out=[64, 96], test=[0, 32], padding=1),
    training=dict(epochs=3, batch_size=32, lr=.05),
    windows=dict(early=1, middle=2, late=3), decision='middle')


def write(folder, **changes):
    path = folder / 'tiny.yaml'
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return str(path)


def contents(out):
    """Of all that a study has found."""
    return {str(path.relative_to(out)): json.loads(path.read_text())
            for path in Path(out).rglob('*.json')}


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp('study')
    study = read_study(write(folder), str(ROOT))
    assert run_study(study, str(folder / 'out')) == 0
    return study, folder / 'out'


# --- numbers -----------------------------------------------------------------

values = st.lists(st.integers(-4, 4), min_size=3, max_size=12)


@given(values, st.randoms())
def test_rank_correlation_is_pearsons_of_the_ranks(one, random):
    other = [random.randint(-4, 4) for _ in one]
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert correlation(one, other) is None
    else:
        expected = np.corrcoef(rankdata(one), rankdata(other))[0, 1]
        assert correlation(one, other) == pytest.approx(expected)


def test_a_correlation_within_stages_does_not_see_those_between():
    stages = [1, 1, 1, 2, 2, 2]
    measure, costs = [1, 2, 3, 11, 12, 13], [13, 12, 11, 23, 22, 21]
    assert correlation(measure, costs) > 0
    assert correlation_within(stages, measure, costs) == pytest.approx(-1)
    assert correlation_within([1, 2, 3], [1, 2, 3], [1, 2, 3]) is None


@settings(max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_jaccard_is_sklearns(members):
    one, other = zip(*members)
    expected = jaccard_score(one, other, zero_division=1.)
    assert jaccard(np.flatnonzero(one).tolist(),
                   np.flatnonzero(other).tolist()) == pytest.approx(expected)


@pytest.mark.parametrize('layers, number', [(3, 1), (6, 2), (6, 4)])
def test_chance_is_the_mean_over_all_pairs_of_sets(layers, number):
    sets = list(itertools.combinations(range(layers), number))
    expected = np.mean([len({*a} & {*b}) / len({*a} | {*b})
                        for a in sets for b in sets])
    assert chance_overlap(layers, number) == pytest.approx(expected)
    low, high = chance_range(layers, number, 40)
    assert low < expected < high
    assert high - low < np.diff(chance_range(layers, number, 3))[0]


def test_overlaps_are_of_every_pair():
    assert overlaps([{1, 2}, {2, 3}, {1, 2}]) == [1 / 3, 1., 1 / 3]


def test_an_interval_is_that_of_a_t_test():
    numbers = [.3, -.1, .5, .2]
    found = interval([*numbers, None])
    low, high = t.interval(.95, 3, np.mean(numbers), sem(numbers))
    assert found.mean - found.margin == pytest.approx(low)
    assert found.mean + found.margin == pytest.approx(high)
    assert found.number == 4 and not found.excludes_zero
    assert interval([1.]).margin is None and interval([None]) is None


def test_measures_average_over_samples():
    torch.manual_seed(0)
    measures, kl, own = Measures(), [], []
    for batch in (4, 2):
        prev = torch.rand(batch, 3, 2).softmax(-1)
        curr = torch.rand(batch, 3, 3).softmax(-1)
        measures.see('layer1.2', prev, curr)
        kl += (prev * (prev / curr[..., :2]).log()).sum(-1).mean(-1).tolist()
        own += curr[..., 2].mean(-1).tolist()
    found = measures.by_layer()['layer1.2']
    assert found['kl'] == pytest.approx(np.mean(kl), abs=1e-5)
    assert found['own_share'] == pytest.approx(np.mean(own), abs=1e-5)
    assert found['excess'] == pytest.approx(np.mean(kl) - math.log(3 / 2),
                                            abs=1e-5)
    assert found['position'] == pytest.approx(math.log(3 / 2))


def test_the_smallest_go_and_of_equal_ones_the_later():
    layers = {f'layer{s}.{i}': dict(kl=abs(i - 2), position=1 / i)
              for s in (1, 2) for i in (1, 2, 3)}
    assert choose(layers, 'paper', 3, 0) == ('layer1.2', 'layer2.2',
                                             'layer2.3')
    assert choose(layers, 'position', 1, 0) == ('layer2.3', )
    drawn = {choose(layers, 'random', 2, seed) for seed in range(20)}
    assert len(drawn) > 5 and choose(layers, 'random', 2, 3) in drawn


# --- batches -----------------------------------------------------------------


def test_batches_depend_on_seed_and_epoch_alone():
    study = read_study(str(ROOT / 'configs/studies/validity_digits.yaml'),
                       str(ROOT))
    pictures = PictureSet(torch.arange(40 * 75).reshape(40, 3, 5, 5) % 251,
                          list(range(40)))

    def epoch(seed, number):
        torch.rand(1)  # what others draw does not matter
        batches = list(augmented(pictures, study.pictures, 16, seed, number))
        return (sum((x['data_samples'] for x in batches), []),
                torch.cat([x['inputs'] for x in batches]))

    samples, inputs = epoch(0, 0)
    assert len(samples) == len(set(samples)) == 32
    again, same = epoch(0, 0)
    assert again == samples and torch.equal(inputs, same)
    assert epoch(0, 1)[0] != samples != epoch(1, 0)[0]
    # Shifted by a pixel at most, and some are.
    middle = inputs[:, :, 1:-1, 1:-1]
    originals = pictures.inputs[samples]
    moved = [not torch.equal(a, b[:, 1:-1, 1:-1])
             for a, b in zip(middle, originals)]
    assert 0 < sum(moved) < 32
    for shifted, original in zip(middle, originals):
        windows = original.unfold(1, 3, 1).unfold(2, 3, 1)  # (3, 3, 3, 3, 3)
        assert any(torch.equal(shifted, windows[:, i, j])
                   for i in range(3) for j in range(3))


def test_the_learning_rate_warms_up_and_ends_near_0():
    training = read_study(str(STUDIES[-2]), str(ROOT)).training
    factors = [lr_factor(i, 10, training) for i in range(10 * training.epochs)]
    assert factors[9] == factors[10] == max(factors) == 1
    assert np.allclose(np.diff(factors[:10]), .1)
    assert factors[-1] < .01 and (np.diff(factors[10:]) < 0).all()


# --- the study ---------------------------------------------------------------


def test_every_window_is_measured_before_anything_goes(ran):
    study, out = ran
    for cell in cells_of(study, str(out)):
        for name in study.windows:
            measured = cell.window(name)
            # ResNet-20 has two layers a stage, the second of which is ranked.
            assert list(measured['layers']) == ['layer1.1', 'layer2.1',
                                                'layer3.1']
            for layer in measured['layers'].values():
                assert layer['excess'] == pytest.approx(
                    layer['kl'] - math.log(2), abs=1e-5)
                assert math.isfinite(layer['added'])
        assert len({cell.window(w)['loss'] for w in study.windows}) == 3


def test_windows_are_told_as_the_hook_tells_them(ran):
    """Of three layers, all at the same place, no order is one by position."""
    study, out = ran
    cells = cells_of(study, str(out))
    for window in study.windows:
        near, same = [], []
        for cell in cells:
            start = cell.result('MRLA-base', 'start.json')
            layers = cell.window(window)['layers']
            for found, expected in (
                    (near, dict.fromkeys(layers, math.log(2))),
                    (same, {name: start[name]['kl'] for name in layers})):
                found.append(sum(
                    abs(x['kl'] - expected[name]) <= max(
                        x['noise'], .05 * expected[name])
                    for name, x in layers.items()) > 1)
        either = sum(a or b for a, b in zip(near, same))
        assert all(0 < x['noise'] <= x['std'] for cell in cells
                   for x in cell.window(window)['layers'].values())
        assert told(cells, window) == (sum(near), sum(same), either, 2)
    text, _ = write_report(study, str(out))
    assert '| attention is as it was drawn | ' in text


def test_each_selector_skips_what_it_ranks_last(ran):
    study, out = ran
    for cell in cells_of(study, str(out)):
        layers = cell.window('middle')['layers']
        for selector, key in SELECTORS.items():
            (gone, ) = cell.result(selector)['skipped']
            if selector != 'random':
                assert layers[gone][key] == min(x[key]
                                                for x in layers.values())
            state = torch.load(out / 'depth_20' / f'seed_{cell.seed}' /
                               cell.result(selector).get('same_as', selector) /
                               'epoch_3.pth', weights_only=True)
            assert state['network']['backbone.active'].sum() == 5


def test_differences_are_paired_by_seed(ran):
    study, out = ran
    cells = cells_of(study, str(out))
    found = accuracies(cells)
    assert list(found) == ['plain', 'MRLA-base', *SELECTORS]
    for run in ('plain', *SELECTORS):
        own = [json.loads((out / f'depth_20/seed_{seed}/{run}/result.json'
                           ).read_text())['top1'] for seed in (0, 1)]
        base = [json.loads((out / f'depth_20/seed_{seed}/MRLA-base/result.json'
                            ).read_text())['top1'] for seed in (0, 1)]
        assert found[run].added.mean == pytest.approx(
            np.mean(own) - np.mean(base))
    assert paired_with(cells, 'paper', 'paper').mean == 0


def test_a_study_that_is_killed_goes_on_to_the_same_numbers(
        ran, tmp_path, monkeypatch):
    study, out = ran
    study = study._replace(seeds=[1])
    save = NetworkRun.save

    def killed(run, keep=()):
        if run.epoch == stop:
            raise KeyboardInterrupt
        save(run, keep)

    # In the second epoch of the first run, then in the last of a pruned one.
    for at, kind in ((2, 'MRLA-base'), (3, None)):
        stop = at
        monkeypatch.setattr(NetworkRun, 'save', killed)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, str(tmp_path))
        monkeypatch.setattr(NetworkRun, 'save', save)
        if kind is None:
            continue
        for cell in cells_of(study, str(tmp_path)):
            cells_module.run_cell(cell, False)
            assert cell.is_measured() and not cell.is_finished()
    assert run_study(study, str(tmp_path)) == 0
    theirs = {name: found for name, found in contents(out).items()
              if 'seed_1' in name}
    mine = {name: found for name, found in contents(tmp_path).items()
            if 'seed_1' in name}
    assert mine == theirs and len(mine) == 6 + 7 + sum(
        'pruned.json' in name for name in mine)


def test_a_finished_study_runs_nothing(ran, monkeypatch):
    study, out = ran
    monkeypatch.setattr(NetworkRun, 'train_epoch', None)
    assert run_study(study, str(out)) == 0


def test_other_settings_do_not_mix(ran, tmp_path):
    _, out = ran
    other = read_study(write(tmp_path, training=dict(
        TINY['training'], lr=.1)), str(ROOT))
    with pytest.raises(UsageError, match='other settings.*--out'):
        run_study(other, str(out))
    more = read_study(write(tmp_path, seeds=[0, 1, 2]), str(ROOT))
    assert more.fingerprint == read_study(write(tmp_path),
                                          str(ROOT)).fingerprint


def test_the_report_has_tables_and_pictures(ran):
    study, out = ran
    text, written = write_report(study, str(out))
    for start in ('| KL, equation 11 |', '| by chance | 0.33 ', '| plain |',
                  '| ablation |'):
        assert f'\n{start}' in text
    # One place alone: position ranks nothing.
    assert '| position alone | - | - | - |' in text
    assert [Path(path).suffix for path in written] == ['.md'] + 3 * ['.png']


def test_starts_are_followed_from_before_the_training(tmp_path):
    study = read_study(write(
        tmp_path, study='starts', seeds=[0], starts={
            'scale 0': {},
            'small scale': dict(training=dict(attention_scale=.01)),
            'none': dict(backbone=dict(zero_init_attention=False))
        }), str(ROOT))._replace(training=read_study(
            write(tmp_path), str(ROOT)).training._replace(epochs=1))
    assert run_study(study, str(tmp_path / 'out')) == 0
    found = {cell.name: cell.result()['epochs']
             for cell in start_cells(study, str(tmp_path / 'out'))}
    # The same first weights attend the same until the scale lets x differ.
    assert found['scale 0'][0]['kl'] != found['none'][0]['kl']
    for epochs in found.values():
        assert len(epochs) == 2 and 'top1' not in epochs[0]
        assert epochs[1]['distance'] == pytest.approx(np.median(
            [abs(x / math.log(2) - 1) for x in epochs[1]['kl']]), abs=1e-5)
    text, _ = write_report(study, str(tmp_path / 'out'))
    assert '| small scale | 20 |' in text


# --- files -------------------------------------------------------------------


@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_studies_lead_somewhere(path):
    assert is_study(str(path))
    study = read_study(str(path), str(ROOT))
    assert len(study.seeds) >= (5 if study.kind == 'validity' else 1)
    for depth in study.depths:
        backbone = study.network_config(depth).model.backbone
        assert backbone.depth == depth
    assert study.kind == 'validity' or len(study.starts) > 3


@pytest.mark.parametrize('changes, message', [
    (dict(study='belief'), "study is 'belief'"),
    (dict(windows=dict(early=0), decision='early'), "'early' is epoch 0"),
    (dict(decision='noon'), "decision is 'noon'"),
    (dict(pictures=dict(TINY['pictures'], held_out=[60, 70])), '4 pictures'),
    (dict(training=dict(epochs=3, batch_size=65)), 'no batch of 65'),
    (dict(colour='red'), 'colour'),
    (dict(depths=[20]), r'depths is \[20\]'),
])
def test_bad_files_are_named(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(UsageError, match=message) as error:
        read_study(path, str(ROOT))
    assert path in str(error.value)


@pytest.mark.slow
def test_the_tool_runs_a_study_in_processes(ran, tmp_path):
    _, out = ran
    path = write(tmp_path)
    process = tool('ablation.py', path, '--out', tmp_path / 'out', '--jobs',
                   '2')
    assert process.returncode == 0, process.stderr
    assert contents(tmp_path / 'out') == contents(out)
    again = tool('ablation.py', path, '--out', tmp_path / 'out', '--collect')
    assert again.returncode == 0 and '## ResNet-20' in again.stdout
