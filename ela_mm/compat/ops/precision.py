"""Casts to dtypes that torchvision's kernels support."""
import torch
from torch import Tensor


def computable(x: Tensor) -> Tensor:
    """Return ``x``, in float32 if torchvision does not support its dtype.

    torchvision's kernels support float32 and float64, and on a GPU float16.
    Mixed precision may use float16 on the CPU too, and bfloat16 on both.
    """
    known = (torch.float32, torch.float64) + (
        (torch.float16, ) if x.is_cuda else ())
    return x if x.dtype in known else x.float()
