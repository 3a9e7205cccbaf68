"""The criteria of tables 4, 6 and 7 against plain readings of them."""
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad

from ela_mm import ELAPruneHook
from ela_mm.pruning import CRITERIA
from ela_mm.pruning.build import build_criterion

KL = [0.9, 0.1, 2.5, 0.3, 0.2, 0.25, 1.4, 7.0]
# What judges numbers alone; test_by_loss.py has the one that asks the network.
OF_NUMBERS = [name for name in CRITERIA if name != 'ablation']
kls = st.lists(
    st.floats(1e-3, 18.4), min_size=3, max_size=30, unique_by=lambda x: round(
        x, 3))


def decide(name, kl, **parameters):
    return build_criterion(dict(type=name, **parameters))(kl)


def in_reach(kl, gamma=0.75):
    """S of algorithm 1, and its values normalised, with loops."""
    quantile = np.percentile(kl, 100 * gamma)
    reach = [x for x in kl if x <= quantile]
    low, high = min(reach), max(reach)
    return [(x - low) / (high - low) if x <= quantile else None for x in kl]


@pytest.mark.parametrize('name', OF_NUMBERS)
@settings(max_examples=40, deadline=None)
@given(kl=kls, order=st.randoms())
def test_every_criterion_is_monotone_and_blind_to_order(name, kl, order):
    skip, mapped = decide(name, kl)
    assert skip.dtype == bool and skip.shape == mapped.shape == (len(kl), )
    if skip.any():
        assert skip[np.array(kl) <= np.array(kl)[skip].max()].all()
    finite = ~np.isnan(mapped)
    ranks = np.argsort(np.array(kl)[finite], kind='stable')
    assert (np.diff(mapped[finite][ranks]) >= -1e-9).all()
    shuffled = list(range(len(kl)))
    order.shuffle(shuffled)
    again, _ = decide(name, [kl[i] for i in shuffled])
    assert (again == skip[shuffled]).all()


@pytest.mark.parametrize('name', [n for n in OF_NUMBERS
                                  if n not in ('threshold', 'fixed')])
def test_equal_values_rank_nothing(name):
    assert not decide(name, [0.4] * 6)[0].any()


@pytest.mark.parametrize('name', OF_NUMBERS)
def test_bad_values_are_refused(name):
    for kl in ([], [0.1, float('nan')], [0.1, float('inf')]):
        with pytest.raises(ValueError):
            decide(name, kl)


def test_threshold_and_fixed_look_at_kl_itself():
    skip, mapped = decide('threshold', KL, t=0.3)
    assert skip.tolist() == [x < 0.3 for x in KL] and mapped.tolist() == KL
    skip, _ = decide('fixed', KL, n=3)
    assert sorted(np.array(KL)[skip]) == sorted(KL)[:3]
    assert decide('fixed', KL, n=99)[0].all()
    assert decide('fixed', [0.4, 0.4, 0.4], n=2)[0].tolist() == [
        True, True, False]


@pytest.mark.parametrize('alpha, beta', [(2., 5.), (5., 1.)])
def test_normal_and_gamma_have_betas_moments(alpha, beta):
    mean = alpha / (alpha + beta)
    var = alpha * beta / ((alpha + beta)**2 * (alpha + beta + 1))

    def normal_cdf(x):
        return 0.5 * (1 + math.erf((x - mean) / math.sqrt(2 * var)))

    def gamma_cdf(x):
        k, theta = mean**2 / var, var / mean
        return quad(
            lambda t: t**(k - 1) * math.exp(-t / theta) /
            (math.gamma(k) * theta**k), 0, x)[0]

    for name, cdf in (('normal', normal_cdf), ('gamma', gamma_cdf)):
        skip, mapped = decide(name, KL, alpha=alpha, beta=beta, mu=0.25)
        for x, y, gone in zip(in_reach(KL), mapped, skip):
            if x is None:
                assert np.isnan(y) and not gone
            else:
                assert y == pytest.approx(cdf(x), abs=1e-6)
                assert gone == (y < 0.25)


def test_softmax_and_sigmoid_reach_the_threshold():
    reached = np.array([x for x in in_reach(KL) if x is not None])
    shares = np.exp(reached) / np.exp(reached).sum()
    expected = (shares - shares.min()) / (shares.max() - shares.min())
    _, mapped = decide('softmax', KL)
    np.testing.assert_allclose(mapped[~np.isnan(mapped)], expected)
    expected = 1 / (1 + np.exp(-(reached - reached.mean()) / reached.std()))
    _, mapped = decide('sigmoid', KL)
    np.testing.assert_allclose(mapped[~np.isnan(mapped)], expected)
    for name in ('softmax', 'sigmoid'):
        assert 0 < decide(name, KL, mu=0.3)[0].sum() < len(KL)


@pytest.mark.parametrize('name, given_, distribution', [
    ('GQM', dict(shape=2., scale=0.5), stats.gamma(2., scale=0.5)),
    ('EQM', dict(rate=3.), stats.expon(scale=1 / 3)),
])
def test_quantile_mapping_follows_algorithm_2(name, given_, distribution):
    quantile = np.percentile(KL, 75)
    x_new = {}
    for x in KL:
        if x <= quantile:
            p = sum(other <= x for other in KL) / len(KL)
            x_new[x] = distribution.ppf(p)
    low, high = min(x_new.values()), max(x_new.values())
    skip, mapped = decide(name, KL, mu=0.2, **given_)
    for x, y, gone in zip(KL, mapped, skip):
        if x in x_new:
            assert y == pytest.approx((x_new[x] - low) / (high - low))
            assert gone == (y < 0.2)
        else:
            assert np.isnan(y) and not gone


def test_quantile_mapping_fits_what_is_not_given():
    shape, _, scale = stats.gamma.fit(KL, floc=0)
    fitted = decide('GQM', KL)[1]
    np.testing.assert_allclose(
        fitted, decide('GQM', KL, shape=shape, scale=scale)[1], rtol=1e-6)
    np.testing.assert_allclose(  # one family of scale: the rate cancels
        decide('EQM', KL)[1], decide('EQM', KL, rate=0.1)[1])


@pytest.mark.parametrize('config, message', [
    (dict(type='threshold', t=-1), 't=-1'),
    (dict(type='fixed', n=-1), 'n=-1'),
    (dict(type='fixed', n=1.5), 'n=1.5'),
    (dict(type='normal', alpha=0), 'alpha=0'),
    (dict(type='gamma', mu=2), 'mu=2'),
    (dict(type='softmax', gamma=0), 'gamma=0'),
    (dict(type='GQM', shape=1.), 'both or neither'),
    (dict(type='GQM', shape=-1., scale=1.), 'shape=-1'),
    (dict(type='EQM', rate=0), 'rate=0'),
    # YAML reads 1e-4 as text.
    (dict(type='EBQM', mu='1e-4'), "mu='1e-4': expected a number without quot"),
    (dict(type='EBQM', gamma=None), 'gamma=None: expected a number$'),
    (dict(type='normal', alpha=True), 'alpha=True: expected a number'),
    (dict(type='threshold', t='1'), "t='1': expected a number"),
    (dict(type='fixed', n='3'), "n='3': expected a number"),
    (dict(type='fixed', n=math.inf), 'n=inf'),
    (dict(type='GQM', shape='1', scale=1.), "shape='1': expected a number"),
    (dict(type='EQM', rate='1'), "rate='1': expected a number"),
])
def test_bad_parameters_are_named_before_training(config, message):
    with pytest.raises(ValueError, match=message):
        ELAPruneHook(windows=[(1, 1)], criterion=config)
