import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from ela_mm import adjacent_kl
from ela_mm.hosts.mmdet import ELAResNet
from ela_mm.pruning import KLStatistics
from ela_mm.pruning.kl import redundancy_parts
from ela_mm.pruning.trust import is_by_position

EPS = 1e-8


def weights(*shape):
    return torch.rand(*shape).mul(6).softmax(-1)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 4),
    heads=st.integers(1, 4),
    n=st.integers(1, 8),
    more=st.integers(0, 4))
def test_matches_scipy(batch, heads, n, more):
    prev, curr = weights(batch, heads, n), weights(batch, heads, n + more)
    padded = np.pad(prev.numpy().astype(float), [(0, 0), (0, 0), (0, more)],
                    constant_values=EPS)
    # entropy() normalises; the padding's mass of 1e-8 is below the tolerance.
    expected = entropy(padded, curr.numpy().astype(float), axis=-1).mean()
    assert adjacent_kl(prev, curr).item() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 36), more=st.integers(0, 35), sharpness=st.floats(0, 60))
def test_never_negative_beyond_rounding(n, more, sharpness):
    prev = (torch.randn(2, 2, n) * sharpness).softmax(-1)
    curr = (torch.randn(2, 2, n + more) * sharpness).softmax(-1)
    kl = adjacent_kl(prev, curr).item()
    assert -1e-6 <= kl <= -np.log(EPS) + 1e-3


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 12), more=st.integers(0, 4), sharpness=st.floats(0, 60))
def test_parts_are_those_of_equation_11(n, more, sharpness):
    prev = (torch.randn(3, 2, n) * sharpness).softmax(-1)
    curr = (torch.randn(3, 2, n + more) * sharpness).softmax(-1)
    parts = redundancy_parts(prev, curr)
    p, p_next = prev.double().numpy(), curr.double().numpy().clip(EPS)
    # entropy() normalises both.
    first = entropy(p, p_next[..., :n], axis=-1).mean()
    assert parts.conditional.item() == pytest.approx(first, abs=2e-5)
    assert parts.own_share.item() == pytest.approx(
        curr[..., n:].sum(-1).mean().item(), abs=1e-6)
    rest = -np.log(p_next[..., :n].sum(-1)).mean()
    assert parts.kl.item() == pytest.approx(first + rest, abs=2e-5)
    assert parts.excess.item() == pytest.approx(
        parts.kl.item() - np.log((n + more) / n), abs=1e-5)


def test_a_layer_that_has_learned_nothing_has_no_excess_and_no_first_part():
    uniform = torch.full((2, 3, 5), 1 / 5), torch.full((2, 3, 7), 1 / 7)
    parts = redundancy_parts(*uniform)  # two of them new, one that is skipped
    assert parts.kl.item() == pytest.approx(np.log(7 / 5), abs=1e-6)
    assert parts.excess.item() == pytest.approx(0, abs=1e-6)
    assert parts.conditional.item() == pytest.approx(0, abs=1e-6)
    assert parts.own_share.item() == pytest.approx(2 / 7)


def test_a_layer_that_sees_itself_alone_tells_nothing_of_the_others():
    prev, curr = torch.tensor([[[.75, .25]]]), torch.tensor([[[0., 0., 1.]]])
    parts = redundancy_parts(prev, curr)
    assert parts.kl.item() == pytest.approx(-np.log(EPS), abs=1)
    # What remains is as far from uniform as P itself.
    assert parts.conditional.item() == pytest.approx(
        entropy([.75, .25], [.5, .5]), abs=1e-5)


def test_equal_weights_have_none_and_disjoint_ones_reach_the_ceiling():
    p = weights(2, 3, 4)
    assert adjacent_kl(p, p).item() == pytest.approx(0, abs=1e-6)
    first, second = torch.eye(2).view(2, 1, 1, 2)
    assert adjacent_kl(first, second).item() == pytest.approx(-np.log(EPS))


def test_is_a_float32_scalar_without_a_graph():
    prev = weights(2, 2, 3).half().requires_grad_()
    kl = adjacent_kl(prev, weights(2, 2, 4).half())
    assert kl.shape == () and kl.dtype == torch.float32
    assert not kl.requires_grad


@pytest.mark.parametrize('prev, curr', [((2, 2, 4), (2, 2, 3)),
                                        ((2, 2, 3), (2, 3, 3)),
                                        ((2, 3), (2, 3))])
