"""Scaled batched matrix products, also correct on torch 2.0.

On CPUs, a small ``torch.baddbmm`` of torch 2.0 with ``beta=0`` multiplies its
uninitialised output by 0 instead of ignoring it, so NaN in that memory stays.
"""
from typing import Optional

import torch
from torch import Tensor


def _leaves_out() -> bool:
    """Return whether ``beta=0`` ignores what a product is added to."""
    one, out = torch.ones(1, 1, 1), torch.full((1, 1, 1), float('nan'))
    return bool(torch.baddbmm(out, one, one, beta=0, out=out) == 1)


_LEAVES_OUT = _leaves_out()


def scaled_bmm(left: Tensor, right: Tensor, scale: float,
               out: Optional[Tensor] = None) -> Tensor:
    """Compute ``scale * torch.bmm(left, right)``, if possible in one operation.

    Args:
        left (Tensor): (N, m, k), left factor.
        right (Tensor): (N, k, n), right factor.
        scale (float): Scalar factor.
        out (Tensor, optional): (N, m, n), output tensor. Defaults to None: a
            new one.

    Returns:
        Tensor: (N, m, n), the product.
    """
    if not _LEAVES_OUT:
        return torch.bmm(left, right, out=out).mul_(scale)
    return torch.baddbmm(left.new_empty(()) if out is None else out, left,
                         right, beta=0, alpha=scale, out=out)
