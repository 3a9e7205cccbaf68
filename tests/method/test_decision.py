"""The decision at a window's end: pure, typed, and the same once read back."""
import json
import math

import numpy as np
import pytest

from ela_mm import ELAPruneHook
from ela_mm.engine.journal.record import decision_from_json, decision_to_json
from ela_mm.errors import UsageError
from ela_mm.models.backbones.stages import AttentionLayerInfo
from ela_mm.pruning import LayerKL, Outcome, decide, ebqm
from ela_mm.pruning.build import build_criterion
from ela_mm.pruning.decision import Moment
from ela_mm.pruning.trust import Rules

MOMENT = Moment((1, 3), 3, 24)
CONFIG = dict(type='EBQM', gamma=.75, alpha=5., beta=1., mu=.3)


def network(*stages, skipped=()):
    """Layers of stages of so many blocks."""
    layers = []
    for stage, blocks in enumerate(stages, start=1):
        sees = 0
        for index in range(blocks):
            name = f'layer{stage}.{index}'
            sees += name not in skipped
            layers.append(AttentionLayerInfo(
                name, stage, index, name not in skipped, sees,
                f'layer{stage}'))
    return layers


def kl(mean, std=.01, bad=0, series=()):
    return LayerKL(mean, std, 8, 4, bad, list(series))


def decided(layers, measured, config=CONFIG, **kwargs):
    criterion = build_criterion(config)
    return decide(layers, measured, criterion, criterion.config, MOMENT,
                  **kwargs)


def test_every_layer_has_its_outcome():
    layers = network(3, 3, skipped=['layer1.1'])
    measured = {'layer1.2': kl(.1), 'layer2.1': kl(.9)}
    decision = decided(layers, measured, dict(type='fixed', n=1))
    assert [layer.outcome for layer in decision.layers] == [
        Outcome.FIRST, Outcome.SKIPPED_BEFORE, Outcome.SKIPPED, Outcome.FIRST,
        Outcome.KEPT, Outcome.NOT_MEASURED]
    assert decision.skipped == ['layer1.2']
    assert (decision.active, decision.total) == (4, 6)
    assert (decision.window, decision.epoch, decision.iter) == MOMENT
    assert decision.samples == 8 and decision.iterations == 4
    assert decision.note is None


def test_the_criterion_decides_on_the_means():
    layers = network(1, 4, 4)
    values = [.3, .1, .5, .2, .8, 3.]
    names = [f'layer{s}.{i}' for s in (2, 3) for i in (1, 2, 3)]
    decision = decided(layers, {n: kl(v) for n, v in zip(names, values)})
    expected = ebqm(values, alpha=5., beta=1., mu=.3)
    assert decision.skipped == [n for n, x in zip(names, expected) if x] != []
    mapped = {layer.name: layer.mapped for layer in decision.layers}
    assert mapped['layer2.2'] == 0. and mapped['layer3.3'] is None


@pytest.mark.parametrize('measured, kwargs, note', [
    ({}, {}, 'no iteration was measured'),
    ({'layer1.1': kl(.1)}, {}, '1 layers were measured; ranking needs'),
    ({'layer1.1': kl(.1), 'layer1.2': kl(math.nan, bad=2)}, {},
     'not finite: layer1.2 in 2 of 4 iterations'),
    ({'layer1.1': kl(.1), 'layer1.2': kl(.2)}, dict(diverged='head.weight'),
     'diverged: head.weight is not finite'),
    ({'layer1.1': kl(.5), 'layer1.2': kl(.5)}, {},
     'the criterion found no layer redundant'),
])
def test_what_cannot_be_ranked_skips_nothing(measured, kwargs, note):
    decision = decided(network(3), measured, **kwargs)
    assert not decision.skipped and note in decision.note


def test_a_failing_criterion_is_a_note():

    def fails(kl):
        if len(kl) < 4:
            raise RuntimeError('no fit')
        return np.zeros(len(kl), bool)

    decision = decided(network(3), {'layer1.1': kl(.1), 'layer1.2': kl(.2)},
                       dict(type=fails))
    assert decision.note == 'RuntimeError: no fit'


def test_read_back_it_is_the_same():
    layers = network(3, 3, skipped=['layer1.1'])
    decision = decided(layers, {
        'layer1.2': kl(.1, series=[.1, math.nan, .123456789]),
        'layer2.1': kl(.2), 'layer2.2': kl(3.)})
    decision.times.before, decision.times.steps = 1.5, (7, 0)
    text = json.dumps(decision_to_json(decision), allow_nan=False)
    assert decision_from_json(json.loads(text)) == decision
    assert json.loads(text)['layers'][2]['kl_iterations'] == [
        .1, None, .123457]


def test_the_record_has_the_keys_of_format_1():
    entry = decision_to_json(decided(
        network(3), {'layer1.1': kl(.1), 'layer1.2': kl(3.)}))
    assert list(entry) == [
        'window', 'epoch', 'iter', 'samples', 'iterations', 'criterion',
        'skip', 'layers', 'skipped', 'active', 'total', 'note',
        'step_time_before', 'step_time_after', 'steps_timed']
    assert list(entry['layers'][0]) == [
        'name', 'stage', 'index', 'kl', 'kl_std', 'bad_iterations',
        'kl_iterations', 'mapped', 'stability', 'status']


