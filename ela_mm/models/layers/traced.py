"""Operators that compilers see in place of plain operations.

Compilers fuse a plain sum over earlier values well, and the gradients of these
values too: a kernel reads each map once. They do two things badly, which are
operators of our own here, with the gradient of the plain operation:

- The gradient of the weights is one reduction over a map per value, T^2 / 2 in a
  stage. On a CPU compilers turn each of them into a slow loop.
- For the backward of a depthwise convolution Inductor lays out the maps in the
  dimension order that suits the kernel's tensor (C, 1, k, k), and so copies each
  of them there and back.
"""
from inspect import signature
from typing import List, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...compat.compiling import is_compiling, is_exporting


def per_channel(weights: Tensor, values: Tensor) -> Tuple[Tensor, ...]:
    """Expand attention weights from heads to channels.

    Args:
        weights (Tensor): (B, h, n), the attention weights P.
        values (Tensor): (B, C, H, W), any of the values, for C and the dtype.

    Returns:
        tuple: n factors (B, C, 1, 1), in the values' dtype. Channels are adjacent
        in memory: only then do compilers vectorise over them.
    """
    channels = values.shape[1] // weights.shape[1]  # channels per head
    # Not repeat_interleave, which waits for the GPU in torch 2.0.
    return weights.to(values.dtype).permute(2, 0, 1).unsqueeze(-1).expand(
        -1, -1, -1, channels).flatten(2)[..., None, None].unbind(0)


def _products(x: Tensor, values: List[Tensor], heads: int) -> Tensor:
    """Return x's inner products per head with n values (B, C, H, W): (B, h, n)."""
    products = [(x * value).sum((2, 3)) for value in values]  # (B, C)
    return torch.stack(products, -1).unflatten(1, (heads, -1)).sum(2)


def _head_products(x: Tensor, values: List[Tensor], heads: int) -> Tensor:
    return _products(_laid_out_as(values[0], x), values, heads)


def _depthwise_backward(grad: Tensor, x: Tensor, kernel: Tensor,
                        geometry: List[int]) -> Tuple[Tensor, Tensor]:
    """Return the gradients of x (B, C, H, W) and kernel (C, 1, k, k).

    The gradients have the strides of x and kernel. ``geometry`` is the list that
    :class:`TracedValue` takes.
    """
    of_x, of_kernel, _ = torch.ops.aten.convolution_backward(
        grad, x, kernel, None, geometry[:2], geometry[2:4], geometry[4:6],
        False, (0, 0), geometry[6], (True, True, False))
    return _laid_out_as(x, of_x), of_kernel.contiguous()


def _laid_out_as(like: Tensor, x: Tensor) -> Tensor:
    """Return x with the strides of ``like``, as a copy if they differ."""
    if x.stride() == like.stride():
        return x
    return torch.empty_like(like, dtype=x.dtype).copy_(x)


# False before torch 2.4: there compilers see the plain operations.
CAN_TRACE = hasattr(torch.library, 'custom_op')
if CAN_TRACE:
    # The operators take maps of any strides. Unless a tag says so, compilers
    # copy maps to the strides that they had when traced, since on a CPU they
    # switch to channels last.
    _as_they_lie = {}
    if 'tags' in signature(torch.library.custom_op).parameters:
        _as_they_lie['tags'] = (torch.Tag.flexible_layout, )
    head_products, depthwise_backward = (
        torch.library.custom_op(
            'ela_mm::' + function.__name__[1:], function, mutates_args=(),
            **_as_they_lie)
        for function in (_head_products, _depthwise_backward))

    @head_products.register_fake
    def _(x, values, heads):
        return x.new_empty(x.shape[0], heads, len(values))

    @depthwise_backward.register_fake
    def _(grad, x, kernel, geometry):
        return torch.empty_like(x), kernel.new_empty(kernel.shape)


def _wants_operator(grad: Tensor) -> bool:
    """Tell whether to use the operator: for GPUs compilers fuse the plain one."""
    return grad.is_cpu


class TracedSum(torch.autograd.Function):
    """:func:`~ela_mm.models.layers.layer_attention.retrieve` for compilers.

    ``apply`` takes the weights (B, h, n) and n values (B, C, H, W), and returns
    their sum (B, C, H, W).
    """

    @staticmethod
    def forward(ctx, weights, *values):
        ctx.save_for_backward(weights, *values)
        factors = per_channel(weights, values[0])
        retrieved = factors[0] * values[0]
        for factor, value in zip(factors[1:], values[1:]):
            retrieved = retrieved + factor * value
        return retrieved

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weights, *values = ctx.saved_tensors
        products = (
            torch.ops.ela_mm.head_products
            if _wants_operator(grad) else _products)
        of_weights = products(grad, values, weights.shape[1])
        return of_weights.to(weights.dtype), *(
            factor * grad for factor in per_channel(weights, grad))


class TracedValue(torch.autograd.Function):
    """A convolution without bias, for compilers.

    ``apply`` takes x (B, C, H, W), the kernel (C, 1, k, k), and ``geometry``, a
    list of seven numbers: stride, padding and dilation (two each), then groups.
    It returns (B, C, H, W).
    """

    @staticmethod
    def forward(ctx, x, kernel, geometry):
        ctx.save_for_backward(x, kernel)
        ctx.geometry = geometry
        return torch.conv2d(x, kernel, None, geometry[:2], geometry[2:4],
                            geometry[4:6], geometry[6])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, kernel = ctx.saved_tensors
        of_x, of_kernel = torch.ops.ela_mm.depthwise_backward(
            grad, x.to(grad.dtype), kernel.to(grad.dtype), ctx.geometry)
        return of_x.to(x.dtype), of_kernel.to(kernel.dtype), None


def traced_value(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Run a convolution without bias through :class:`TracedValue`."""
    return TracedValue.apply(
        x, conv.weight,
        [*conv.stride, *conv.padding, *conv.dilation, conv.groups])


def is_traced(*tensors: Tensor) -> bool:
    """Tell whether a compiler is tracing and one of the tensors needs a gradient."""
    return (CAN_TRACE and is_compiling() and not is_exporting()
            and torch.is_grad_enabled()
            and any(x.requires_grad for x in tensors))
