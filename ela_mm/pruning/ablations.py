"""The criteria that the paper compares EBQM with (tables 4, 6 and 7).

Table 4 prunes by the KL divergence itself. Table 6 keeps algorithm 1 but
replaces the Beta distribution. Table 7 is classic quantile mapping
(algorithm 2). The paper names these criteria without parameters. Each function
says what it compares with the threshold and why: this project's choice.
"""
from typing import Optional

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from ..errors import UsageError, check_numbers
from .ebqm import as_candidates, check_shapes, normalize_below_quantile
from .thresholded import Thresholded

# --- table 4: KL itself ------------------------------------------------------


def threshold(kl: ArrayLike, t: float = 0.3) -> np.ndarray:
    """Skip every layer whose KL divergence is below a fixed value.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        t (float): Threshold on the KL divergence in nats, >= 0. Defaults to
            0.3. A good value depends on network and data: the weakness of
            this criterion according to table 4.

    Returns:
        np.ndarray: (L, ) bool, True = skip.

    Raises:
        UsageError: On a negative t, no candidates, NaN or inf.
    """
    check_numbers(t=t)
    if not t >= 0:
        raise UsageError(f't={t}: expected a KL divergence >= 0')
    return as_candidates(kl) < t


def fixed(kl: ArrayLike, n: int = 1) -> np.ndarray:
    """Skip the n layers with the smallest KL divergence.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        n (int): Number of layers to skip at each window, >= 0; all candidates
            if there are fewer. Among equal values earlier layers are skipped
            first. Defaults to 1.

    Returns:
        np.ndarray: (L, ) bool, True = skip.

    Raises:
        UsageError: On a negative or fractional n, no candidates, NaN or inf.
    """
    check_numbers(n=n)
    if not n >= 0 or n % 1:
        raise UsageError(f'n={n}: expected a number of layers >= 0')
    kl = as_candidates(kl)
    skip = np.zeros(len(kl), dtype=bool)
    skip[np.argsort(kl, kind='stable')[:int(n)]] = True
    return skip


# --- table 6: another distribution in place of Beta --------------------------


def _moments(alpha: float, beta: float) -> tuple:
    check_shapes(alpha, beta)
    mean, variance = stats.beta.stats(alpha, beta)
    return float(mean), float(variance)


def normal_map(kl: ArrayLike,
               gamma: float = 0.75,
               alpha: float = 2.0,
               beta: float = 5.0) -> np.ndarray:
    """Map x' by the normal CDF with the moments of Beta(alpha, beta).

    Mean and variance are the same, so that only the family of the distribution
    differs from EBQM's. It has mass outside of [0, 1], so the smallest value
    does not map to 0.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        gamma (float): Quantile, as in :func:`~ela_mm.ebqm`. Defaults to 0.75.
        alpha (float): First shape of that Beta distribution. Defaults to 2.
        beta (float): Second shape. Defaults to 5.

    Returns:
        np.ndarray: (L, ) float64 in [0, 1], NaN where out of reach.

    Raises:
        UsageError: On parameters out of range, no candidates, NaN or inf.
    """
    mean, variance = _moments(alpha, beta)
    return stats.norm.cdf(
        normalize_below_quantile(kl, gamma), mean, variance**0.5)


def gamma_map(kl: ArrayLike,
              gamma: float = 0.75,
              alpha: float = 2.0,
              beta: float = 5.0) -> np.ndarray:
    """Map x' by the Gamma CDF with the mean and variance of Beta(alpha, beta).

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        gamma (float): Quantile, as in :func:`~ela_mm.ebqm`. Defaults to 0.75.
        alpha (float): First shape of that Beta distribution. Defaults to 2.
        beta (float): Second shape. Defaults to 5.

    Returns:
        np.ndarray: (L, ) float64 in [0, 1), NaN where out of reach.

    Raises:
        UsageError: On parameters out of range, no candidates, NaN or inf.
    """
    mean, variance = _moments(alpha, beta)
    return stats.gamma.cdf(
        normalize_below_quantile(kl, gamma),
        mean**2 / variance,
        scale=variance / mean)


def softmax_map(kl: ArrayLike, gamma: float = 0.75) -> np.ndarray:
    """Map x' by a softmax over the layers in reach, stretched to [0, 1].

    A softmax over n layers gives values around 1 / n, which no fixed threshold
    suits. Stretching them lets ``mu`` mean what it means for EBQM.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        gamma (float): Quantile, as in :func:`~ela_mm.ebqm`. Defaults to 0.75.

    Returns:
        np.ndarray: (L, ) float64 in [0, 1], NaN where out of reach.

    Raises:
        UsageError: On parameters out of range, no candidates, NaN or inf.
    """
    normalized = normalize_below_quantile(kl, gamma)
    in_reach = ~np.isnan(normalized)
    mapped = np.full_like(normalized, np.nan)
    if in_reach.any():
        shares = special.softmax(normalized[in_reach])
        mapped[in_reach] = (shares - shares.min()) / np.ptp(shares)
    return mapped


