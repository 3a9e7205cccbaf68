"""Prunes by the loss that skipping a layer adds.

The other criteria judge layers by attention weights. This one measures on the
network itself, and so is the reference for the others. Like any criterion with
an argument ``network``, it is given a :class:`Network`.
"""
import math
from typing import List, Optional, Protocol, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UsageError

# Number of images to hold out, unless a criterion says otherwise.
IMAGES = 256


class Network(Protocol):
    """What a criterion can ask of the network in its argument ``network``.

    Attributes:
        candidates (List[str]): Names of the candidate layers, in the order of
            ``kl``.
    """
    candidates: List[str]

    def added_loss(self, names: Sequence[str]) -> float:
        """Measure what skipping some layers together adds to the loss.

        Args:
            names (Sequence[str]): Names of the layers, out of ``candidates``.

        Returns:
            float: Loss without these layers minus loss with them, averaged
            over the images held out; negative if they do harm.
        """


class Rehearsal:
    """A stand-in network, on which parameters of a criterion are checked.

    Args:
        layers (int): Number of candidate layers.
    """

    def __init__(self, layers: int) -> None:
        self.candidates = [f'layer{i}' for i in range(layers)]

    def added_loss(self, names: Sequence[str]) -> float:
        """Return a loss of 0.1 for each layer."""
        return .1 * len(names)


def ablation(kl: ArrayLike,
             network: Network,
             n: Optional[int] = None,
             budget: Optional[float] = None,
             images: int = IMAGES) -> Tuple[np.ndarray, np.ndarray]:
    """Skip the layers that the network does best without.

    Each candidate is skipped alone, and candidates are ranked by the loss that
    this adds. Then they are skipped in that order, the cheapest first, until
    there are n or until all of them *together* would add more than the
    budget: two layers may cost more together than one by one. This project's
    choice.

    Args:
        kl (ArrayLike): (L, ), KL divergences of all candidates; not used.
        network (Network): The network to measure on.
        n (int, optional): Largest number of layers to skip at each window,
            >= 0. Defaults to None: as many as the budget allows.
        budget (float, optional): Loss that the layers of one decision may add
            together on the images held out, >= 0, in the unit of the loss.
            Layers that were skipped before do not count, since the network
            has trained without them. Defaults to None: no limit.
        images (int): Number of images of the training set to hold out, evenly
            spaced; the network is not trained on them. Defaults to 256.

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
    """Raise a UsageError unless the limits are valid; see :func:`ablation`."""
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
