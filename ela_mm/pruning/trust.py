"""When not to trust a criterion: rankings by position, or by chance."""
import math
from typing import Dict, List, NamedTuple, Sequence

import numpy as np

from ..errors import UsageError
from .kl import CEILING, uniform_kl
from .stability import Decider, shares
from .statistics import LayerKL

# A value this near to the uniform layer's, or to the ceiling, as a share of it,
# says no more than those do, however small the noise: this project's choice.
NEAR = .05
# A KL divergence this near to 0 is 0, nats.
ROUNDING = 1e-6
# What to do in a window that ranks by position, or not at all.
UNINFORMATIVE = ('warn', 'wait', 'prune')


class Rules(NamedTuple):
    """When a criterion's verdict is not followed.

    Attributes:
        uninformative (str): Of a window whose attention is near uniform or
            saturated: ``'prune'``, the paper's rule, follows its ranking;
            ``'warn'`` does and says so; ``'wait'`` skips nothing in that
            window and says so.
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


def is_by_position(layers: Sequence, measured: Dict[str, LayerKL]) -> bool:
    """Whether most layers measure what a layer of uniform weights would.

    Within the window's own noise (the standard deviation between iterations),
    or within ``NEAR`` of it.
    """
    previous: Dict[int, int] = {}  # layers in memory, by stage
    near = []
    for layer in layers:
        if not layer.active:
            continue
        kl = measured.get(layer.name)
        before = previous.get(layer.stage)
        if kl is not None and before and math.isfinite(kl.mean):
            expected = uniform_kl(before, layer.sees)
            near.append(
                abs(kl.mean - expected) <= max(kl.std, NEAR * expected))
        previous[layer.stage] = layer.sees
    return bool(near) and sum(near) > len(near) / 2


def is_saturated(measured: Dict[str, LayerKL]) -> bool:
    """Whether in most layers single weights are all there is.

    As MRLA-base may become in a few steps without a warm-up. The KL divergence
    of two such layers is 0 where they attend to the same one, which takes a
    weight on oneself that rounds to 0, and at its ceiling where they do not:
    within each of the two groups nothing is told apart.
    """
    means = [kl.mean for kl in measured.values() if math.isfinite(kl.mean)]
    saturated = [x for x in means
                 if abs(x) <= ROUNDING or x >= (1 - NEAR) * CEILING]
    return len(saturated) > len(means) / 2


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
