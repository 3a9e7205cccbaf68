"""Prune by what it costs: the loss that skipping a layer adds.

The other criteria judge by attention weights. This one asks the network, and is
what they can be compared with. It takes a network that can be tried, as any
criterion may: see :class:`Network`.
"""
import math
from typing import List, Optional, Protocol, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UsageError

# Pictures that are held out, unless a criterion says otherwise.
IMAGES = 256


class Network(Protocol):
    """What a criterion that takes an argument ``network`` can ask.

    Attributes:
        candidates (List[str]): Names of the layers, in the order of ``kl``.
    """
    candidates: List[str]

    def added_loss(self, names: Sequence[str]) -> float:
        """Measure what skipping some layers together adds to the loss.

        Args:
            names (Sequence[str]): Of ``candidates``.

        Returns:
            float: The loss without them minus that with them, the mean over
            the pictures that are held out; negative where they did harm.
        """


class Rehearsal:
    """A network of which nothing is known, to try a criterion on."""

    def __init__(self, layers: int) -> None:
        self.candidates = [f'layer{i}' for i in range(layers)]

    def added_loss(self, names: Sequence[str]) -> float:
        """Every layer adds the same."""
        return .1 * len(names)


def ablation(kl: ArrayLike,
             network: Network,
             n: Optional[int] = None,
             budget: Optional[float] = None,
             images: int = IMAGES) -> Tuple[np.ndarray, np.ndarray]:
    """Skip the layers that the network does best without.

    Each candidate is skipped alone, and they are ranked by the loss that this
    adds. Then the cheapest go, one after the other, as long as all of them
    *together* add no more than the budget, and until there are n: what two
    layers cost together is not what they cost one by one. This project's
    choice.

    Args:
        kl (ArrayLike): (L, ), of all candidates; only their number matters.
        network (Network): To try it on.
        n (int, optional): Layers to skip at each window at most, >= 0.
            Defaults to None: as many as the budget allows.
        budget (float, optional): Loss that the layers of one decision may add
            together on the pictures held out, >= 0, in the unit of the loss.
            Layers that were skipped before do not count: the network has
            trained without them. Defaults to None: any.
        images (int): Pictures of the training set to hold out for this, evenly
            spaced in it; the network is not trained on them. Defaults to 256.

    Returns:
        tuple: (L, ) bool, True = skip, and (L, ) float64, the loss that
        skipping each layer alone adds.

    Raises:
        UsageError: On n, budget or images out of range, or neither n nor
            budget.
        ValueError: If no loss is finite.
    """
    check_limits(n, budget, images)
    names = network.candidates
    single = np.array([network.added_loss([name]) for name in names])
    order = [i for i in np.argsort(single, kind='stable')
             if np.isfinite(single[i])]
    if not order:
        raise ValueError('the loss on the pictures held out is not finite')
    skip = np.zeros(len(names), dtype=bool)
    for i in order if n is None else order[:n]:
        skip[i] = True
        gone = [name for name, out in zip(names, skip) if out]
        if budget is not None and not network.added_loss(gone) <= budget:
            skip[i] = False
            break
    return skip, single


def check_limits(n: Optional[int], budget: Optional[float],
                 images: int) -> None:
    """Raise a UsageError unless they limit what may be skipped."""
    if n is None and budget is None:
        raise UsageError('expected n (layers at each window), budget (loss '
                         'that they may add together), or both')
    if n is not None and (type(n) is not int or n < 0):
        raise UsageError(f'n={n!r}: expected a number of layers >= 0')
    if budget is not None and not (isinstance(budget, (int, float))
                                   and type(budget) is not bool
                                   and 0 <= budget < math.inf):
        raise UsageError(f'budget={budget!r}: expected a loss >= 0, such as '
                         '0.05')
    if type(images) is not int or images < 1:
        raise UsageError(f'images={images!r}: expected a number of pictures '
                         '>= 1')
