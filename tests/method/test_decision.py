"""The decision at a window's end: pure, typed, and the same once read back."""
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from ela_mm import ELAPruneHook
from ela_mm.engine.journal.journal import Journal
from ela_mm.engine.journal.record import (
    decision_from_json,
    decision_to_json,
    read_record,
)
from ela_mm.errors import UsageError
from ela_mm.models.backbones.stages import AttentionLayerInfo
from ela_mm.pruning import LayerKL, Outcome, decide, ebqm
from ela_mm.pruning.build import build_criterion
from ela_mm.pruning.decision import Moment
from ela_mm.pruning.doubt import doubt_of
from ela_mm.pruning.kl import REDUNDANCY
from ela_mm.pruning.trust import Rules, noise_of
from ela_mm.pruning.windows import Windows

MOMENT = Moment((1, 3), 3, 24)
CONFIG = dict(type='EBQM', gamma=.75, alpha=5., beta=1., mu=.3)
FIXED = dict(type='fixed', n=2)


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


def kl(mean, std=.01, bad=0, series=(), uniform=math.nan):
    return LayerKL(mean, std, 8, 4, bad, list(series), uniform=uniform)


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
     'the 2 of 2 candidates within reach (gamma=0.75) do not differ'),
])
def test_what_cannot_be_ranked_skips_nothing(measured, kwargs, note):
    decision = decided(network(3), measured, **kwargs)
    assert not decision.skipped and note in decision.note


def test_kept_without_a_mapped_value_says_why():
    """Of two candidates one is in reach: with nothing to rank it with."""
    measured = {f'layer1.{i}': kl(.1 * i) for i in range(1, 5)}
    taken = decided(network(5), measured)
    why = {x.name: taken.why_unmapped(x) for x in taken.layers}
    assert why == {**dict.fromkeys(why), 'layer1.4': 'out of reach'}
    taken = decided(network(3), {f'layer1.{i}': kl(.1 * i) for i in (1, 2)})
    why = {x.name: taken.why_unmapped(x) for x in taken.layers}
    assert why == {'layer1.0': None, 'layer1.1': 'not ranked',
                   'layer1.2': 'not ranked'}


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
        'redundancy', 'skip', 'layers', 'skipped', 'active', 'total', 'note',
        'step_time_before', 'step_time_after', 'steps_timed']
    assert list(entry['layers'][0]) == [
        'name', 'stage', 'index', 'kl', 'kl_std', 'bad_iterations',
        'kl_iterations', 'excess', 'conditional', 'conditional_std',
        'conditional_iterations', 'mapped', 'stability', 'status']


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
                own = uniform(before[layer.stage], layer.sees)
                measured[layer.name] = kl(own + noise, .002, uniform=own)
            before[layer.stage] = layer.sees
    return measured


@pytest.mark.parametrize('skipped', [(), ('layer2.2', 'layer1.0')])
def test_uniform_attention_is_ranked_by_position(skipped):
    """As a detector's first window measures it: .693, .405, .288, ..."""
    layers = network(3, 6, skipped=skipped)
    decision = decided(layers, measured_as_uniform(layers, .001))
    assert decision.by_position
    assert ('near uniform: this ranking is by position in the stage (rank '
            'correlation with uniform weights 1.00)') in doubt_of(decision)
    assert decision_to_json(decision)['by_position'] is True
    assert decision_from_json(decision_to_json(decision)).by_position


def test_attention_that_has_learned_is_not():
    layers = network(3, 6)
    learned = measured_as_uniform(layers)
    for i, name in enumerate(learned):
        if i % 3:
            learned[name] = learned[name]._replace(
                mean=learned[name].mean * (3 - i / 3), std=.002)
    decision = decided(layers, learned)
    assert not decision.by_position and doubt_of(decision) is None
    # Within the window's own noise nothing can be told apart.
    noisy = {name: x._replace(std=2.) for name, x in learned.items()}
    assert decided(layers, noisy).by_position


def ranked(order, size=.3):
    """KL some way above uniform weights', which are in this order by size."""
    layers = network(len(order) + 1)
    uniform = list(measured_as_uniform(layers).items())
    means = sorted((1 + size) * x.mean for _, x in uniform)
    measured = {name: kl(means[i], .001, uniform=x.uniform)
                for (name, x), i in zip(uniform, order)}
    return layers, measured


@pytest.mark.parametrize('order, says', [
    (range(8, -1, -1), True),  # far from uniform, all in position's order
    ([8, 7, 5, 6, 4, 1, 2, 3, 0], True),
    ([8, 3, 5, 6, 1, 4, 2, 7, 0], False),
    (range(9), False),
    (range(3, -1, -1), False)])  # four layers may do so by chance
