"""What the ways to choose masks have in common."""
from typing import Dict, Optional

import torch
from torch import Tensor

from ..errors import UsageError

# By the name of a parameter.
Tensors = Dict[str, Tensor]


class Scheme:
    """Chooses which weights of a network exist.

    A mask is a bool tensor of its weight's shape, on its device; True where
    the weight exists.

    Attributes:
        batches (int): Batches whose gradients :meth:`start` looks at.
        interval (int): Iterations between two updates; 0 for masks that stay.
    """
    batches = 0
    interval = 0

    def start(self, weights: Tensors, density: float,
              generator: torch.Generator, gradients: Tensors) -> Tensors:
        """Choose the masks that a training starts with.

        Args:
            weights (Dict[str, Tensor]): The weights to be masked.
            density (float): The share of all of them that is to exist, in
                (0, 1].
            generator (torch.Generator): Of the CPU, for what is random.
            gradients (Dict[str, Tensor]): Of the loss, summed over
                ``batches`` batches; empty if that is 0.

        Returns:
            Dict[str, Tensor]: The masks; each keeps at least one weight.
        """
        raise NotImplementedError

    def fraction(self, done: float) -> float:
        """Say which share of a layer's weights an update exchanges.

        Args:
            done (float): The share of the training that is over, in [0, 1].

        Returns:
            float: In [0, 1); 0: no update.
        """
        return 0.

    def update(self, weight: Tensor, gradient: Tensor, mask: Tensor,
               fraction: float) -> Tensor:
        """Choose another mask of a layer, as dense as the one it has.

        Args:
            weight (Tensor): Of the layer.
            gradient (Tensor): Of the loss, where the weight is 0 as well.
            mask (Tensor): The one it has.
            fraction (float): From :meth:`fraction`.

        Returns:
            Tensor: The new mask.
        """
        return mask


def check_density(density: float) -> float:
    """Check the share of weights that is to exist.

    Args:
        density (float): In (0, 1].

    Returns:
        float: The same.

    Raises:
        UsageError: If it is no such number.
    """
    if not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise UsageError(
            f'density={density!r}: expected the share of the weights that is '
            'to exist, above 0 and at most 1 (a sparsity of 0.95 is a density '
            'of 0.05)')
    return float(density)


def top_mask(scores: Tensor, count: int,
             candidates: Optional[Tensor] = None) -> Tensor:
    """Mark the largest scores.

    Args:
        scores (Tensor): Of any shape.
        count (int): How many, at most the number of candidates.
        candidates (Tensor, optional): Bool, which of them may be marked.
            Defaults to None: all.

    Returns:
        Tensor: Bool, of the same shape, with ``count`` True.
    """
    if candidates is not None:
        scores = scores.masked_fill(~candidates, -torch.inf)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask.view(-1)[scores.flatten().topk(count).indices] = True
    return mask