def sigmoid_map(kl: ArrayLike, gamma: float = 0.75) -> np.ndarray:
    """Map x' by a sigmoid, after standardising it over the layers in reach.

    On [0, 1] a sigmoid stays between 0.5 and 0.73, above every threshold in
    use. So x' first gets mean 0 and variance 1.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        gamma (float): Quantile, as in :func:`~ela_mm.ebqm`. Defaults to 0.75.

    Returns:
        np.ndarray: (L, ) float64 in (0, 1), NaN where out of reach.

    Raises:
        UsageError: On parameters out of range, no candidates, NaN or inf.
    """
    normalized = normalize_below_quantile(kl, gamma)
    reached = normalized[~np.isnan(normalized)]
    if not len(reached):
        return normalized
    return special.expit((normalized - reached.mean()) / reached.std())


# --- table 7: quantile mapping -----------------------------------------------


def quantile_map(kl: ArrayLike, distribution, gamma: float,
                 parameters: Optional[tuple]) -> np.ndarray:
    """Map quantiles to a target distribution (algorithm 2) and normalise them.

    p(x) is the share of candidates at or below x, and x' = F^-1(p(x)) under
    the target distribution. Like KL divergences, the x' are unbounded, so
    those in reach of the gamma-quantile are normalised to [0, 1], as in
    algorithm 1, before ``mu`` applies. The largest candidate has p = 1, which
    such a distribution maps to infinity, so it is out of reach.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        distribution (scipy.stats.rv_continuous): Family of the target
            distribution.
        gamma (float): Quantile in (0, 1].
        parameters (tuple, optional): Parameters of the target distribution in
            scipy's order; None fits them to ``kl`` by maximum likelihood,
            with location 0.

    Returns:
        np.ndarray: (L, ) float64 in [0, 1], NaN where out of reach.

    Raises:
        UsageError: On parameters out of range, no candidates, NaN or inf.
    """
    normalized = normalize_below_quantile(kl, gamma)
    kl = as_candidates(kl)
    in_reach = ~np.isnan(normalized)
    probability = (kl[:, None] >= kl[None, :]).mean(1)  # p(x_i), line 1
    in_reach &= probability < 1
    mapped = np.full_like(kl, np.nan)
    if not in_reach.any():
        return mapped
    if parameters is None:
        positive = np.maximum(kl, np.finfo(float).tiny)  # the support
        parameters = distribution.fit(positive, floc=0)
    quantiles = distribution.ppf(probability[in_reach], *parameters)
    span = np.ptp(quantiles)
    if span > 0:
        mapped[in_reach] = (quantiles - quantiles.min()) / span
    return mapped


def gamma_quantile_map(kl: ArrayLike,
                       gamma: float = 0.75,
                       shape: Optional[float] = None,
                       scale: Optional[float] = None) -> np.ndarray:
    """Map by :func:`quantile_map` to a Gamma distribution.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        gamma (float): Quantile in (0, 1]. Defaults to 0.75.
        shape (float, optional): Shape of the distribution, > 0. Defaults to
            None: fitted.
        scale (float, optional): Scale of the distribution in nats, > 0. Has to
            be given with ``shape``, or neither.

    Returns:
        np.ndarray: (L, ) float64 in [0, 1], NaN where out of reach.

    Raises:
        UsageError: On parameters out of range, no candidates, NaN or inf.
    """
    if (shape is None) != (scale is None):
        raise UsageError(f'shape={shape}, scale={scale}: expected both or '
                         'neither, which fits them')
    for name, value in (('shape', shape), ('scale', scale)):
        if value is None:
            continue
        check_numbers(**{name: value})
        if not value > 0:
            raise UsageError(f'{name}={value}: expected a parameter > 0')
    given = None if shape is None else (shape, 0, scale)
    return quantile_map(kl, stats.gamma, gamma, given)


def exponential_quantile_map(kl: ArrayLike,
                             gamma: float = 0.75,
                             rate: Optional[float] = None) -> np.ndarray:
    """Map by :func:`quantile_map` to an exponential distribution.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        gamma (float): Quantile in (0, 1]. Defaults to 0.75.
        rate (float, optional): Rate of the distribution in 1 / nats, > 0.
            Defaults to None: fitted.

    Returns:
        np.ndarray: (L, ) float64 in [0, 1], NaN where out of reach.

    Raises:
        UsageError: On parameters out of range, no candidates, NaN or inf.
    """
    given = None
    if rate is not None:
        check_numbers(rate=rate)
        if not rate > 0:
            raise UsageError(f'rate={rate}: expected a parameter > 0')
        given = 0, 1 / rate
    return quantile_map(kl, stats.expon, gamma, given)


# --- the criteria ------------------------------------------------------------
# Each takes the parameters of its mapping and ``mu``, a threshold in [0, 1] on
# the mapped value, returns (L, ) bool, True = skip, and raises what its mapping
# raises.

normal = Thresholded(normal_map)
gamma = Thresholded(gamma_map)
softmax = Thresholded(softmax_map)
sigmoid = Thresholded(sigmoid_map)
gqm = Thresholded(gamma_quantile_map)
# Exponential distributions differ only in scale, which normalising cancels: the
# fitted rate changes the unit of the mapped values and not the decision.
eqm = Thresholded(exponential_quantile_map)
