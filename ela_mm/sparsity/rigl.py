"""RigL: masks that change while the network trains."""
import math

from torch import Tensor

from ..errors import UsageError, check_numbers
from .random_masks import ERK
from .scheme import top_mask


class RigL(ERK):
    """Masks that drop small weights and grow where the gradient is large.

    From "Rigging the Lottery: Making All Tickets Winners" (arXiv 1911.11134).
    Masks start as those of ERK. Every ``interval`` iterations, each layer drops
    the share f(t) of its weights with the smallest magnitude. It grows as many
    with the largest gradient among those that do not exist then; they start at
    0, but a weight that was just dropped may return with its value.
    f(t) = fraction / 2 (1 + cos(pi t / until)), where t is the share of the
    training that is over. There are two differences from the paper's algorithm:
    in the iteration of an update the optimiser takes its step too, before the
    update; and the gradient is that of this iteration's batch.

    Args:
        interval (int): Number of iterations between updates. Defaults to 100.
        fraction (float): f(0), the share that an update at the very start would
            exchange. Defaults to 0.3.
        until (float): Share of the training after which masks stay fixed.
            Defaults to 0.75. All three defaults are the paper's.

    Raises:
        UsageError: On values outside their ranges.
    """

    def __init__(self,
                 interval: int = 100,
                 fraction: float = 0.3,
                 until: float = 0.75) -> None:
        check_numbers(whole=True, interval=interval)
        check_numbers(fraction=fraction, until=until)
        if interval < 1:
            raise UsageError(f'RigL: interval={interval}: expected at least 1 '
                             'iteration')
        for name, value in dict(fraction=fraction, until=until).items():
            if not 0 < value <= 1:
                raise UsageError(f'RigL: {name}={value}: expected a share '
                                 'above 0 and at most 1')
        self.interval = interval
        self._fraction = fraction
        self.until = until

    def fraction(self, done: float) -> float:
        """Anneal by a cosine; see :meth:`~ela_mm.sparsity.scheme.Scheme.fraction`."""
        if done >= self.until:
            return 0.
        return self._fraction / 2 * (1 + math.cos(math.pi * done / self.until))

    def update(self, weight: Tensor, gradient: Tensor, mask: Tensor,
               fraction: float) -> Tensor:
        """Drop and grow; see :meth:`~ela_mm.sparsity.scheme.Scheme.update`."""
        count = int(mask.sum())
        exchanged = min(int(fraction * count), mask.numel() - count)
        kept = top_mask(weight.detach().abs(), count - exchanged, mask)
        return kept | top_mask(gradient.abs(), exchanged, ~kept)