def test_wrong_shapes_are_named(prev, curr):
    with pytest.raises(ValueError, match=r'\(B, h, n\)'):
        adjacent_kl(torch.rand(prev), torch.rand(curr))


def test_statistics_count_every_sample_once():
    """A short last batch weighs by its samples."""
    prev, curr = weights(10, 2, 3), weights(10, 2, 4)
    statistics = KLStatistics()
    for part in (slice(0, 8), slice(8, 10)):
        statistics.update('layer1.1', prev[part], curr[part])
    reduced = statistics.reduce(['layer1.0', 'layer1.1'])['layer1.1']
    expected = adjacent_kl(prev, curr).item()
    assert reduced.mean == pytest.approx(expected, rel=1e-5)
    assert reduced.samples == 10


def test_statistics_go_on_from_their_state():
    whole, first, second = KLStatistics(), KLStatistics(), KLStatistics()
    for i in range(4):
        prev, curr = weights(2, 2, 3), weights(2, 2, 4)
        whole.update('layer1.1', prev, curr)
        (first if i < 2 else second).update('layer1.1', prev, curr)
        if i == 1:
            second.load_state_dict(first.state_dict(), 'cpu')
    assert second.reduce(['layer1.1']) == whole.reduce(['layer1.1'])
    assert whole.reduce(['layer1.1'])['layer1.1'].std > 0


def test_layers_that_nobody_measured_are_left_out():
    assert KLStatistics().reduce(['layer1.0', 'layer1.1']) == {}
    assert KLStatistics().reduce([]) == {}


# --- single iterations -------------------------------------------------------


def measured(statistics):
    return statistics.reduce(['layer1.1'])['layer1.1']


def test_single_iterations_are_kept_in_order():
    statistics, expected = KLStatistics(), []
    for batch in (4, 4, 2):
        prev, curr = weights(batch, 2, 3), weights(batch, 2, 4)
        statistics.update('layer1.1', prev, curr)
        expected.append(adjacent_kl(prev, curr).item())
    assert measured(statistics).series == pytest.approx(expected, rel=1e-12)
    assert measured(statistics).iterations == 3
    assert measured(statistics).bad_iterations == 0


@pytest.mark.parametrize('iterations', [7, 8, 9, 15, 16, 17, 33, 100])
def test_many_iterations_are_thinned_evenly(monkeypatch, iterations):
    monkeypatch.setattr('ela_mm.pruning.layer_kl.ITERATIONS_KEPT', 8)
    statistics, expected, firsts = KLStatistics(), [], []
    for i in range(iterations):
        if i == iterations // 2:  # an interruption changes nothing
            state = statistics.state_dict()
            statistics = KLStatistics()
            statistics.load_state_dict(state, 'cpu')
        prev, curr = weights(2, 2, 3), weights(2, 2, 4)
        statistics.update('layer1.1', prev, curr)
        expected.append(adjacent_kl(prev, curr).item())
        # entropy() normalises.
        firsts.append(entropy(prev, curr[..., :3], axis=-1).mean())
    stride = 1
    while iterations > 8 * stride:
        stride *= 2
    kl = measured(statistics)
    assert kl.series == pytest.approx(expected[::stride], rel=1e-12)
    assert len(kl.series) <= 8 and kl.iterations == iterations
    assert kl.mean == pytest.approx(np.mean(expected))  # of all of them
    assert kl.conditional_series == pytest.approx(firsts[::stride], abs=1e-5)
    assert kl.conditional == pytest.approx(np.mean(firsts), abs=1e-5)
    assert kl.conditional_std == pytest.approx(np.std(firsts), abs=1e-4)


def test_bad_iterations_are_counted():
    statistics = KLStatistics()
    for i in range(4):
        curr = weights(2, 2, 4)
        if i == 2:
            curr[1, 0, 0] = float('nan')
        statistics.update('layer1.1', weights(2, 2, 3), curr)
    kl = measured(statistics)
    assert (kl.iterations, kl.bad_iterations, kl.samples) == (4, 1, 8)
    assert np.isnan(kl.mean) and np.isnan(kl.std)
    assert np.isnan(kl.series).tolist() == [False, False, True, False]


