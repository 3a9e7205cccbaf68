"""Number types that torchvision's kernels know."""
import torch
from torch import Tensor


def computable(x: Tensor) -> Tensor:
    """Return ``x`` itself, or in float32 where torchvision lacks its type.

    torchvision's kernels know float32 and float64, on a GPU float16 too; mixed
    precision brings float16 to the CPU and bfloat16 to both.
    """
    known = (torch.float32, torch.float64) + (
        (torch.float16, ) if x.is_cuda else ())
    return x if x.dtype in known else x.float()
