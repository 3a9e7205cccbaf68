"""The weighted sum over earlier layers' values: layer attention's hot loop.

The values stay a list of tensors that every layer of the stage shares. A
concatenation (as the equations are written) would copy all earlier values at
every layer: T^2 / 2 copies in a stage of T layers, in time and in memory.
"""
from typing import Sequence

from torch import Tensor


def retrieve(weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Sum the values of a stage's layers, weighted per sample and head.

    Equation 5 of the paper, o = sum_i P[i] * v_i.

    Args:
        weights (Tensor): (B, h, n), the attention weights P of this layer
            over the n layers in memory.
        values (Sequence[Tensor]): n tensors (B, C, H, W); head j owns the
            channels j * C / h to (j + 1) * C / h.

    Returns:
        Tensor: (B, C, H, W), in the values' dtype.
    """
    batch, channels = values[0].shape[:2]
    head_dim = channels // weights.shape[1]
    weights = weights.to(values[0].dtype)
    # One factor per channel, the same for all channels of a head.
    weights = weights.repeat_interleave(head_dim, dim=1)  # (B, C, n)
    factors = weights.view(batch, channels, 1, 1, -1).unbind(-1)
    retrieved = factors[0] * values[0]  # (B, C, H, W)
    for factor, value in zip(factors[1:], values[1:]):
        # In place: autograd keeps factor and value, never the partial sums.
        retrieved.addcmul_(factor, value)
    return retrieved