def test_a_ranking_by_position_is_known_by_its_ranks(order, says):
    """Spearman's by hand; first weights of narrow networks are not uniform."""
    order = list(order)
    layers, measured = ranked(order)
    n = len(order)
    squares = sum((r - x)**2 for r, x in zip(range(n - 1, -1, -1), order))
    rank = 1 - 6 * squares / (n * (n * n - 1))
    assert (rank >= .8 and n > 4) is says
    decision = decided(layers, measured, FIXED)
    assert decision.by_position is says and not decision.as_drawn
    doubt = doubt_of(decision)
    if says:
        assert doubt == ('this ranking is by position in the stage (rank '
                         f'correlation with uniform weights {rank:.2f})')
        # Where the excess ranks them, KL's order is of no account.
        assert not decided(layers, measured, FIXED,
                           redundancy='excess').by_position
    else:
        assert doubt is None
    waits = decided(layers, measured, FIXED, rules=Rules(uninformative='wait'))
    assert bool(waits.skipped) is not says


def test_attention_that_is_as_it_was_drawn():
    order = [8, 3, 5, 6, 1, 4, 2, 7, 0]
    layers, measured = ranked(order)
    first = {name: (x.mean * 1.03, x.uniform) for name, x in measured.items()}
    for redundancy in REDUNDANCY:
        decision = decided(layers, with_parts(measured), FIXED, first=first,
                           redundancy=redundancy)
        assert decision.as_drawn and not decision.by_position
        assert 'as it was drawn' in doubt_of(decision)
        assert 'position' not in doubt_of(decision)
    again = decision_from_json(json.loads(json.dumps(
        decision_to_json(decision))))
    assert again == decision and again.as_drawn
    waits = decided(layers, measured, FIXED, first=first,
                    rules=Rules(uninformative='wait'))
    assert not waits.skipped and 'as it was drawn' in waits.note
    # It has moved since, but not beyond the window's own noise.
    moved = {name: (kl * 1.2, uniform) for name, (kl, uniform) in first.items()}
    assert not decided(layers, measured, first=moved).as_drawn
    noisy = {name: x._replace(std=1.) for name, x in measured.items()}
    assert decided(layers, noisy, first=moved).as_drawn
    # Layers that had others before them then are not compared.
    pruned = {name: (kl, uniform + .1) for name, (kl, uniform) in first.items()}
    assert not decided(layers, measured, first=pruned).as_drawn
    assert not decided(layers, measured).as_drawn


def test_a_layer_that_learns_within_a_window_has_not_stayed():
    """Its drift is no noise: the mean lies within one std of where it began."""
    order = [8, 3, 5, 6, 1, 4, 2, 7, 0]
    layers, measured = ranked(order)
    steps = np.arange(60) / 59
    first, learned = {}, {}
    for name, x in measured.items():
        series = x.mean + 5 * steps**4  # late, as a digits training had it
        mean, std = series.mean(), series.std()
        assert mean - x.mean < std
        first[name] = x.mean, x.uniform
        learned[name] = x._replace(mean=mean, std=std, series=list(series))
    decision = decided(layers, learned, FIXED, first=first)
    assert not decision.as_drawn and doubt_of(decision) is None
    uniform = {name: x._replace(uniform=first[name][0])
               for name, x in learned.items()}
    assert not decided(layers, uniform, FIXED, redundancy='excess').by_position
    # The same values in any other order are noise, and hide it.
    for name, x in learned.items():
        shuffled = np.random.default_rng(0).permutation(x.series)
        learned[name] = x._replace(series=list(shuffled))
    assert decided(layers, learned, FIXED, first=first).as_drawn


def test_noise_is_that_of_a_series_without_its_trend():
    noise = np.random.default_rng(0).normal(0, .3, 4000)
    trend = np.linspace(0, 50, 4000)
    assert noise_of(9., list(noise)) == pytest.approx(.3, rel=.05)
    assert noise_of(9., list(noise + trend)) == pytest.approx(.3, rel=.05)
    assert noise_of(.1, list(noise)) == .1  # at most the std
    for unknown in ([], [1.], [1., None, 2.], [1., math.nan, 2.]):
        assert noise_of(.7, unknown) == .7


def with_parts(measured):
    return {name: x._replace(conditional=.1 * i, conditional_std=.01)
            for i, (name, x) in enumerate(measured.items())}


def test_first_weights_may_rank_by_position():
    layers, measured = ranked(range(8, -1, -1))
    first = {name: (x.mean, x.uniform) for name, x in measured.items()}
    assert doubt_of(decided(layers, measured, first=first)).endswith(
        'random first weights and of position (rank correlation with uniform '
        'weights 1.00)')


