"""Scaled batched products, also where torch adds what lies in memory.

On CPUs torch 2.0 multiplies the memory that a small ``torch.baddbmm`` writes to
by ``beta=0`` instead of leaving it out: what was NaN there before stays NaN.
"""
from typing import Optional

import torch
from torch import Tensor


def _leaves_out() -> bool:
    """Tell whether ``beta=0`` leaves out what a product is added to."""
    one, out = torch.ones(1, 1, 1), torch.full((1, 1, 1), float('nan'))
    return bool(torch.baddbmm(out, one, one, beta=0, out=out) == 1)


_LEAVES_OUT = _leaves_out()


def scaled_bmm(left: Tensor, right: Tensor, scale: float,
               out: Optional[Tensor] = None) -> Tensor:
    """Compute ``scale * torch.bmm(left, right)``, in one operation if it may.

    Args:
        left (Tensor): (N, m, k).
        right (Tensor): (N, k, n).
        scale (float): A factor.
        out (Tensor, optional): (N, m, n), written. Defaults to None: a new one.

    Returns:
        Tensor: (N, m, n).
    """
    if not _LEAVES_OUT:
        return torch.bmm(left, right, out=out).mul_(scale)
    return torch.baddbmm(left.new_empty(()) if out is None else out, left,
                         right, beta=0, alpha=scale, out=out)
