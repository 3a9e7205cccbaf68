"""The criteria that the paper compares EBQM with (tables 4, 6 and 7).

Table 4 prunes on KL itself. Table 6 keeps algorithm 1 and replaces the Beta
distribution. Table 7 is classic quantile mapping (algorithm 2). The paper
names them and gives no parameters; what is compared with the threshold, and
why, stands at each function and is this project's choice.
"""
from typing import Optional

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from ..errors import UsageError
from .ebqm import as_candidates, check_shapes, normalize_below_quantile
from .thresholded import Thresholded

# --- table 4: KL itself ------------------------------------------------------


def threshold(kl: ArrayLike, t: float = 0.3) -> np.ndarray:
    """Skip every layer whose KL divergence is below a fixed value.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        t (float): Threshold in nats on KL itself, >= 0. Defaults to 0.3; it
            depends on network and data, which is what table 4 holds against
            it.

    Returns:
        np.ndarray: (L, ) bool, True = skip.

    Raises:
        UsageError: On a negative t, no candidates, NaN or inf.
    """
    if not t >= 0:
        raise UsageError(f't={t}: expected a KL divergence >= 0')
    return as_candidates(kl) < t


def fixed(kl: ArrayLike, n: int = 1) -> np.ndarray:
    """Skip the n layers of smallest KL divergence.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        n (int): Layers to skip at each window, >= 0; all candidates where
            there are fewer. Of equal layers the earlier go first. Defaults to
            1.

    Returns:
        np.ndarray: (L, ) bool, True = skip.

    Raises:
        UsageError: On a negative or fractional n, no candidates, NaN or inf.
    """
    if n < 0 or n != int(n):
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
    """F_Normal(x'), with the mean and variance of Beta(alpha, beta).

    Of equal moments, so that only the family differs from EBQM. It puts mass
    outside of [0, 1]: the smallest layer does not map to 0.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        gamma (float): As in :func:`~ela_mm.ebqm`. Defaults to 0.75.
        alpha (float): As in :func:`~ela_mm.ebqm`. Defaults to 2.
        beta (float): As in :func:`~ela_mm.ebqm`. Defaults to 5.

    Returns:
        np.ndarray: (L, ) float64 in [0, 1], NaN out of reach.

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
    """F_Gamma(x'), with the mean and variance of Beta(alpha, beta).

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        gamma (float): As in :func:`~ela_mm.ebqm`. Defaults to 0.75.
        alpha (float): As in :func:`~ela_mm.ebqm`. Defaults to 2.
        beta (float): As in :func:`~ela_mm.ebqm`. Defaults to 5.

    Returns:
        np.ndarray: (L, ) float64 in [0, 1), NaN out of reach.

    Raises:
        UsageError: On parameters out of range, no candidates, NaN or inf.
    """
    mean, variance = _moments(alpha, beta)
    return stats.gamma.cdf(
        normalize_below_quantile(kl, gamma),
        mean**2 / variance,
        scale=variance / mean)


def softmax_map(kl: ArrayLike, gamma: float = 0.75) -> np.ndarray:
    """Softmax over x' of the layers in reach, stretched to [0, 1].

    A softmax over n layers has values around 1 / n, which no fixed threshold
    fits; stretched, ``mu`` means what it means for EBQM.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        gamma (float): As in :func:`~ela_mm.ebqm`. Defaults to 0.75.

    Returns:
        np.ndarray: (L, ) float64 in [0, 1], NaN out of reach.

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
    """Sigmoid of x', standardised over the layers in reach.

    On [0, 1] itself a sigmoid stays between 0.5 and 0.73, above every
    threshold in use; mean 0 and variance 1 are what it is meant for.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        gamma (float): As in :func:`~ela_mm.ebqm`. Defaults to 0.75.

    Returns:
        np.ndarray: (L, ) float64 in (0, 1), NaN out of reach.

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
    """Algorithm 2, then what algorithm 1 does before it thresholds.

    p(x) is the share of candidates at or below x, x' = F^-1(p(x)) under the
    target distribution. Its values are KL divergences again, so those in reach
    of the gamma-quantile are normalised to [0, 1] before ``mu`` applies. The
    largest candidate has p = 1, which such a distribution maps to infinity:
    it is out of reach.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        distribution (scipy.stats.rv_continuous): The target's family.
        gamma (float): Quantile in (0, 1].
        parameters (tuple, optional): Of the target, as scipy orders them;
            None fits them to ``kl`` by maximum likelihood, with location 0.

    Returns:
        np.ndarray: (L, ) float64 in [0, 1], NaN out of reach.

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
    """:func:`quantile_map` on a Gamma distribution, fitted unless given.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        gamma (float): Quantile in (0, 1]. Defaults to 0.75.
        shape (float, optional): Shape of the distribution, > 0.
        scale (float, optional): Its scale in nats, > 0; with ``shape`` or
            not at all.

    Returns:
        np.ndarray: (L, ) float64 in [0, 1], NaN out of reach.

    Raises:
        UsageError: On parameters out of range, no candidates, NaN or inf.
    """
    if (shape is None) != (scale is None):
        raise UsageError(f'shape={shape}, scale={scale}: expected both or '
                         'neither, which fits them')
    for name, value in (('shape', shape), ('scale', scale)):
        if value is not None and not value > 0:
            raise UsageError(f'{name}={value}: expected a parameter > 0')
    given = None if shape is None else (shape, 0, scale)
    return quantile_map(kl, stats.gamma, gamma, given)


def exponential_quantile_map(kl: ArrayLike,
                             gamma: float = 0.75,
                             rate: Optional[float] = None) -> np.ndarray:
    """:func:`quantile_map` on an exponential one, fitted unless given.

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        gamma (float): Quantile in (0, 1]. Defaults to 0.75.
        rate (float, optional): Rate of the distribution in 1 / nats, > 0.

    Returns:
        np.ndarray: (L, ) float64 in [0, 1], NaN out of reach.

    Raises:
        UsageError: On parameters out of range, no candidates, NaN or inf.
    """
    if rate is not None and not rate > 0:
        raise UsageError(f'rate={rate}: expected a parameter > 0')
    given = None if rate is None else (0, 1 / rate)
    return quantile_map(kl, stats.expon, gamma, given)


# --- the criteria ------------------------------------------------------------
# Each takes its mapping's parameters and ``mu``, a threshold in [0, 1] on the
# mapped value, and returns (L, ) bool, True = skip; errors as the mapping's.

normal = Thresholded(normal_map)
gamma = Thresholded(gamma_map)
softmax = Thresholded(softmax_map)
sigmoid = Thresholded(sigmoid_map)
gqm = Thresholded(gamma_quantile_map)
# The exponential distributions are one family of scale, which normalising
# cancels: a fit changes the mapped values' unit and not the decision.
eqm = Thresholded(exponential_quantile_map)