def test_old_records_say_what_they_knew():
    entry = decision_to_json(decided(network(6), measured_as_uniform(network(6))))
    assert entry['by_position'] and 'as_drawn' not in entry
    for layer in entry['layers']:
        for name in ('excess', 'conditional', 'conditional_std'):
            del layer[name]
    assert doubt_of(decision_from_json(entry)) == (
        'attention is still near uniform in most layers: these rank by '
        'position in the stage')


# --- the measure that decides ------------------------------------------------


def split():
    """By KL 1.1 is the smallest, by its excess 1.2, by its first part 1.3."""
    rows = {'layer1.1': (.5, .9, .4), 'layer1.2': (.6, 1.6, .3),
            'layer1.3': (.7, .8, .2), 'layer1.4': (3., .1, 2.)}
    return {
        name: LayerKL(mean, .1, 8, 4, 0, [mean - .1, mean + .1], [], 2, uniform,
                      first, .2, [first - .2, first + .2])
        for name, (mean, uniform, first) in rows.items()
    }


@pytest.mark.parametrize('redundancy, goes, values', [
    ('paper', 'layer1.1', [.5, .6, .7, 3.]),
    ('excess', 'layer1.2', [-.4, -1., -.1, 2.9]),
    ('conditional', 'layer1.3', [.4, .3, .2, 2.])])
def test_the_criterion_ranks_by_the_measure_that_was_chosen(
        redundancy, goes, values):
    layers = network(5)
    decision = decided(layers, split(), dict(type='fixed', n=1),
                       redundancy=redundancy)
    assert decision.skipped == [goes] and decision.redundancy == redundancy
    # Without a threshold of its own, what it compares is the measure.
    assert [x.mapped for x in decision.layers[1:]] == pytest.approx(values)
    assert [x.kl for x in decision.layers[1:]] == [.5, .6, .7, 3.]
    assert [x.excess for x in decision.layers[1:]] == pytest.approx(
        [-.4, -1., -.1, 2.9])
    assert [x.conditional for x in decision.layers[1:]] == [.4, .3, .2, 2.]
    chosen = [x.measured(redundancy) for x in decision.layers]
    assert [x.mean for x in chosen] == pytest.approx([None, *values])
    std = .2 if redundancy == 'conditional' else .1
    assert {x.std for x in chosen[1:]} == {std}
    for mean, x in zip(values, chosen[1:]):
        assert x.iterations == pytest.approx([mean - std, mean + std])
    again = decision_from_json(
        json.loads(json.dumps(decision_to_json(decision))))
    assert again == decision


@pytest.mark.parametrize('redundancy', ['excess', 'conditional'])
def test_stability_is_that_of_the_measure(redundancy):
    steady = unsure()['layer1.1'].series
    turns, mirrored = (unsure()[f'layer1.{i}'].series for i in (2, 3))
    measured = {
        name: LayerKL(.5, .1, 80, 80, 0, list(shown), [], 80, .5, np.mean(first),
                      .1, list(first))
        for name, shown, first in (
            ('layer1.1', turns, steady if redundancy == 'conditional' else turns),
            ('layer1.2', mirrored, turns), ('layer1.3', [9.] * 80, [9.] * 80))
    }
    decision = decided(network(4), measured, dict(type='fixed', n=1),
                       redundancy=redundancy)
    share = {x.name: x.stability for x in decision.layers}
    if redundancy == 'conditional':  # in KL itself they take turns
        assert share['layer1.1'] == 1.
    else:
        assert .2 < share['layer1.1'] < .8


def test_a_measure_that_is_not_known_skips_nothing():
    """Of a window that an earlier version has begun."""
    old = {f'layer1.{i}': kl(.1 * i) for i in range(1, 5)}
    for redundancy in ('excess', 'conditional'):
        decision = decided(network(5), old, FIXED, redundancy=redundancy)
        assert not decision.skipped and 'earlier version' in decision.note
        assert redundancy in decision.note
        assert decision.layers[1].measured(redundancy).mean is None
    assert decided(network(5), old, FIXED).skipped


def test_records_of_earlier_versions_know_kl_alone():
    entry = decision_to_json(decided(network(5), split(), FIXED))
    del entry['redundancy']
    for layer in entry['layers']:
        for name in ('excess', 'conditional', 'conditional_std',
                     'conditional_iterations'):
            del layer[name]
    decision = decision_from_json(entry)
    assert decision.redundancy == 'paper' and decision.skipped
    assert decision.layers[1].measured('paper').mean == .5
    for redundancy in ('excess', 'conditional'):
        mean, std, series = decision.layers[1].measured(redundancy)
        assert mean is std is None and not series


