"""EBQM against a plain reading of algorithm 1, and its edges."""
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import gamma as gamma_function

from ela_mm import ebqm
from ela_mm.pruning.ebqm import beta_quantile_map

kls = st.lists(
    st.floats(1e-4, 18.4, allow_nan=False), min_size=1, max_size=40)
shapes = st.sampled_from([(2., 5.), (5., 1.), (1., 1.), (3., 2.)])


def algorithm_1(xs, gamma, alpha, beta, mu):
    """Line by line, with loops, an own quantile and an integrated density."""
    ordered = sorted(xs)
    position = gamma * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    quantile = ordered[low] + (position - low) * (ordered[high] - ordered[low])
    reach = [x for x in xs if x <= quantile * (1 + 1e-12)]
    normaliser = (gamma_function(alpha) * gamma_function(beta) /
                  gamma_function(alpha + beta))
    result, doubtful = [], False
    for x in xs:
        skip = False
        if x <= quantile * (1 + 1e-12) and max(reach) > min(reach):
            normalized = (x - min(reach)) / (max(reach) - min(reach))
            y = quad(lambda t: t**(alpha - 1) * (1 - t)**(beta - 1), 0,
                     normalized)[0] / normaliser
            doubtful |= abs(y - mu) < 1e-6
            skip = y < mu
        doubtful |= 0 < abs(x - quantile) < 1e-9
        result.append(skip)
    return result, doubtful


@settings(max_examples=150, deadline=None)
@given(kls, st.floats(0.05, 1), shapes, st.floats(0.01, 0.99))
def test_matches_a_plain_reading(kl, gamma, shape, mu):
    expected, doubtful = algorithm_1(kl, gamma, *shape, mu)
    assume(not doubtful)  # a value on the threshold may fall on either side
    assert ebqm(kl, gamma, *shape, mu).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(kls, shapes, st.randoms())
def test_order_does_not_matter(kl, shape, random):
    order = list(range(len(kl)))
    random.shuffle(order)
    skip = ebqm(kl, 0.75, *shape, 0.25)
    assert ebqm([kl[i] for i in order], 0.75, *shape,
                0.25).tolist() == skip[order].tolist()


@settings(max_examples=100, deadline=None)
@given(kls, shapes, st.integers(-8, 8))
def test_scale_does_not_matter(kl, shape, exponent):
    scaled = np.array(kl) * 2.**exponent  # exact in floating point
    assert (ebqm(scaled, 0.75, *shape, 0.25) == ebqm(kl, 0.75, *shape,
                                                     0.25)).all()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 184_000), min_size=1, max_size=40), shapes,
    st.floats(0.05, 1), st.floats(1e-3, 1e3))
def test_no_scale_matters(steps, shape, gamma, factor):
    """Any factor, where no value lies on a threshold to within rounding."""
    kl = np.array(steps) / 1e4
    quantile = np.quantile(kl, gamma)
    assume(not np.isclose(kl, quantile, rtol=1e-9).any() or gamma == 1)
    mapped = beta_quantile_map(kl, gamma, *shape)
    assume(not np.isclose(mapped, 0.25, atol=1e-9).any())
    assert (ebqm(kl * factor, gamma, *shape, 0.25) == ebqm(
        kl, gamma, *shape, 0.25)).all()


@settings(max_examples=100, deadline=None)
@given(kls, shapes, st.floats(0, 1))
def test_smaller_kl_goes_first(kl, shape, mu):
    skip = ebqm(kl, 0.75, *shape, mu)
    if skip.any():
        assert skip[np.array(kl) <= np.array(kl)[skip].max()].all()


def test_the_papers_settings_on_a_known_case():
    kl = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]  # q75 = 6
    # F_Beta(x; 2, 5) = 1 - (1 - x)^5 (1 + 5 x) for x = 0, 1/6, ...: 0, .2632
    assert ebqm(kl).tolist() == [True] + [False] * 8
    mapped = beta_quantile_map(kl)
    assert mapped[1] == pytest.approx(1 - (5 / 6)**5 * (1 + 5 / 6))
    assert mapped[6] == 1 and np.isnan(mapped[7:]).all()
    # F_Beta(x; 5, 1) = x^5 < 0.3 up to x = 0.786: 0 to 4 of 6
    assert ebqm(kl, alpha=5, beta=1, mu=0.3).tolist() == [True] * 5 + [False
                                                                       ] * 4


@pytest.mark.parametrize('kl', [[0.3], [0.3, 0.3, 0.3], [0.1, 9.0]])
def test_values_that_do_not_differ_rank_nothing(kl):
    """The last: only the smaller of two lies within the 0.75-quantile."""
    assert ebqm(kl).dtype == bool and not ebqm(kl).any()


def test_mu_zero_skips_none():
    assert not ebqm([1, 2, 3, 4, 5], mu=0).any()


@pytest.mark.parametrize('kl, message', [
    ([], 'one or more'),
    ([[1., 2.]], 'flat list'),
    ([1., float('nan'), 2.], 'number 1 is nan'),
    ([1., 2., float('inf')], 'number 2 is inf'),
])
def test_bad_values_are_named(kl, message):
    with pytest.raises(ValueError, match=message):
        ebqm(kl)


@pytest.mark.parametrize('name, value', [('gamma', 0), ('gamma', 1.2),
                                         ('alpha', 0), ('beta', -1),
                                         ('mu', -0.1), ('mu', 1.5),
                                         ('alpha', float('inf'))])
def test_bad_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=f'{name}={value}'):
        ebqm([1., 2., 3.], **{name: value})
