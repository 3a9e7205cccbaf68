"""Batch norm in two halves: the statistics, and what follows from them.

The value bank keeps no normalised features. It keeps the statistics, and
recomputes the features in backward. Statistics are in float32 at least: the
square of a number above 255 is infinite in half precision.
"""
import copy
import logging
from functools import lru_cache
from typing import Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ....compat.compiling import is_compiling
from ..watched import is_watched
from .keys import at_least_float32


def can_be_recomputed(norm: nn.Module) -> bool:
    """Tell whether a norm is a plain batch norm that nobody watches.

    Args:
        norm (nn.Module): Any norm. Others (group norm, synchronised batch
            norm) run as modules, and keep their input.

    Returns:
        bool: Also False where a hook waits for the module to be called.
    """
    return (type(norm) is nn.BatchNorm2d and norm.affine
            and norm.track_running_stats and norm.momentum is not None
            and not is_watched(norm))


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Call a norm; one number per channel takes running statistics.

    Args:
        norm (nn.Module): Any norm.
        x (Tensor): (B, C, H, W).

    Returns:
        Tensor: (B, C, H, W).
    """
    if (isinstance(norm, nn.BatchNorm2d) and norm.training
            and norm.track_running_stats and _is_single(x)):
        # In another mode than the module, which other threads may be using.
        norm = copy.copy(norm)
        norm.training = False
    return norm(x)


def statistics(norm: nn.BatchNorm2d, x: Tensor) -> Tuple[Tensor, Tensor, bool]:
    """Form the statistics that a norm applies to a batch.

    Args:
        norm (nn.BatchNorm2d): In training mode its running statistics are
            updated.
        x (Tensor): (B, C, H, W).

    Returns:
        tuple: Mean (C) and biased variance (C), float32 at least, and whether
        they are the batch's own. In training mode, a batch of one number per
        channel has no variance: it takes the running statistics.
    """
    wide = at_least_float32(norm.running_mean.dtype)
    if not norm.training or _is_single(x):
        return norm.running_mean.to(wide), norm.running_var.to(wide), False
    batch, channels, height, width = x.shape
    count = batch * height * width
    norm.num_batches_tracked.add_(1)
    if (x.device.type != 'cpu' or not x.is_contiguous()
            or x.dtype not in (torch.float32, torch.float64)):
        running = norm.running_mean.to(wide), norm.running_var.to(wide)
        _, mean, invstd = torch.native_batch_norm(
            x, None, None, *running, True, norm.momentum, norm.eps)
        if wide != norm.running_mean.dtype:  # the widened copies were updated
            norm.running_mean.copy_(running[0])
            norm.running_var.copy_(running[1])
        return mean, invstd.pow(-2) - norm.eps, True
    # Of contiguous maps batch norm on a CPU adds one number after the other, in
    # double. Group norm's moments are vectorised, as good, and take a sixth
    # of the time; in channels last it is the other way round.
    _, means, rstds = torch.native_group_norm(x, None, None, batch, channels,
                                              height * width, channels,
                                              norm.eps)  # (B, C)
    mean = means.mean(0)
    var = (rstds.pow(-2) + (means - mean).square()).mean(0) - norm.eps
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var * (count / (count - 1)), norm.momentum)
    return mean, var, True


def normalize(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor,
              var: Tensor, eps: float) -> Tensor:
    """(B, C, H, W) by given statistics, times gamma, plus beta, (C) each."""
    return torch.native_batch_norm(x, gamma.to(mean.dtype),
                                   beta.to(mean.dtype), mean, var, False, 0.,
                                   eps)[0]


def normalize_backward(grad: Tensor, x: Tensor, gamma: Tensor, mean: Tensor,
                       var: Tensor, eps: float,
                       own_statistics: bool) -> Tuple[Tensor, Tensor, Tensor]:
    """Form the gradients of x, gamma and beta.

    Args:
        grad (Tensor): (B, C, H, W), of the result.
        x (Tensor): (B, C, H, W).
        gamma (Tensor): (C).
        mean (Tensor): (C), as from :func:`statistics`.
        var (Tensor): (C).
        eps (float): Of the norm.
        own_statistics (bool): Whether the statistics are the batch's own.

    Returns:
        tuple: (B, C, H, W), (C) and (C).
    """
    grad_x, grad_gamma, grad_beta = torch.ops.aten.native_batch_norm_backward(
        grad, x, gamma.to(mean.dtype), mean, var, mean, torch.rsqrt(var + eps),
        own_statistics, eps, [True, True, True])
    return grad_x, grad_gamma.to(gamma.dtype), grad_beta.to(gamma.dtype)


def _is_single(x: Tensor) -> bool:
    """Whether there is one number per channel, which is said."""
    single = x.shape[0] * x.shape[2] * x.shape[3] == 1
    if single and not is_compiling():
        _say_single(tuple(x.shape))
    return single


@lru_cache(maxsize=None)
def _say_single(shape: Tuple[int, ...]) -> None:
    """Say it once a shape."""
    print_log(
        f'attention norm in training: a map of shape {shape} has one number '
        'per channel and so no variance; running statistics are used. Larger '
        'pictures or batches would update them', 'current', logging.WARNING)