def test_sums_of_older_checkpoints_are_taken_up():
    statistics = KLStatistics()
    statistics.load_state_dict(
        {'layer1.1': torch.tensor([6., 12., 4.], dtype=torch.float64)}, 'cpu')
    kl = measured(statistics)
    assert (kl.mean, kl.samples, kl.bad_iterations) == (1.5, 4, 0)
    statistics.update('layer1.1', weights(2, 2, 3), weights(2, 2, 4))
    assert measured(statistics).samples == 6
    assert len(measured(statistics).series) == 1


def test_states_without_a_first_part_are_taken_up():
    """As the last version saved them: what it did not measure is unknown."""
    statistics = KLStatistics()
    values = torch.tensor([2., 4.], dtype=torch.float64)
    statistics.load_state_dict({'layer1.1': dict(
        sums=torch.tensor([6., 10., 0.], dtype=torch.float64), samples=4,
        iterations=2, seen=2, values=values, batches=[2, 2])}, 'cpu')
    kl = measured(statistics)
    assert (kl.mean, kl.std, kl.series) == (1.5, .5, [1., 2.])
    assert np.isnan([kl.uniform, kl.excess, kl.conditional,
                     *kl.conditional_series]).all()
    prev, curr = weights(2, 2, 3), weights(2, 2, 4)
    statistics.update('layer1.1', prev, curr)
    kl = measured(statistics)
    assert kl.mean == pytest.approx(
        (6 + 2 * adjacent_kl(prev, curr).item()) / 6)
    assert kl.excess == pytest.approx(kl.mean - np.log(4 / 3))
    # Of a window that nobody has seen whole.
    assert np.isnan(kl.conditional) and np.isfinite(kl.conditional_series[-1])


# --- the measures that a criterion may rank by -------------------------------


@pytest.mark.parametrize('n, m', [(2, 3), (2, 5)])
def test_measures_of_a_window(n, m):
    """m - n > 1 where layers that are skipped stay visible."""
    statistics, excess, first = KLStatistics(), [], []
    for batch in (3, 3, 1):
        prev, curr = weights(batch, 2, n), weights(batch, 2, m)
        statistics.update('layer1.1', prev, curr)
        p, q = prev.numpy(), curr[..., :n].numpy()
        first.append(entropy(p, q, axis=-1).mean())
        excess.append((p * np.log(p / q)).sum(-1).mean() - np.log(m / n))
    kl = measured(statistics)
    assert kl.by('paper') == kl
    for name, expected in (('excess', excess), ('conditional', first)):
        chosen = kl.by(name)
        assert chosen.series == pytest.approx(expected, abs=2e-6)
        assert chosen.mean == pytest.approx(
            np.average(expected, weights=[3, 3, 1]), abs=2e-6)
        assert chosen.std == pytest.approx(np.sqrt(np.cov(
            expected, fweights=[3, 3, 1], ddof=0)), abs=1e-5)
        assert (chosen.samples, chosen.weights) == (7, [3, 3, 1])


def test_where_one_layer_was_seen_there_is_nothing_to_compare():
    """Not even rounding, which a criterion would stretch to a ranking."""
    for seed in range(5):
        curr = torch.rand(3, 2, 2, generator=torch.manual_seed(seed))
        parts = redundancy_parts(torch.ones(3, 2, 1), curr.softmax(-1))
        assert parts.conditional.item() == 0. < parts.kl.item()


def test_layers_that_are_skipped_but_seen_count_as_new():
    """In a network whose weights are uniform, whatever is skipped."""
    net = ELAResNet(34, base_channels=16).eval()
    for layer in net.attention_layers:
        torch.nn.init.zeros_(layer.module.query.weight)
    net.skip_layers(['layer2.1', 'layer3.2', 'layer3.3'], 'retrieval')
    net.skip_layers(['layer3.1'])
    statistics = KLStatistics()
    net.observe(statistics.update)
    with torch.no_grad():
        net(torch.randn(2, 3, 32, 32))
    found = statistics.reduce([x.name for x in net.attention_layers])
    sizes = {'layer2.2': 3, 'layer2.3': 4 / 3, 'layer3.4': 4, 'layer3.5': 5 / 4}
    for name, ratio in sizes.items():
        assert found[name].mean == pytest.approx(np.log(ratio), abs=1e-5)
        assert found[name].excess == pytest.approx(0, abs=1e-5)
        assert found[name].conditional == pytest.approx(0, abs=1e-5)
    assert is_by_position(found)
