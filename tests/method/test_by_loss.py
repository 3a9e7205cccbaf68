"""The criterion that asks the network, on networks made of a table."""
import numpy as np
import pytest

from ela_mm.errors import UsageError
from ela_mm.pruning.build import build_criterion

KL = [.5, .1, .2, .3]


class Table:
    """A network in which some pairs of layers stand in for each other."""

    def __init__(self, costs, pairs=None):
        self.candidates = [f'layer1.{i}' for i in range(1, len(costs) + 1)]
        self.costs = dict(zip(self.candidates, costs))
        self.pairs = pairs or {}
        self.asked = []

    def added_loss(self, names):
        self.asked.append(tuple(names))
        return sum(self.costs[n] for n in names) + sum(
            more for pair, more in self.pairs.items() if set(pair) <= set(names))


def skipped(network, **parameters):
    criterion = build_criterion(dict(type='ablation', **parameters))
    skip, score = criterion(KL, network)
    assert score.tolist() == [network.costs[n] for n in network.candidates]
    return [name for name, gone in zip(network.candidates, skip) if gone]


@pytest.mark.parametrize('parameters, expected', [
    (dict(n=0), []), (dict(n=1), ['layer1.3']),
    (dict(n=2), ['layer1.2', 'layer1.3']), (dict(n=9), 'all'),
    (dict(budget=0.), ['layer1.3']), (dict(budget=.05), ['layer1.2', 'layer1.3']),
    (dict(budget=.34), ['layer1.2', 'layer1.3', 'layer1.4']),
    (dict(budget=100.), 'all'), (dict(n=1, budget=100.), ['layer1.3']),
    (dict(n=3, budget=.05), ['layer1.2', 'layer1.3']),
])
def test_the_cheapest_go_as_long_as_the_budget_lasts(parameters, expected):
    network = Table([.9, .04, -.01, .3])
    assert skipped(network, **parameters) == (
        network.candidates if expected == 'all' else expected)


def test_the_budget_is_of_all_together():
    """Two that stand in for each other cost little one by one."""
    pair = {('layer1.2', 'layer1.3'): 1.}
    assert skipped(Table([.9, .02, .01, .03], pair), budget=.5) == ['layer1.3']
    assert skipped(Table([.9, .02, .01, .03]), budget=.5) == [
        'layer1.2', 'layer1.3', 'layer1.4']
    # Without a budget nobody asks what they cost together.
    network = Table([.9, .02, .01, .03], pair)
    assert skipped(network, n=2) == ['layer1.2', 'layer1.3']
    assert max(map(len, network.asked)) == 1


def test_layers_whose_loss_is_not_finite_stay():
    criterion = build_criterion(dict(type='ablation', n=4))
    skip, _ = criterion(KL, Table([np.nan, .1, np.inf, .2]))
    assert skip.tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match='not finite'):
        criterion(KL, Table([np.nan] * 4))


@pytest.mark.parametrize('parameters, said', [
    ({}, 'expected n .*, budget'), (dict(n=-1), 'n=-1'), (dict(n=1.5), 'n=1.5'),
    (dict(n=True), 'n=True'), (dict(budget=-.1), 'budget=-0.1'),
    (dict(budget='low'), "budget='low'"), (dict(budget=np.inf), 'budget=inf'),
    (dict(n=1, images=0), 'images=0'),
    (dict(mu=.2), 'it takes n, budget, images'),
    (dict(n=1, network=3), 'network'),
])
def test_wrong_limits_are_refused_before_training(parameters, said):
    with pytest.raises(UsageError, match=f'criterion ablation: .*{said}'):
        build_criterion(dict(type='ablation', **parameters))


def test_without_a_network_it_says_what_to_do():
    criterion = build_criterion(dict(type='ablation', n=1))
    assert criterion.asks_network and criterion.images == 256
    assert not build_criterion().asks_network and not build_criterion().images
    with pytest.raises(UsageError, match='analyze.py ablate CONFIG CHECKPOINT'):
        criterion(KL)


def test_a_criterion_of_ones_own_may_ask():

    def harmful(kl, network, images=32):
        """Skip what does harm."""
        return np.array([network.added_loss([name]) < 0
                         for name in network.candidates])

    criterion = build_criterion(dict(type=harmful))
    assert criterion.images == 32 and criterion.config == dict(
        type='harmful', images=32)
    skip, _ = criterion(KL, Table([.9, .04, -.01, .3]))
    assert skip.tolist() == [False, False, True, False]
