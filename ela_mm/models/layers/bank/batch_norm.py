"""Batch norm whose result can be recomputed from its statistics.

The value bank does not keep normalised features. It keeps the statistics, and
recomputes the features in backward. Statistics are float32 or wider: in half
precision the square of a number above 255 is infinite.
"""
import copy
import logging
from functools import lru_cache
from typing import List, NamedTuple, Optional, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ....compat.compiling import is_compiling
from ..watched import is_watched
from .keys import at_least_float32


class Statistics(NamedTuple):
    """The statistics by which a norm normalised a batch.

    Attributes:
        mean (Tensor): (C), float32 or wider.
        spread (Tensor | None): (C), the biased variance. If the statistics are
            the batch's own, ``eps`` is already added. None where ``invstd`` is
            given.
        invstd (Tensor | None): (C), 1 / sqrt(variance + eps) of the batch's own
            statistics. None where ``spread`` is given.
        eps (float): What must still be added to ``spread``; 0 if nothing.
        own (bool): Whether the statistics are the batch's own, not the running
            ones.
    """
    mean: Tensor
    spread: Optional[Tensor]
    invstd: Optional[Tensor]
    eps: float
    own: bool


def can_be_recomputed(norm: nn.Module) -> bool:
    """Tell whether a norm is a plain batch norm that no hook watches.

    Any other norm (group norm, synchronised batch norm) is called as a module,
    and keeps its input for backward.

    Args:
        norm (nn.Module): The norm of an attention layer.

    Returns:
        bool: True for a batch norm with gamma, beta and running statistics,
        unless a hook expects the module to be called.
    """
    return (type(norm) is nn.BatchNorm2d and norm.affine
            and norm.track_running_stats and norm.momentum is not None
            and not is_watched(norm))


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Call a norm; with one number per channel, use its running statistics.

    In training, batch norm raises an error for such a batch: it has no variance.

    Args:
        norm (nn.Module): Any norm.
        x (Tensor): (B, C, H, W), the features to normalise.

    Returns:
        Tensor: (B, C, H, W), the normalised features.
    """
    if (isinstance(norm, nn.BatchNorm2d) and norm.training
            and norm.track_running_stats and _is_single(x)):
        # A copy, since other threads may be using the module in its own mode.
        norm = copy.copy(norm)
        norm.training = False
    return norm(x)


def normalize_batch(
        norm: nn.BatchNorm2d,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        tracked: Optional[List[Tensor]] = None) -> Tuple[Tensor, Statistics]:
    """Normalise a batch, and return the statistics.

    Args:
        norm (nn.BatchNorm2d): The norm. In training mode its running statistics
            are updated.
        x (Tensor): (B, C, H, W), the features to normalise.
        gamma (Tensor): (C), the norm's weight.
        beta (Tensor): (C), the norm's bias.
        tracked (List[Tensor], optional): A list to which the norm's
            ``num_batches_tracked`` is appended; the caller increments it.
            Defaults to None: it is incremented here.

    Returns:
        tuple: The normalised features (B, C, H, W), and the statistics. These
        are the running ones in evaluation mode, and in training mode for a
        batch of one number per channel, which has no variance.
    """
    wide = at_least_float32(norm.running_mean.dtype)
    running = norm.running_mean.to(wide), norm.running_var.to(wide)
    if not norm.training or _is_single(x):
        statistics = Statistics(*running, None, norm.eps, False)
        return normalize(x, gamma, beta, statistics), statistics
    if tracked is None:
        norm.num_batches_tracked.add_(1)
    else:
        tracked.append(norm.num_batches_tracked)
    if (x.device.type == 'cpu' and x.is_contiguous()
            and x.dtype in (torch.float32, torch.float64)):
        statistics = _of_vectorized_moments(norm, x)
        return normalize(x, gamma, beta, statistics), statistics
    out, mean, invstd = torch.native_batch_norm(
        x, gamma.to(wide), beta.to(wide), *running, True, norm.momentum, norm.eps)
    if wide != norm.running_mean.dtype:  # the widened copies were updated
        norm.running_mean.copy_(running[0])
        norm.running_var.copy_(running[1])
    return out, Statistics(mean, None, invstd, 0., True)


def _of_vectorized_moments(norm: nn.BatchNorm2d, x: Tensor) -> Statistics:
    """Return the batch's own statistics, and update the running ones.

    For contiguous maps on a CPU, batch norm adds up the numbers one by one, in
    float64. Group norm's moments are vectorised, as accurate, and take a sixth
    of the time. In channels last batch norm is the faster one.
    """
    batch, channels, height, width = x.shape
    count = batch * height * width
    _, means, rstds = torch.native_group_norm(
        x, None, None, batch, channels, height * width, channels, 0.)  # (B, C)
    between, mean = torch.var_mean(means, 0, correction=0)
    var = rstds.pow_(-2).mean(0).add_(between)
    torch._foreach_lerp_([norm.running_mean, norm.running_var],
                         [mean, var * (count / (count - 1))], norm.momentum)
    return Statistics(mean, var.add_(norm.eps), None, 0., True)


def normalize(x: Tensor, gamma: Tensor, beta: Tensor,
              statistics: Statistics) -> Tensor:
    """Normalise (B, C, H, W) by given statistics, then apply gamma and beta (C)."""
    mean, spread, invstd, eps, _ = statistics
    return torch.native_batch_norm(
        x, gamma.to(mean.dtype), beta.to(mean.dtype), mean,
        invstd.pow(-2) if spread is None else spread, False, 0., eps)[0]


def normalize_backward(grad: Tensor, x: Tensor, gamma: Tensor,
                       statistics: Statistics) -> Tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of x, gamma and beta.

    Args:
        grad (Tensor): (B, C, H, W), the gradient of the normalised features.
        x (Tensor): (B, C, H, W), the features before the norm.
        gamma (Tensor): (C), the norm's weight.
        statistics (Statistics): The statistics that :func:`normalize_batch`
            returned.

    Returns:
        tuple: The gradients of x (B, C, H, W), gamma (C) and beta (C).
    """
    mean, spread, invstd, eps, own = statistics
    # torch reads a batch's own statistics from mean and invstd, running ones from
    # the other arguments. On GPUs maps of one number need invstd in both cases.
    if invstd is None:
        invstd = (spread if own else spread + eps).rsqrt()
    grad_x, grad_gamma, grad_beta = torch.ops.aten.native_batch_norm_backward(
        grad, x, gamma.to(mean.dtype), mean, spread, mean, invstd, own, eps,
        [True, True, True])
    return grad_x, grad_gamma.to(gamma.dtype), grad_beta.to(gamma.dtype)


def _is_single(x: Tensor) -> bool:
    """Tell whether x has one number per channel; if so, warn once per shape."""
    single = x.shape[0] * x.shape[2] * x.shape[3] == 1
    if single and not is_compiling():
        _say_single(tuple(x.shape))
    return single


@lru_cache(maxsize=None)
def _say_single(shape: Tuple[int, ...]) -> None:
    """Warn that running statistics are used; the cache makes it once per shape."""
    print_log(
        f'attention norm in training: a map of shape {shape} has one number '
        'per channel and so no variance; running statistics are used. Larger '
        'pictures or batches would update them', 'current', logging.WARNING)
