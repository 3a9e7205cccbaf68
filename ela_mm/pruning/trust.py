"""Finds out when a ranking cannot be trusted: by position, or by chance."""
import math
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from scipy.stats import spearmanr

from ..errors import UsageError
from .kl import CEILING
from .stability import Decider, shares
from .statistics import LayerKL

# A value within this share of an expected one counts as equal to it, however
# small the noise: this project's choice.
NEAR = .05
# KL divergences within this distance of 0 count as 0, nats.
ROUNDING = 1e-6
# A ranking is one by position if the rank correlation of KL with the KL of
# uniform weights is at least RANKED: this project's choice. It must also be
# significant (p of Spearman's test below CHANCE), which it never is for fewer
# than MIN_LAYERS layers.
RANKED, CHANCE, MIN_LAYERS = .8, .01, 5
# What to do with a window whose ranking says nothing.
UNINFORMATIVE = ('warn', 'wait', 'prune')
# By name of the layer: its KL divergence and that of uniform weights, nats.
FirstKL = Dict[str, Tuple[float, float]]


class Rules(NamedTuple):
    """When a criterion's verdict is not followed.

    Attributes:
        uninformative (str): What to do with a window whose ranking says
            nothing of what attention has learned (:func:`is_by_position`,
            :func:`is_as_drawn`, :func:`is_saturated`). ``'prune'``, the
            paper's rule, follows the criterion; ``'warn'`` follows it and logs
            a warning; ``'wait'`` skips nothing in that window and logs why.
            Defaults to ``'warn'``.
        min_stability (float): Share of resampled windows, in [0, 1], that must
            skip a layer for it to be skipped. Defaults to 0: no condition.
    """
    uninformative: str = 'warn'
    min_stability: float = 0.

    def check(self) -> 'Rules':
        """Return itself; raise a UsageError on invalid values."""
        if self.uninformative not in UNINFORMATIVE:
            raise UsageError(f'uninformative={self.uninformative!r}: expected '
                             f'one of {UNINFORMATIVE}')
        if isinstance(self.min_stability, bool) or not isinstance(
                self.min_stability, (int, float)) or not (
                    0 <= self.min_stability <= 1):
            raise UsageError(f'min_stability={self.min_stability!r}: expected '
                             'a share from 0 to 1, such as 0.8')
        return self


def is_by_position(measured: Dict[str, LayerKL],
                   redundancy: str = 'paper') -> bool:
    """Return whether layers rank by their position in the stage alone.

    They do if most of them have the KL divergence of uniform weights, up to
    the noise of the window (:func:`noise_of`) or
    ``NEAR``. They also do if KL itself ranks them and its rank correlation
    with the KL of uniform weights is at least ``RANKED``.

    Args:
        measured (Dict[str, LayerKL]): Measurements of the candidates, by name.
        redundancy (str): Measure that ranks them, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`. Defaults to ``'paper'``.

    Returns:
        bool: False also if it is unknown, as for a window that an earlier
        version of this package has begun.
    """
    known = [kl for kl in measured.values() if math.isfinite(kl.excess)]
    if most(is_near(kl.mean, noise_of(kl.std, kl.series), kl.uniform)
            for kl in known):
        return True
    rank = rank_by_position([kl.mean for kl in known],
                            [kl.uniform for kl in known])
    return redundancy == 'paper' and rank is not None and rank >= RANKED


def rank_by_position(kl: Sequence[float],
                     uniform: Sequence[float]) -> Optional[float]:
    """Compute Spearman's rank correlation of KL with that of uniform weights.

    Args:
        kl (Sequence[float]): (L, ), finite KL divergences of the candidates.
        uniform (Sequence[float]): (L, ), KL divergences of uniform weights,
            log(m / n).

    Returns:
        float | None: The rank correlation; None if it may be chance
        (p >= ``CHANCE``), with fewer than ``MIN_LAYERS`` layers, or if all
        values of one side are equal.
    """
    if len(kl) < MIN_LAYERS or min(len(set(kl)), len(set(uniform))) < 2:
        return None
    rank, p = spearmanr(kl, uniform)
    return float(rank) if p < CHANCE else None