# --- by position -------------------------------------------------------------


def uniform(n, m):
    """KL of uniform weights over n entries, padded, to those over m."""
    p = np.r_[np.full(n, 1 / n), np.zeros(m - n)]
    return float(sum(x * np.log(x * m) for x in p if x))


def measured_as_uniform(layers, noise=0.):
    measured, before = {}, {}
    for layer in layers:
        if layer.active:
            if layer.stage in before:
                measured[layer.name] = kl(
                    uniform(before[layer.stage], layer.sees) + noise, .002)
            before[layer.stage] = layer.sees
    return measured


@pytest.mark.parametrize('skipped', [(), ('layer2.2', 'layer1.0')])
def test_uniform_attention_is_ranked_by_position(skipped):
    """As a detector's first window measures it: .693, .405, .288, ..."""
    layers = network(3, 6, skipped=skipped)
    decision = decided(layers, measured_as_uniform(layers, .001))
    assert decision.by_position
    assert decision_to_json(decision)['by_position'] is True
    assert decision_from_json(decision_to_json(decision)).by_position


def test_attention_that_has_learned_is_not():
    layers = network(3, 6)
    learned = measured_as_uniform(layers)
    for i, name in enumerate(learned):
        if i % 3:
            learned[name] = kl(learned[name].mean * 1.2, .002)
    assert not decided(layers, learned).by_position
    # Within the window's own noise nothing can be told apart.
    noisy = {name: x._replace(std=.5) for name, x in learned.items()}
    assert decided(layers, noisy).by_position


# --- when a verdict is not followed ------------------------------------------

FIXED = dict(type='fixed', n=2)


def test_waiting_skips_nothing_while_attention_is_uniform():
    layers = network(6)
    for rule in ('warn', 'prune'):
        decision = decided(layers, measured_as_uniform(layers), FIXED,
                           rules=Rules(uninformative=rule))
        assert decision.skipped == ['layer1.4', 'layer1.5']
        assert decision.by_position
    decision = decided(layers, measured_as_uniform(layers), FIXED,
                       rules=Rules(uninformative='wait'))
    assert not decision.skipped and decision.by_position
    assert 'near uniform' in decision.note
    learned = {f'layer1.{i}': kl(.01 * i) for i in range(1, 6)}
    decision = decided(layers, learned, FIXED,
                       rules=Rules(uninformative='wait'))
    assert decision.skipped == ['layer1.1', 'layer1.2']


def unsure():
    """layer1.1 is always the smallest; 1.2 and 1.3 take turns by step."""
    turns = np.random.default_rng(0).permutation([.2, .4] * 40).tolist()
    series = {'layer1.1': [.01] * 80, 'layer1.2': turns,
              'layer1.3': [.6 - x for x in turns], 'layer1.4': [2.] * 80}
    return {name: LayerKL(np.mean(x), np.std(x), 80, 80, 0, x)
            for name, x in series.items()}


def test_stability_is_the_share_of_resampled_windows():
    layers = network(5)
    decision = decided(layers, unsure(), FIXED)
    share = {x.name: x.stability for x in decision.layers}
    assert share['layer1.0'] is None
    assert share['layer1.1'] == 1. and share['layer1.4'] == 0.
    # Of the two in the middle one goes, by chance.
    assert share['layer1.2'] + share['layer1.3'] == pytest.approx(1)
    assert .2 < share['layer1.2'] < .8
    again = decision_from_json(
        json.loads(json.dumps(decision_to_json(decision))))
    assert {x.name: x.stability for x in again.layers} == share


def test_only_stable_layers_go():
    layers = network(5)
    decision = decided(layers, unsure(), FIXED, rules=Rules(min_stability=.9))
    outcomes = {x.name: x.outcome for x in decision.layers}
    assert decision.skipped == ['layer1.1'] and decision.note is None
    assert sorted(n for n, x in outcomes.items() if x is Outcome.UNSTABLE) in (
        ['layer1.2'], ['layer1.3'])
    only = {n: x for n, x in unsure().items() if n in ('layer1.2', 'layer1.3')}
    decision = decided(layers, only, dict(type='fixed', n=1),
                       rules=Rules(min_stability=.9))
    assert not decision.skipped and 'min_stability=0.9' in decision.note
    assert all(x.outcome.stays for x in decision.layers)


def test_nothing_is_stable_after_a_single_step():
    measured = {f'layer1.{i}': kl(.1 * i, series=[.1 * i])
                for i in range(1, 5)}
    assert decided(network(5), measured, FIXED).skipped
    decision = decided(network(5), measured, FIXED,
                       rules=Rules(min_stability=.5))
    assert not decision.skipped and 'fewer than 2 steps' in decision.note


@pytest.mark.parametrize('options, said', [
    (dict(uninformative='skip'), "uninformative='skip'.*'wait'"),
    (dict(min_stability=1.5), 'min_stability=1.5.*0 to 1'),
    (dict(min_stability='high'), "min_stability='high'"),
    (dict(min_stability=True), 'min_stability=True'),
])
def test_wrong_rules_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        ELAPruneHook(windows=[(1, 1)], **options)
