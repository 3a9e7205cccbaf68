"""The computations of mmcv's SyncBatchNorm between its reductions."""
from typing import Optional

from torch import Tensor


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Compute the mean of every channel.

    Args:
        input (Tensor): (B, C, N).
        mean (Tensor): (C, ), written.
    """
    mean.copy_(input.to(mean.dtype).mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Compute the mean squared deviation from the mean of all processes.

    Args:
        input (Tensor): (B, C, N).
        mean (Tensor): (C, ), mean of all processes.
        var (Tensor): (C, ), written.
    """
    var.copy_((input.to(mean.dtype) - mean[:, None]).square().mean((0, 2)))


def sync_bn_forward_output(input: Tensor, mean: Tensor, var: Tensor,
                           weight: Optional[Tensor], bias: Optional[Tensor],
                           running_mean: Optional[Tensor],
                           running_var: Optional[Tensor], norm: Tensor,
                           std: Tensor, output: Tensor, eps: float,
                           momentum: Tensor, group_size: int) -> None:
    """Normalize, and update the running statistics.

    Args:
        input (Tensor): (B, C, N).
        mean (Tensor): (C, ), mean of all processes.
        var (Tensor): (C, ), variance of all processes.
        weight (Tensor, optional): (C, ).
        bias (Tensor, optional): (C, ).
        running_mean (Tensor, optional): (C, ), updated.
        running_var (Tensor, optional): (C, ), updated with the unbiased
            variance.
        norm (Tensor): (B, C, N), written: before weight and bias.
        std (Tensor): (C, ), written.
        output (Tensor): (B, C, N), written.
        eps (float): Added to the variance.
        momentum (Tensor): Share of this step in the running statistics.
        group_size (int): Number of processes.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input.to(norm.dtype) - mean[:, None]) / std[:, None])
    scaled = norm
    if weight is not None:
        scaled = scaled * weight[:, None] + bias[:, None]
    output.copy_(scaled)
    if running_mean is not None:
        count = input.size(0) * input.size(2) * group_size
        unbiased = var * count / (count - 1) if count > 1 else var
        for running, now in ((running_mean, mean), (running_var, unbiased)):
            running.copy_(momentum * now + (1 - momentum) * running)


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor,
                           grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Compute the gradients of weight and bias.

    Args:
        grad_output (Tensor): (B, C, N).
        norm (Tensor): (B, C, N), as the forward wrote it.
        grad_weight (Tensor): (C, ), written.
        grad_bias (Tensor): (C, ), written.
    """
    grad = grad_output.to(norm.dtype)
    grad_weight.copy_((grad * norm).sum((0, 2)))
    grad_bias.copy_(grad.sum((0, 2)))


def sync_bn_backward_data(grad_output: Tensor, weight: Tensor,
                          grad_weight: Tensor, grad_bias: Tensor, norm: Tensor,
                          std: Tensor, grad_input: Tensor) -> None:
    """Compute the gradient of the input.

    Args:
        grad_output (Tensor): (B, C, N).
        weight (Tensor): (C, ).
        grad_weight (Tensor): (C, ), mean over processes.
        grad_bias (Tensor): (C, ), mean over processes.
        norm (Tensor): (B, C, N), as the forward wrote it.
        std (Tensor): (C, ), as the forward wrote it.
        grad_input (Tensor): (B, C, N), written.
    """
    through = (grad_weight[:, None] * norm + grad_bias[:, None]) / (
        norm.size(0) * norm.size(2))
    grad_input.copy_((weight / std)[:, None] * (grad_output - through))
