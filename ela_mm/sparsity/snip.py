"""SNIP: keeps the weights that the loss depends on most before training."""
import torch

from ..errors import UsageError, check_numbers
from .scheme import Scheme, Tensors, top_mask


class SNIP(Scheme):
    """Masks that keep the weights w with the largest ``|w dL/dw|``.

    From "SNIP: Single-shot Network Pruning based on Connection Sensitivity"
    (arXiv 1810.02340). Weights of all layers are ranked together. Each layer
    keeps at least its best one, since a layer without weights would cut the
    network in two: this project's choice.

    Args:
        batches (int): Number of batches over which gradients are summed.
            Defaults to 1, as in the paper.

    Raises:
        UsageError: If ``batches`` is less than 1.
    """

    def __init__(self, batches: int = 1) -> None:
        check_numbers(whole=True, batches=batches)
        if batches < 1:
            raise UsageError(f'SNIP: batches={batches}: expected at least 1')
        self.batches = batches

    def start(self, weights: Tensors, density: float,
              generator: torch.Generator, gradients: Tensors) -> Tensors:
        """Rank and keep; see :meth:`~ela_mm.sparsity.scheme.Scheme.start`.

        Raises:
            UsageError: If gradients are not finite, or all 0 in a layer.
        """
        scores = {
            name: (weight.detach() * gradients[name]).abs().float()
            for name, weight in weights.items()
        }
        for name, score in scores.items():
            if not score.isfinite().all():
                raise UsageError(
                    f'SNIP: the gradients of the first {self.batches} batches '
                    f'are not finite in {name}: check the data, or start from '
                    'weights that train')
        hidden = [name for name, score in scores.items() if not score.any()]
        if hidden:
            raise UsageError(
                f'SNIP: the gradients of the first {self.batches} batches are '
                f'0 in {len(hidden)} layers, which it would remove '
                f'({hidden[0]}, ...). Norms that start at 0 hide the layers '
                'before them: set zero_init_residual=False in the backbone, or '
                'name the layers in leave_out')
        flat = torch.cat([score.flatten() for score in scores.values()])
        kept = top_mask(flat, max(round(density * flat.numel()), 1))
        parts = kept.split([score.numel() for score in scores.values()])
        return {
            name: part.view_as(score) | top_mask(score, 1)
            for (name, score), part in zip(scores.items(), parts)
        }
