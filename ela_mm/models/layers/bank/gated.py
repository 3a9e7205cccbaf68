"""MRLA-light's value times its gate, as one convolution.

The gate is folded into the kernels: each channel of each sample is convolved by
its own kernel, gate times weight. So no map is multiplied by the gate, and none is
kept for the gate's gradient: the gradient of these small kernels yields the
gradients of both factors. This needs contiguous maps. In channels last the map
itself is multiplied, and kept.
"""
from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from ....compat.products import scaled_bmm
from .layer import geometry, value_backward
from .values import Layout


def gated_value(conv: nn.Conv2d, x: Tensor, kernel: Tensor,
                gate: Tensor) -> Tuple[Tensor, Tensor]:
    """Convolve x, and multiply by a factor per head.

    Args:
        conv (nn.Conv2d): The value's convolution, read for its stride, padding,
            dilation and groups.
        x (Tensor): (B, C, H, W), the block's output.
        kernel (Tensor): (C, 1, k, k), the convolution's weight.
        gate (Tensor): (B, h), the factors.

    Returns:
        tuple: The gated value (B, C, H, W), and what backward needs besides the
        arguments: the gated kernels (B C, 1, k, k), or in channels last the
        value before the gate (B, C, H, W).
    """
    stride, padding, dilation, groups = geometry(conv)
    if not x.is_contiguous():
        value = torch.conv2d(x, kernel, None, *geometry(conv))
        return _times(gate, value), value
    heads = kernel.unflatten(0, (gate.shape[1], -1))  # (h, d, 1, k, k)
    kernels = (gate.to(kernel.dtype)[..., None, None, None, None] *
               heads).flatten(0, 2)  # (B C, 1, k, k)
    value = torch.conv2d(_as_one(x), kernels, None, stride, padding, dilation,
                         len(x) * groups)  # (1, B C, H, W)
    return value.reshape(len(x), -1, *value.shape[2:]), kernels


def gated_value_backward(
        conv: nn.Conv2d, grad: Tensor, x: Tensor, kernel: Tensor, gate: Tensor,
        kept: Tensor, of_x: bool,
        share: float) -> Tuple[Optional[Tensor], Tensor, Tensor]:
    """Compute the gradients of the arguments of :func:`gated_value`.

    Args:
        conv (nn.Conv2d): The value's convolution.
        grad (Tensor): (B, C, H, W), the gradient of the gated value.
        x (Tensor): (B, C, H, W), the block's output.
        kernel (Tensor): (C, 1, k, k), the convolution's weight.
        gate (Tensor): (B, h), the factors.
        kept (Tensor): The second result of :func:`gated_value`.
        of_x (bool): Whether the gradient of x is needed.
        share (float): A factor by which the gate's gradient is multiplied.

    Returns:
        tuple: The gradients of x (B, C, H, W) or None, of the kernel
        (C, 1, k, k), and of the gate (B, h).
    """
    if not x.is_contiguous():
        layout = Layout.of(kept, kept.shape[1] // gate.shape[1])
        of_gate = scaled_bmm(  # (B h, 1, L) @ (B h, L, 1)
            layout.flat(grad).flatten(0, 1).unsqueeze(1),
            layout.flat(kept).flatten(0, 1).unsqueeze(2), share)
        grad_x, grad_kernel = value_backward(conv, _times(gate, grad), x,
                                             kernel, of_x, True)
        return grad_x, grad_kernel, of_gate.view(gate.shape).to(gate.dtype)
    stride, padding, dilation, groups = geometry(conv)
    grad_x, grad_kernels, _ = torch.ops.aten.convolution_backward(
        _as_one(grad), _as_one(x).to(grad.dtype), kept.to(grad.dtype), None,
        stride, padding, dilation, False, (0, 0), len(x) * groups,
        (of_x, True, False))
    rows = grad_kernels.to(gate.dtype).reshape(
        *gate.shape, -1).transpose(0, 1)  # (h, B, d k k)
    of_gate = scaled_bmm(  # (h, B, d k k) @ (h, d k k, 1)
        rows, kernel.to(gate.dtype).reshape(len(rows), -1, 1), share)
    of_kernel = torch.bmm(gate.t().unsqueeze(1), rows)  # (h, 1, d k k)
    return (None if grad_x is None else grad_x.reshape(x.shape),
            of_kernel.view(kernel.shape).to(kernel.dtype),
            of_gate.squeeze(2).t())


def _as_one(x: Tensor) -> Tensor:
    """Reshape the batch to one sample: (B, C, H, W) -> (1, B C, H, W)."""
    return x.reshape(1, -1, *x.shape[2:])


def _times(gate: Tensor, maps: Tensor) -> Tensor:
    """Multiply maps (B, C, H, W) by a factor per head (B, h)."""
    heads = maps.unflatten(1, (gate.shape[1], -1))  # (B, h, d, H, W)
    return (heads * gate.to(maps.dtype)[..., None, None, None]).flatten(1, 2)
