"""Redundancy of neighbouring attention layers (equation 11)."""
import math

import torch
from torch import Tensor

from ..errors import UsageError


@torch.no_grad()
def adjacent_kl(prev: Tensor, curr: Tensor, eps: float = 1e-8) -> Tensor:
    """KL divergence between the attention weights of two neighbours.

    D(P || P') = sum_i P_i log(P_i / P'_i), where P, which knows fewer layers,
    is padded with eps. It belongs to the later layer: a small value says that
    its weights repeat those of the layer before.

    Args:
        prev (Tensor): (B, h, n), P: weights of the earlier active layer.
        curr (Tensor): (B, h, m) with m >= n, P': weights of the next active
            layer of the same stage. n and m count the layers in memory.
        eps (float): Padding value and lower clamp of both. The paper lets it
            go to 0; 1e-8, this project's choice, bounds D at -log(eps) = 18.4
            nats.

    Returns:
        Tensor: Scalar float32 in nats, averaged over batch and heads; carries
        no gradient. Slightly negative values, above -1e-6, are rounding.

    Raises:
        UsageError: If the shapes do not fit together.
    """
    if (prev.dim() != 3 or curr.dim() != 3 or prev.shape[:2] != curr.shape[:2]
            or prev.shape[2] > curr.shape[2]):
        raise UsageError(
            f'expected weights (B, h, n) and (B, h, m) with m >= n, got '
            f'{tuple(prev.shape)} and {tuple(curr.shape)}')
    padding = curr.shape[2] - prev.shape[2]
    p = torch.nn.functional.pad(prev.float(), (0, padding), value=eps)
    p = p.clamp(min=eps)  # (B, h, m)
    p_next = curr.float().clamp(min=eps)  # (B, h, m)
    return (p * (p / p_next).log()).sum(-1).mean()


def uniform_kl(before: int, now: int) -> float:
    """KL divergence of two neighbours that weigh all layers alike.

    Equation 11 compares distributions of different length: it is
    log(now / before), 0.693, 0.405, 0.288 and so on, by position alone.

    Args:
        before (int): n, layers in memory when the earlier one attends.
        now (int): m, when the later one does.

    Returns:
        float: Nats.
    """
    return math.log(now / before)