def is_as_drawn(measured: Dict[str, LayerKL], first: FirstKL) -> bool:
    """Return whether attention has learned nothing since the run began.

    That is so if most layers still have the KL divergence of the first step of
    the run, up to the noise of the window or ``NEAR``: they rank by their
    random initial weights.

    Args:
        measured (Dict[str, LayerKL]): Measurements of the candidates, by name.
        first (FirstKL): KL divergences of the first step. Layers whose
            predecessors have changed since then are not compared.
    """
    return most(
        is_near(kl.mean, noise_of(kl.std, kl.series), first[name][0])
        for name, kl in measured.items() if name in first and math.isfinite(kl.mean)
        and math.isclose(kl.uniform, first[name][1], rel_tol=1e-6))


def noise_of(std: float, series: Sequence[Optional[float]]) -> float:
    """Compute the noise of single steps without what changes over a window.

    A layer that learns has a large standard deviation because its values
    drift, and would seem to have stayed wherever it began. Differences of
    neighbouring steps (von Neumann et al. 1941) leave the drift out.

    Args:
        std (float): Standard deviation between iterations, nats.
        series (Sequence[float | None]): Values of single steps in order, nats.

    Returns:
        float: Nats, at most ``std``, and ``std`` itself without two steps or
        with one that is not finite.
    """
    if len(series) < 2 or None in series:
        return std
    noise = math.sqrt(np.mean(np.diff(series)**2) / 2)
    return min(std, noise) if math.isfinite(noise) else std


def is_near(kl: float, noise: float, expected: float) -> bool:
    """Return whether two values agree up to ``noise`` or ``NEAR``; nats."""
    return abs(kl - expected) <= max(noise, NEAR * abs(expected))


def most(found: Iterable[bool]) -> bool:
    """Return whether more than half are true."""
    found = list(found)
    return sum(found) > len(found) / 2


def is_saturated(measured: Dict[str, LayerKL]) -> bool:
    """Return whether most layers put all their weight on a single layer.

    MRLA-base may get there in a few steps without a warm-up. The KL divergence
    of two such layers is 0 if they attend to the same layer and at its ceiling
    if they do not, so layers cannot be told apart within either group.

    Args:
        measured (Dict[str, LayerKL]): Measurements of the candidates, by name.
    """
    return most(
        abs(kl.mean) <= ROUNDING or kl.mean >= (1 - NEAR) * CEILING
        for kl in measured.values() if math.isfinite(kl.mean))


def in_short(by_position: bool, saturated: bool, as_drawn: bool) -> str:
    """Say why a window skips nothing; arguments as in `Decision`."""
    if saturated:
        return ('attention is saturated, with most KL divergences at 0 or '
                'their ceiling')
    if as_drawn:
        return 'attention is still as it was drawn'
    return 'layers rank by position, as with uniform weights'


def stability_of(criterion: Decider,
                 measured: Dict[str, LayerKL]) -> Dict[str, float]:
    """Compute by name the share of resampled windows that skip a layer."""
    lengths = {len(kl.series) for kl in measured.values()}
    if len(lengths) != 1 or min(lengths) < 2:
        return {}
    series = np.array([kl.series for kl in measured.values()]).T  # (steps, L)
    samples = step_samples_of(measured)
    found = shares(criterion, np.array([kl.mean for kl in measured.values()]),
                   series, np.array(samples) if samples else None)
    return dict(zip(measured, found.skipped.tolist()))


def why_unstable(names: List[str], stability: Dict[str, float],
                 rules: Rules) -> str:
    """Say why no layer is skipped by enough of the resampled windows."""
    if not stability:
        return ('fewer than 2 steps were recorded, so that nothing is known of '
                f'stability (min_stability={rules.min_stability})')
    found = ', '.join(f'{name} in {stability[name]:.0%}' for name in names)
    return (f'of resampled windows too few skip the same: {found} '
            f'(min_stability={rules.min_stability})')


def step_samples_of(measured: Dict[str, LayerKL]) -> List[int]:
    """Return the samples of each step; empty if equal, or if layers differ."""
    weights = {tuple(kl.weights) for kl in measured.values()}
    if len(weights) != 1 or len(set(*weights)) < 2:
        return []
    return list(*weights)
