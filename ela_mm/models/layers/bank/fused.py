"""What is pointwise in a layer, as one kernel each: an option.

With ``fused=True`` of a backbone, ``torch.compile`` writes kernels for norm,
relu and the sum with the block's output, 3 passes over a map instead of 7, and
for the relu's backward, 3 instead of 5. Where there is no compiler, the same
runs operation by operation, and the log says so once. Results differ from those
without the option in the last bits.
"""
import logging
from functools import lru_cache
from typing import Callable, Optional, Set

import torch
from mmengine.logging import print_log
from torch import Tensor

from .batch_norm import Statistics

_failed: Set[Callable] = set()


def add_normalized(x: Optional[Tensor], retrieved: Tensor, gamma: Tensor,
                   beta: Tensor, statistics: Statistics,
                   relu: bool) -> Tensor:
    """Normalise a sum, relu it, and add it to the block's output.

    Args:
        x (Tensor, optional): (B, C, H, W), the block's output; None adds to
            nothing.
        retrieved (Tensor): (B, C, H, W).
        gamma (Tensor): (C), the norm's weight.
        beta (Tensor): (C), the norm's bias.
        statistics (Statistics): With ``invstd``.
        relu (bool): Whether a relu follows the norm.

    Returns:
        Tensor: (B, C, H, W).
    """
    return _run(_add_normalized, x, retrieved, gamma, beta, statistics.mean,
                statistics.invstd, relu)


def relu_backward(grad: Tensor, retrieved: Tensor, gamma: Tensor,
                  beta: Tensor, statistics: Statistics) -> Tensor:
    """Let the gradient (B, C, H, W) through where the relu did.

    Args:
        grad (Tensor): (B, C, H, W), of the relu's result.
        retrieved (Tensor): (B, C, H, W), before the norm.
        gamma (Tensor): (C).
        beta (Tensor): (C).
        statistics (Statistics): With ``invstd``.

    Returns:
        Tensor: (B, C, H, W).
    """
    return _run(_relu_backward, grad, retrieved, gamma, beta, statistics.mean,
                statistics.invstd)


def _add_normalized(x, retrieved, gamma, beta, mean, invstd, relu):
    term = _normalized(retrieved, gamma, beta, mean, invstd)
    term = (term.relu() if relu else term).to(retrieved.dtype)
    return term if x is None else x + term


def _relu_backward(grad, retrieved, gamma, beta, mean, invstd):
    term = _normalized(retrieved, gamma, beta, mean, invstd)
    return torch.where(term > 0, grad, torch.zeros_like(grad))


def _normalized(x, gamma, beta, mean, invstd):
    """(B, C, H, W) in the dtype of the statistics."""
    gamma, beta, mean, invstd = (
        v.to(mean.dtype).view(1, -1, 1, 1)
        for v in (gamma, beta, mean, invstd))
    return (x.to(mean.dtype) - mean) * (invstd * gamma) + beta


@lru_cache(maxsize=None)
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=True)


def _run(function: Callable, *args) -> Tensor:
    # A parameter's size would be compiled in, and so would be whether a sum is
    # a view into a bank: a kernel for every stage, until the compiler gives up.
    args = [v.detach() if isinstance(v, Tensor) else v for v in args]
    if function not in _failed:
        try:
            return _compiled(function)(*args)
        except Exception as error:  # noqa: BLE001  a compiler's may be any
            _failed.add(function)
            reason = (str(error).strip().splitlines() or ['no reason given'])[0]
            print_log(
                f'fused=True: {function.__name__[1:]} runs operation by '
                f'operation, since torch.compile failed: {reason}', 'current',
                logging.WARNING)
    return function(*args)
