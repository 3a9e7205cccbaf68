"""Numbers in a sentence add up, and what has no number is explained."""
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ela_mm.analysis.plan import PlannedLayer
from ela_mm.analysis.report.plan import layers_section
from ela_mm.engine.journal.sentences import (
    dashes_sentence,
    gone_before,
    skipped_sentence,
)
from ela_mm.pruning.build import build_criterion
from ela_mm.pruning.criteria import why_none
from ela_mm.pruning.decision import Decision, LayerDecision, Outcome


def decision(outcomes, **options):
    layers = [LayerDecision(f'layer1.{i}', 1, i, outcome)
              for i, outcome in enumerate(outcomes)]
    return Decision((1, 1), 1, 4, options.pop('criterion', dict(
        type='EBQM', gamma=.75, mu=.2)), 'layer', layers, **options)


@given(st.lists(st.sampled_from(list(Outcome)), min_size=1, max_size=30),
       st.data())
def test_now_before_and_active_are_all_layers(outcomes, data):
    taken = decision(outcomes)
    names = [x.name for x in taken.layers]
    earlier, by_hand, frozen = (
        data.draw(st.lists(st.sampled_from(names), unique=True))
        for _ in range(3))
    before = gone_before(taken, earlier, by_hand, frozen)
    said = skipped_sentence(taken, before)
    head, _, others = said.partition(' attention layers active')
    now, active, total = map(int, re.findall(r'\d+', head))
    assert now + active + sum(map(int, re.findall(r'\d+', others))) == total
    assert total == len(outcomes)
    assert (' more:' in said) == (Outcome.SKIPPED_BEFORE in outcomes)


def test_what_was_out_before_says_why():
    taken = decision([Outcome.SKIPPED_BEFORE] * 5 + [
        Outcome.FIRST, Outcome.SKIPPED, Outcome.KEPT])
    before = gone_before(taken, ['layer1.0'], ['layer1.1', 'layer1.0'],
                         ['layer1.2', 'layer1.3', 'layer1.7'])
    assert skipped_sentence(taken, before) == (
        'skipped 1 more: 2 of 8 attention layers active (skipped before: 1 in '
        'earlier windows, 1 by hand, 2 in frozen stages, 1 when the training '
        'began)')
    assert skipped_sentence(decision([Outcome.SKIPPED, Outcome.FIRST])) == (
        'skipped 1: 1 of 2 attention layers active')


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()),
                min_size=1, max_size=40))
def test_kinds_of_layers_in_a_plan_are_all_that_are_active(kinds):
    layers, begun = [], False
    for i, (active, frozen, inert) in enumerate(kinds):
        inert = active and frozen and inert
        first = active and not inert and not begun
        begun = begun or first
        layers.append(PlannedLayer(f'layer1.{i}', 1, active, frozen, inert,
                                   first))
    said = layers_section(layers).text[0]
    active, total, *rest = map(int, re.findall(r'\d+', said))if any(
        x.active for x in layers) else (0, len(layers))
    assert total == len(layers)
    assert sum(rest) == active == sum(x.active for x in layers)


def test_dashes_are_explained_where_there_are_any():
    taken = decision([Outcome.FIRST, Outcome.SKIPPED, Outcome.KEPT])
    for layer, mapped in zip(taken.layers[1:], (.1, None)):
        layer.kl, layer.mapped, layer.stability = .5, mapped, 1.
    said = dashes_sentence(taken)
    assert "KL: a stage's first active layer has none before it" in said
    assert 'above the 0.75-quantile' in said and 'stability' not in said
    taken.criterion = dict(type='own', gamma=[1, 2])  # of any kind
    assert 'mapped: out of reach, and kept' in dashes_sentence(taken)
    taken.layers[1].stability = None
    assert 'there are no two steps to resample' in dashes_sentence(taken)
    taken.layers[1].mapped = None
    assert 'mapped: nothing was ranked' in dashes_sentence(taken)
    for layer in taken.layers:
        layer.kl, layer.mapped, layer.stability = 1., 1., 1.
    assert dashes_sentence(taken) is None


@pytest.mark.parametrize('kl, parameters, reason', [
    # The quantile 0.75 of two lies below the larger.
    ([.1, .9], dict(gamma=.75), r'of 2 candidates one is within reach \(gamma='
     r'0.75\): there is nothing to rank it with'),
    ([.1, .2, .9], dict(gamma=.3), 'of 3 candidates one is within reach'),
    ([.5, .5, .9], dict(gamma=.75), 'the 2 of 3 candidates within reach .* do '
     'not differ'),
    ([.5, .5], dict(gamma=1.), 'the 2 of 2 candidates within reach'),
    ([.1, .5, .9], dict(mu=0.), 'no layer is mapped below mu=0: the lowest has '
     '0'),
    ([.1, .5, .9], dict(type='fixed', n=0), 'found no layer redundant'),
])
def test_why_none_is_skipped_is_the_true_reason(kl, parameters, reason):
    criterion = build_criterion({'type': 'EBQM', **parameters})
    skip, scores = criterion(kl)
    assert not skip.any()
    assert re.search(reason, why_none(criterion.config, kl, scores))
