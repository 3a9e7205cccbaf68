"""Batch norm in two halves: the statistics, and what follows from them.

The value bank keeps no normalised features. It keeps the statistics, and forms
the features again in backward.
"""
from typing import Tuple

import torch
from torch import Tensor, nn

from ....errors import UsageError


def can_be_formed_again(norm: nn.Module) -> bool:
    """Whether a norm is a plain batch norm that nobody watches.

    Args:
        norm (nn.Module): Any norm. Others (group norm, synchronised batch
            norm) run as modules, and keep their input.

    Returns:
        bool: Also False where a hook waits for the module to be called.
    """
    return (type(norm) is nn.BatchNorm2d and norm.affine
            and norm.track_running_stats and norm.momentum is not None
            and not norm._forward_hooks and not norm._forward_pre_hooks)


def statistics(norm: nn.BatchNorm2d, x: Tensor) -> Tuple[Tensor, Tensor]:
    """The statistics that a norm applies to a batch.

    Args:
        norm (nn.BatchNorm2d): In training mode its running statistics are
            updated.
        x (Tensor): (B, C, H, W).

    Returns:
        tuple: Mean (C) and biased variance (C).

    Raises:
        UsageError: In training mode, if there is one number per channel.
    """
    if not norm.training:
        return norm.running_mean, norm.running_var
    batch, channels, height, width = x.shape
    count = batch * height * width
    if count == 1:
        raise UsageError(
            f'batch norm in training has one number per channel, of a map of '
            f'shape {tuple(x.shape)}: take larger pictures or larger batches')
    norm.num_batches_tracked.add_(1)
    if (x.device.type != 'cpu' or not x.is_contiguous()
            or x.dtype not in (torch.float32, torch.float64)):
        _, mean, invstd = torch.native_batch_norm(
            x, None, None, norm.running_mean, norm.running_var, True,
            norm.momentum, norm.eps)
        return mean, invstd.pow(-2) - norm.eps
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
    return mean, var


def normalize(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor,
              var: Tensor, eps: float) -> Tensor:
    """(B, C, H, W) by given statistics, times gamma, plus beta, (C) each."""
    return torch.native_batch_norm(x, gamma, beta, mean, var, False, 0.,
                                   eps)[0]


def normalize_backward(grad: Tensor, x: Tensor, gamma: Tensor, mean: Tensor,
                       var: Tensor, eps: float,
                       training: bool) -> Tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gamma and beta.

    Args:
        grad (Tensor): (B, C, H, W), of the result.
        x (Tensor): (B, C, H, W).
        gamma (Tensor): (C).
        mean (Tensor): (C), as from :func:`statistics`.
        var (Tensor): (C).
        eps (float): Of the norm.
        training (bool): Whether the statistics are the batch's own.

    Returns:
        tuple: (B, C, H, W), (C) and (C).
    """
    return torch.ops.aten.native_batch_norm_backward(
        grad, x, gamma, mean, var, mean, torch.rsqrt(var + eps), training,
        eps, [True, True, True])
