"""Enhanced Beta Quantile Mapping (algorithm 1): which layers are redundant."""
import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta as beta_distribution

from ..errors import UsageError, check_numbers


def as_candidates(kl: ArrayLike) -> np.ndarray:
    """Check the values that a criterion decides on and make them an array.

    Args:
        kl (ArrayLike): (L, ), one value per candidate layer.

    Returns:
        np.ndarray: (L, ) float64.

    Raises:
        UsageError: If there are none, or if any is NaN or infinite.
    """
    kl = np.asarray(kl, dtype=np.float64)
    if kl.ndim != 1 or not len(kl):
        raise UsageError('expected the KL divergences of one or more candidate '
                         f'layers as a flat list, got shape {kl.shape}')
    if not np.isfinite(kl).all():
        position = int(np.flatnonzero(~np.isfinite(kl))[0])
        raise UsageError(f'KL divergence number {position} is {kl[position]}; '
                         'a layer of unknown redundancy cannot be ranked')
    return kl


def normalize_below_quantile(kl: ArrayLike, gamma: float) -> np.ndarray:
    """Normalise the candidates in reach to [0, 1] (algorithm 1, lines 3 to 5).

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
        gamma (float): Quantile in (0, 1]; S, the set in reach, holds the
            candidates at or below it.

    Returns:
        np.ndarray: (L, ) float64, (x - min S) / (max S - min S). NaN above
        the quantile, and everywhere if all values of S are equal, since equal
        values cannot be ranked.

    Raises:
        UsageError: On a gamma out of range, no candidates, NaN or inf.
    """
    check_numbers(gamma=gamma)
    if not 0 < gamma <= 1:
        raise UsageError(f'gamma={gamma}: expected a quantile in (0, 1]')
    kl = as_candidates(kl)
    in_reach = kl <= np.quantile(kl, gamma)  # S of algorithm 1
    low, high = kl[in_reach].min(), kl[in_reach].max()
    if high == low:
        return np.full_like(kl, np.nan)
    return np.where(in_reach, (kl - low) / (high - low), np.nan)


def check_shapes(alpha: float, beta: float) -> None:
    """Raise a UsageError unless both can be shapes of a Beta distribution."""
    check_numbers(alpha=alpha, beta=beta)
    for name, value in (('alpha', alpha), ('beta', beta)):
        if not 0 < value < np.inf:
            raise UsageError(f'{name}={value}: expected a shape parameter > 0')


def check_threshold(mu: float) -> None:
    """Raise a UsageError unless ``mu`` is a threshold on [0, 1]."""
    check_numbers(mu=mu)
    if not 0 <= mu <= 1:
        raise UsageError(f'mu={mu}: expected a threshold in [0, 1]')


def beta_quantile_map(kl: ArrayLike,
                      gamma: float = 0.75,
                      alpha: float = 2.0,
                      beta: float = 5.0) -> np.ndarray:
    """Map KL divergences to [0, 1] (algorithm 1, lines 3 to 6).

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates of the
            network, in any order.
        gamma (float): Quantile, as in :func:`~ela_mm.ebqm`. Defaults to 0.75.
        alpha (float): First shape of the Beta distribution. Defaults to 2.
        beta (float): Second shape. Defaults to 5.

    Returns:
        np.ndarray: (L, ) float64, y = F_Beta(x'; alpha, beta), NaN where
        :func:`normalize_below_quantile` returns NaN.

    Raises:
        UsageError: On parameters out of range, no candidates, NaN or inf.
    """
    check_shapes(alpha, beta)
    return beta_distribution.cdf(
        normalize_below_quantile(kl, gamma), alpha, beta)


def ebqm(kl: ArrayLike,
         gamma: float = 0.75,
         alpha: float = 2.0,
         beta: float = 5.0,
         mu: float = 0.2) -> np.ndarray:
    """Decide which layers are redundant (algorithm 1).

    Args:
        kl (ArrayLike): (L, ), KL divergences in nats of all candidates of the
            network, pooled over its stages, in any order. Layers that are
            already skipped are no candidates.
        gamma (float): Quantile in (0, 1]; only candidates at or below it may
            be skipped. Defaults to 0.75, this project's choice: the paper
            gives none.
        alpha (float): First shape of the Beta distribution, > 0. Defaults to
            2, the paper's value for ImageNet and COCO.
        beta (float): Second shape, > 0. Defaults to 5, the paper's value for
            ImageNet and COCO.
        mu (float): Threshold in [0, 1] on the mapped value. Defaults to 0.2,
            the paper's value for COCO (ImageNet 0.25; CIFAR 0.3 with alpha=5,
            beta=1).

    Returns:
        np.ndarray: (L, ) bool, True where the layer is to be skipped.

    Raises:
        UsageError: On parameters out of range, no candidates, NaN or inf.
    """
    check_threshold(mu)
    # NaN compares false: out of reach, or nothing to rank.
    return beta_quantile_map(kl, gamma, alpha, beta) < mu
