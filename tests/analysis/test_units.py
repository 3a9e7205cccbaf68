"""Numbers that are compared have one unit: steps with steps, means alike."""
import json

import numpy as np
import pytest
import torch
from support.toy import toy_runner

from ela_mm import adjacent_kl
from ela_mm.analysis.report.whatif import whatif_section
from ela_mm.analysis.whatif import (
    bootstrap,
    compare,
    measured_window,
    recorded_window,
    stability,
)
from ela_mm.engine.journal.record import (
    decision_from_json,
    decision_to_json,
    decisions_of,
    read_record,
)
from ela_mm.pruning import Decision, KLStatistics, LayerDecision
from ela_mm.pruning.build import build_criterion
from ela_mm.pruning.decision import Outcome


def decision(series, kl, iterations, steps, step_samples=()):
    """Of layers named a, b, ..., as on some number of ranks."""
    return Decision(
        (1, 1), 1, 10, dict(type='threshold', t=.3), 'layer', [
            LayerDecision(name, 1, i, Outcome.KEPT, kl=kl[i], kl_std=.01,
                          kl_iterations=list(values))
            for i, (name, values) in enumerate(zip('abcdef', series))
        ], samples=2 * iterations, iterations=iterations, steps=steps,
        step_samples=list(step_samples))


def said(decided):
    window = recorded_window(decided)
    return ' '.join(whatif_section(window, compare(window, draws=9)).text)


@pytest.mark.parametrize('ranks, steps, recorded, only', [
    (1, 59, 59, None), (8, 59, 59, None), (8, 1000, 1000, None),
    (8, 1001, 501, 'Only 501 of 1001 steps'),
    (1, 1500, 750, 'Only 750 of 1500 steps'),
])
def test_steps_are_compared_with_steps(ranks, steps, recorded, only):
    series = np.random.default_rng(0).uniform(.1, .5, (3, recorded))
    entry = decision_to_json(
        decision(series, series.mean(1), ranks * steps, steps))
    assert entry['iterations'] == ranks * steps
    assert ('steps' in entry) == (ranks > 1)
    text = said(decision_from_json(json.loads(json.dumps(entry))))
    assert (only or 'Only') in text if only else 'Only' not in text


def test_a_record_of_an_earlier_version_of_several_ranks():
    """It has no steps. A series as short as this was not thinned."""
    series = np.random.default_rng(0).uniform(.1, .5, (3, 59))
    entry = decision_to_json(decision(series, series.mean(1), 472, 59))
    del entry['steps']
    old = decision_from_json(entry)
    assert recorded_window(old).steps == 59
    assert 'Only' not in said(old)


# A last batch of 1 after full ones of 64, far off in one layer: the mean that
# is decided on hardly knows of it.
SAMPLES = np.array([64] * 7 + [1])
SERIES = np.array([[.28, .31]] * 7 + [[3., .31]])
KL = np.average(SERIES, 0, SAMPLES)
CRITERION = build_criterion(dict(type='threshold', t=.305))


def test_a_short_last_batch_weighs_no_more_than_its_samples():
    assert CRITERION(KL)[0].tolist() == [True, False]
    assert CRITERION(SERIES.mean(0))[0].tolist() == [False, False]
    decided = decision(SERIES.T, KL, 8, 8, SAMPLES.tolist())
    read = decision_from_json(decision_to_json(decided))
    window = recorded_window(read)
    assert window.samples.tolist() == SAMPLES.tolist()
    assert stability(window, CRITERION).same > .9
    drawn = bootstrap(SERIES, 4000, samples=SAMPLES)
    assert drawn.mean(0) == pytest.approx(KL, rel=.01)


def test_draws_stand_around_the_mean_that_was_decided_on():
    """Of a series that was thinned, or without samples: an earlier record."""
    thinned = np.full((8, 2), .31) + np.array([0, .05])
    window = recorded_window(decision(thinned.T, [.28, .36], 8, 8))
    assert window.samples is None
    assert stability(window, CRITERION).same == 1


def test_a_run_with_a_short_last_batch_records_its_samples(tmp_path):
    """8 pictures in batches of 3; of 9, nothing is added to the record."""
    for size, samples in ((8, [3, 3, 2]), (9, None)):
        folder = tmp_path / str(size)
        toy_runner(folder, max_epochs=1,
                   **{'train_dataloader.dataset.size': size,
                      'train_dataloader.batch_size': 3,
                      'train_dataloader.sampler.round_up': False}).train()
        record = read_record(folder)
        entry = record['decisions'][0]
        assert entry.get('step_samples') == samples
        assert 'steps' not in entry and entry['iterations'] == 3
        window = recorded_window(decisions_of(record)[0])
        assert np.average(window.series, 0, window.samples) == pytest.approx(
            window.kl, rel=1e-5)


def test_a_window_that_was_measured_without_training_weighs_alike():
    statistics, parts = KLStatistics(), []
    for batch in (4, 4, 1):
        prev = torch.rand(batch, 2, 3).softmax(-1)
        curr = torch.rand(batch, 2, 4).softmax(-1)
        statistics.update('layer1.1', prev, curr)
        parts.append(float(adjacent_kl(prev, curr)))
    kl = statistics.reduce(['layer1.1'])
    window = measured_window(kl, ['layer1.0', 'layer1.1'], '9 pictures')
    assert window.samples.tolist() == [4, 4, 1] and window.steps == 3
    assert window.series[:, 0] == pytest.approx(parts)
    assert window.kl == pytest.approx(np.average(parts, weights=[4, 4, 1]))


def test_a_step_without_pictures_spoils_nothing():
    statistics = KLStatistics()
    for batch in (2, 0, 3):
        statistics.update('layer1.1', torch.rand(batch, 2, 3).softmax(-1),
                          torch.rand(batch, 2, 4).softmax(-1))
    kl = statistics.reduce(['layer1.1'])['layer1.1']
    assert (kl.samples, kl.bad_iterations) == (5, 0)
    assert list(kl.weights) == [2, 3] and np.isfinite(kl.mean)
