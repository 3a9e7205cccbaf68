"""The weighted sum for compilers: one operation for the gradient of all weights.

Compilers fuse a plain sum and the gradients of its values well. The gradient
of the weights is a reduction over a map for each value, T^2 / 2 of them in a
stage, which they write as so many loops of their own; here it is one operator
for all values of a layer.
"""
from typing import List, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...compat.compiling import is_compiling, is_exporting


def _head_products(x: Tensor, values: List[Tensor], heads: int) -> Tensor:
    """Inner products per head of x and n values (B, C, H, W): (B, h, n)."""
    if not x.is_contiguous():  # in channels last
        return torch.stack([(x * value).sum((2, 3)) for value in values],
                           -1).unflatten(1, (heads, -1)).sum(2)
    rows = x.view(x.shape[0] * heads, 1, -1)  # (B h, 1, L)
    products = [  # (B h, 1, L) @ (B h, L, 1)
        torch.bmm(rows, value.reshape(len(rows), -1, 1)) for value in values
    ]
    return torch.cat(products, 2).view(x.shape[0], heads, -1)


# Since torch 2.4; before, compilers see the sum as it is.
CAN_TRACE = hasattr(torch.library, 'custom_op')
if CAN_TRACE:
    head_products = torch.library.custom_op(
        'ela_mm::head_products', _head_products, mutates_args=())

    @head_products.register_fake
    def _(x, values, heads):
        return x.new_empty(x.shape[0], heads, len(values))


class TracedSum(torch.autograd.Function):
    """:func:`~ela_mm.models.layers.layer_attention.retrieve`, traced.

    ``apply`` takes the weights (B, h, n) and n values (B, C, H, W), and returns
    (B, C, H, W).
    """

    @staticmethod
    def forward(ctx, weights, *values):
        ctx.save_for_backward(weights, *values)
        factors = _factors(weights, values)
        retrieved = factors[0] * values[0]
        for factor, value in zip(factors[1:], values[1:]):
            retrieved = retrieved + factor * value
        return retrieved

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weights, *values = ctx.saved_tensors
        of_weights = torch.ops.ela_mm.head_products(
            grad, values, weights.shape[1]).to(weights.dtype)
        return of_weights, *(
            factor * grad for factor in _factors(weights, values))


def _factors(weights: Tensor, values: Sequence[Tensor]) -> Sequence[Tensor]:
    """n of (B, C, 1, 1), in the values' dtype."""
    batch, channels = values[0].shape[:2]
    return weights.to(values[0].dtype).repeat_interleave(
        channels // weights.shape[1], dim=1).view(
            batch, channels, 1, 1, -1).unbind(-1)


def is_traced(weights: Tensor) -> bool:
    """Tell whether a compiler traces a step that will go backward."""
    return (CAN_TRACE and is_compiling() and not is_exporting()
            and torch.is_grad_enabled() and weights.requires_grad)