# --- the ceiling -------------------------------------------------------------


def test_layers_that_sit_at_the_ceiling_say_nothing():
    ceiling = -math.log(1e-8)
    values = [ceiling - .001 * i for i in range(1, 6)]
    measured = {f'layer1.{i}': kl(x) for i, x in enumerate(values, start=1)}
    decision = decided(network(6), measured, FIXED)
    assert decision.saturated and not decision.by_position
    assert decision.skipped == ['layer1.4', 'layer1.5']
    assert decision_from_json(decision_to_json(decision)).saturated
    waits = decided(network(6), measured, FIXED,
                    rules=Rules(uninformative='wait'))
    assert not waits.skipped and 'ceiling' in waits.note
    # Two neighbours with all weight on the same layer: 0, as saturated.
    measured.update({'layer1.1': kl(0.), 'layer1.2': kl(-1e-7)})
    measured['layer1.3'] = kl(2.)
    assert decided(network(6), measured, FIXED).saturated
    # Most can be told apart.
    measured.update({'layer1.1': kl(.01), 'layer1.2': kl(1e-4)})
    decision = decided(network(6), measured, FIXED,
                       rules=Rules(uninformative='wait'))
    assert not decision.saturated and decision.skipped
    assert 'saturated' not in decision_to_json(decision)


# --- when a verdict is not followed ------------------------------------------


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
    assert 'by position' in decision.note
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
    # At least that share: one that is just reached is enough.
    reached = next(x.stability for x in decision.layers
                   if x.outcome is Outcome.UNSTABLE)
    assert len(decided(layers, unsure(), FIXED,
                       rules=Rules(min_stability=reached)).skipped) == 2
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
    (dict(redundancy='kl'), "redundancy='kl'.*'excess'"),
    (dict(redundancy=['paper']), r"redundancy=\['paper'\]"),
])
def test_wrong_rules_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        ELAPruneHook(windows=[(1, 1)], **options)


# --- what is said of it ------------------------------------------------------


def told(decision, tmp_path, **kwargs):
    """Log lines and scalars of a decision."""
    said, sent = [], {}
    runner = SimpleNamespace(
        logger=SimpleNamespace(info=said.append, warning=said.append),
        visualizer=SimpleNamespace(_vis_backends=dict(any=SimpleNamespace(
            add_scalars=lambda scalars, step: sent.update(scalars)))),
        work_dir=str(tmp_path))
    journal = Journal(Windows([(1, 3)]), CONFIG, 'layer', picture=False,
                      **kwargs)
    journal.backbone = SimpleNamespace(
        attention_layers=network(5), is_frozen=lambda layer: False)
    journal.tell(runner, decision)
    return '\n'.join(said), sent


@pytest.mark.parametrize('redundancy, name', [
    ('paper', None), ('excess', 'excess'), ('conditional', 'conditional')])
def test_table_and_scalars_have_the_measure(tmp_path, redundancy, name):
    decision = decided(network(5), split(), FIXED, redundancy=redundancy)
    said, sent = told(decision, tmp_path, redundancy=redundancy)
    row = next(x for x in said.splitlines() if 'layer1.2' in x)
    assert row.split()[3::2][:5] == ['1', '0.6000', '-1.0000', '0.3000',
                                     f'{decision.layers[2].mapped:.4f}']
    assert sent['ela/kl/layer1.2'] == .6
    others = {key.split('/')[1] for key in sent} - {'kl', 'active'}
    assert others == ({name} if name else set())
    if name:
        assert sent[f'ela/{name}/layer1.2'] == decision.layers[2].mapped
        assert f'}} on {name}:' in said
    record = read_record(tmp_path)
    assert record['redundancy'] == redundancy
    assert record['decisions'][0]['redundancy'] == redundancy


@pytest.mark.parametrize('redundancy, words', [
    ('paper', 'rank by position'),
    ('excess', 'this ranking is of what is close to 0')])
def test_what_says_nothing_is_said(tmp_path, redundancy, words):
    layers = network(5)
    uniform = {name: x._replace(uniform=x.mean, conditional=0.)
               for name, x in measured_as_uniform(layers, .001).items()}
    decision = decided(layers, uniform, FIXED, redundancy=redundancy)
    assert words in told(decision, tmp_path, redundancy=redundancy)[0]
    assert words not in told(decision, tmp_path, warns=False)[0]
    ceiling = {name: kl(18.4) for name in uniform}
    said, _ = told(decided(layers, ceiling, FIXED), tmp_path)
    assert 'saturated' in said and 'ceiling of 18.4' in said
    assert 'by position' not in said
