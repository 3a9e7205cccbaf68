"""What compilers see in place of plain operations, and why.

Compilers fuse a plain sum over earlier values well, and the gradients of these
values too: a kernel reads each map once. Two things they do badly. These are
operators here, with the gradient of the plain operation:

- The gradient of the weights is one reduction over a map per value, T^2 / 2 in a
  stage. On a CPU compilers make each of them a slow loop.
- For the backward of a depthwise convolution Inductor lays out the maps in the
  order of dimensions that suits the kernel's tensor (C, 1, k, k), and so copies
  each of them there and back.
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
        weights (Tensor): (B, h, n).
        values (Tensor): (B, C, H, W), one of them.

    Returns:
        tuple: n factors (B, C, 1, 1), in the values' dtype. Channels are adjacent
        in memory: only then do compilers vectorise over them.
    """
    channels = values.shape[1] // weights.shape[1]  # of a head
    # Not repeat_interleave, which waits for the GPU in torch 2.0.
    return weights.to(values.dtype).permute(2, 0, 1).unsqueeze(-1).expand(
        -1, -1, -1, channels).flatten(2)[..., None, None].unbind(0)


def _products(x: Tensor, values: List[Tensor], heads: int) -> Tensor:
    """Inner products per head of x with n values (B, C, H, W): (B, h, n)."""
    products = [(x * value).sum((2, 3)) for value in values]  # (B, C)
    return torch.stack(products, -1).unflatten(1, (heads, -1)).sum(2)


def _head_products(x: Tensor, values: List[Tensor], heads: int) -> Tensor:
    return _products(_laid_out_as(values[0], x), values, heads)


def _depthwise_backward(grad: Tensor, x: Tensor, kernel: Tensor,
                        geometry: List[int]) -> Tuple[Tensor, Tensor]:
    """The gradients of x (B, C, H, W) and kernel (C, 1, k, k), with their strides.

    ``geometry`` is as for :class:`TracedValue`.
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


# Since torch 2.4. In earlier versions compilers see the plain operations.
CAN_TRACE = hasattr(torch.library, 'custom_op')
if CAN_TRACE:
    # The operators take maps of any strides. Unless the tag says so, compilers,
    # which use channels last on a CPU, copy maps to the strides they had when
    # traced.
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
    """Whether to use the operator: for a GPU, compilers fuse the plain one."""
    return grad.is_cpu


class TracedSum(torch.autograd.Function):
    """:func:`~ela_mm.models.layers.layer_attention.retrieve`, traced.

    ``apply`` takes the weights (B, h, n) and n values (B, C, H, W), and returns
    (B, C, H, W).
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
    """A convolution without bias, traced.

    ``apply`` takes x (B, C, H, W), the kernel (C, 1, k, k), and a list of
    stride, padding and dilation, two numbers each, and the number of groups.
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
    """Run a convolution without bias by :class:`TracedValue`."""
    return TracedValue.apply(
        x, conv.weight,
        [*conv.stride, *conv.padding, *conv.dilation, conv.groups])


def is_traced(*tensors: Tensor) -> bool:
    """Tell whether a compiler traces a step with gradients for any of these."""
    return (CAN_TRACE and is_compiling() and not is_exporting()
            and torch.is_grad_enabled()
            and any(x.requires_grad for x in tensors))
