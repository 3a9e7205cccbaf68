"""When not to trust a criterion: rankings by position, or by chance."""
import math
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from scipy.stats import spearmanr

from ..errors import UsageError
from .kl import CEILING
from .stability import Decider, shares
from .statistics import LayerKL

# A value this near to another, as a share of that one, says no more than it
# does, however small the noise: this project's choice.
NEAR = .05
# A KL divergence this near to 0 is 0, nats.
ROUNDING = 1e-6
# The rank correlation of KL with that of uniform weights from which on a
# ranking is one by position: this project's choice. It also has to be no
# accident (p of Spearman's test), which few layers never show.
RANKED, CHANCE, MIN_LAYERS = .8, .01, 5
# What to do in a window that ranks by position, or not at all.
UNINFORMATIVE = ('warn', 'wait', 'prune')
# Of single layers: KL divergence and that of uniform weights, nats.
FirstKL = Dict[str, Tuple[float, float]]


class Rules(NamedTuple):
    """When a criterion's verdict is not followed.

    Attributes:
        uninformative (str): Of a window whose ranking says nothing of what
            attention has learned, see :func:`is_by_position`,
            :func:`is_as_drawn` and :func:`is_saturated`: ``'prune'``, the
            paper's rule, follows it; ``'warn'`` does and says so; ``'wait'``
            skips nothing in that window and says so.
        min_stability (float): A layer is skipped only if at least this share
            of resampled windows skips it, 0 to 1; 0: always.
    """
    uninformative: str = 'warn'
    min_stability: float = 0.

    def check(self) -> 'Rules':
        """Raise a UsageError on values that are none."""
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
    """Whether a window ranks layers as their position in the stage does.

    So it is where most layers measure what a layer of uniform weights would,
    within the window's own noise (the standard deviation between iterations)
    or within ``NEAR`` of it; and, if KL itself is what ranks them, where its
    rank correlation with that of uniform weights is ``RANKED`` or more.

    Args:
        measured (Dict[str, LayerKL]): Of the candidates, by name.
        redundancy (str): What ranks them, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`. Defaults to ``'paper'``.

    Returns:
        bool: False where it is not known, as of a window that an earlier
        version of this package has begun.
    """
    known = [kl for kl in measured.values() if math.isfinite(kl.excess)]
    if most(is_near(kl.mean, kl.std, kl.uniform) for kl in known):
        return True
    rank = rank_by_position([kl.mean for kl in known],
                            [kl.uniform for kl in known])
    return redundancy == 'paper' and rank is not None and rank >= RANKED


def rank_by_position(kl: Sequence[float],
                     uniform: Sequence[float]) -> Optional[float]:
    """Spearman's rank correlation of KL with that of uniform weights.

    Args:
        kl (Sequence[float]): Of each candidate, finite.
        uniform (Sequence[float]): What uniform weights would have, log(m / n).

    Returns:
        float | None: None where it may well be chance, p >= ``CHANCE``, with
        fewer than ``MIN_LAYERS`` layers, or where one side is all equal.
    """
    if len(kl) < MIN_LAYERS or min(len(set(kl)), len(set(uniform))) < 2:
        return None
    rank, p = spearmanr(kl, uniform)
    return float(rank) if p < CHANCE else None


def is_as_drawn(measured: Dict[str, LayerKL], first: FirstKL) -> bool:
    """Whether attention has learned nothing since the run began.

    Most layers measure what they did in the run's first step, within the
    window's own noise or within ``NEAR`` of it: the ranking is that of their
    random first weights.

    Args:
        measured (Dict[str, LayerKL]): Of the candidates, by name.
        first (FirstKL): Of that step. A layer that had other layers before it
            then, since some were skipped, is not compared.
    """
    return most(
        is_near(kl.mean, kl.std, first[name][0]) for name, kl in measured.items()
        if name in first and math.isfinite(kl.mean)
        and math.isclose(kl.uniform, first[name][1], rel_tol=1e-6))


def is_near(kl: float, std: float, expected: float) -> bool:
    """Whether a value is another within its noise or ``NEAR``; nats."""
    return abs(kl - expected) <= max(std, NEAR * abs(expected))


def most(found: Iterable[bool]) -> bool:
    """Whether more than half are true."""
    found = list(found)
    return sum(found) > len(found) / 2


def is_saturated(measured: Dict[str, LayerKL]) -> bool:
    """Whether in most layers single weights are all there is.

    As MRLA-base may become in a few steps without a warm-up. The KL divergence
    of two such layers is 0 where they attend to the same one, which takes a
    weight on oneself that rounds to 0, and at its ceiling where they do not:
    within each of the two groups nothing is told apart.
    """
    return most(
        abs(kl.mean) <= ROUNDING or kl.mean >= (1 - NEAR) * CEILING
        for kl in measured.values() if math.isfinite(kl.mean))


def in_short(by_position: bool, saturated: bool, as_drawn: bool) -> str:
    """Say why a window is left alone; arguments as of a decision."""
    if saturated:
        return ('attention is saturated, with most KL divergences at 0 or '
                'their ceiling')
    if as_drawn:
        return 'attention is still as it was drawn'
    return 'layers rank by position, as with uniform weights'


def stability_of(criterion: Decider,
                 measured: Dict[str, LayerKL]) -> Dict[str, float]:
    """By name, the share of resampled windows that skip a layer."""
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
    """Say why none of the layers that were to go is sure enough."""
    if not stability:
        return ('fewer than 2 steps were recorded, so that nothing is known of '
                f'stability (min_stability={rules.min_stability})')
    found = ', '.join(f'{name} in {stability[name]:.0%}' for name in names)
    return (f'of resampled windows too few skip the same: {found} '
            f'(min_stability={rules.min_stability})')


def step_samples_of(measured: Dict[str, LayerKL]) -> List[int]:
    """Samples of the steps, unless they are equal, or the layers differ."""
    weights = {tuple(kl.weights) for kl in measured.values()}
    if len(weights) != 1 or len(set(*weights)) < 2:
        return []
    return list(*weights)
