"""The base class of schemes, which choose masks for sparse training."""
from typing import Dict, Optional

import torch
from torch import Tensor

from ..errors import UsageError, check_numbers

# Tensors by the name of a parameter.
Tensors = Dict[str, Tensor]


class Scheme:
    """Chooses which weights of a network exist.

    A mask is a bool tensor with the shape and device of its weight, True where
    the weight exists.

    Attributes:
        batches (int): Number of batches whose gradients :meth:`start` needs.
        interval (int): Number of iterations between two updates; 0 for fixed
            masks.
    """
    batches = 0
    interval = 0

    def start(self, weights: Tensors, density: float,
              generator: torch.Generator, gradients: Tensors) -> Tensors:
        """Choose the masks that a training starts with.

        Args:
            weights (Dict[str, Tensor]): Weights to be masked.
            density (float): Share of all of them that is to exist, in (0, 1].
            generator (torch.Generator): Random generator of the CPU.
            gradients (Dict[str, Tensor]): Gradients of the loss, summed over
                ``batches`` batches; empty if that is 0.

        Returns:
            Dict[str, Tensor]: Masks, each with at least one weight.
        """
        raise NotImplementedError

    def fraction(self, done: float) -> float:
        """Return the share of a layer's weights that an update exchanges.

        Args:
            done (float): Share of the training that is over, in [0, 1].

        Returns:
            float: Share in [0, 1); 0 means no update.
        """
        return 0.

    def update(self, weight: Tensor, gradient: Tensor, mask: Tensor,
               fraction: float) -> Tensor:
        """Choose a new mask for a layer, as dense as its present one.

        Args:
            weight (Tensor): Weight of the layer.
            gradient (Tensor): Gradient of the loss, including absent weights.
            mask (Tensor): Present mask of the layer.
            fraction (float): Share to exchange, from :meth:`fraction`.

        Returns:
            Tensor: The new mask.
        """
        return mask


def check_density(density: float) -> float:
    """Check a density.

    Args:
        density (float): Share of the weights that is to exist, in (0, 1].

    Returns:
        float: The same number.

    Raises:
        UsageError: If it is not in (0, 1].
    """
    check_numbers(density=density)
    if not 0 < density <= 1:
        raise UsageError(
            f'density={density}: expected the share of the weights that is '
            'to exist, above 0 and at most 1 (a sparsity of 0.95 is a density '
            'of 0.05)')
    return float(density)


def top_mask(scores: Tensor, count: int,
             candidates: Optional[Tensor] = None) -> Tensor:
    """Mark the largest scores.

    Args:
        scores (Tensor): Scores, of any shape.
        count (int): Number of scores to mark, at most that of the candidates.
        candidates (Tensor, optional): Bool tensor that says which scores may
            be marked. Defaults to None: all.

    Returns:
        Tensor: Bool tensor of the same shape, True in ``count`` places.
    """
    if candidates is not None:
        scores = scores.masked_fill(~candidates, -torch.inf)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask.view(-1)[scores.flatten().topk(count).indices] = True
    return mask
