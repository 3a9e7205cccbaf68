"""Attention weights: which earlier layers a layer retrieves from (equation 4).

Query and key come from the pooled output of a block, so everything here is
small, and there is much of it: left to autograd, some sixty operations a layer
that take longer to start than to run. A :class:`KeyBank` therefore runs a
layer's weighing as one function of autograd, with its gradient by hand.
``LayerAttention._weigh`` says the same in the framework's operations.
"""
import math
from contextlib import nullcontext
from typing import ContextManager, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ....errors import UsageError


class KeyBank:
    """The keys of one stage and forward pass in one buffer.

    Args:
        capacity (int): T, the number of keys to come.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._count = 0
        # The buffer (T, B, h, d) as autograd sees it: the layers form a
        # chain, on which the keys' gradients travel back.
        self._state: Optional[Tensor] = None

    def weigh(self, x: Tensor, key_kernel: Tensor,
              query_kernel: Optional[Tensor],
              head_dim: int) -> Optional[Tensor]:
        """Form a layer's key and query, and weigh the layers so far.

        Args:
            x (Tensor): (B, C, H, W), the block's output.
            key_kernel (Tensor): (1, 1, k), of the convolution over channels.
            query_kernel (Tensor, optional): (1, 1, k); None for a layer that
                does not attend.
            head_dim (int): d.

        Returns:
            Tensor | None: (B, h, n), the attention weights P.

        Raises:
            UsageError: If there are T keys already.
        """
        if self._count == self._capacity:
            raise UsageError(
                'attention runs again on the keys and values of a forward pass '
                'that is over, as under activation checkpointing of an '
                'attention layer by itself: checkpoint whole stages instead, '
                "such as 'backbone.layer1'")
        if self._state is None:
            self._state = x.new_empty(
                (self._capacity, x.shape[0], x.shape[1] // head_dim, head_dim),
                dtype=at_least_float32(x.dtype))
        with without_autocast(x.device):
            weights, self._state = _Weigh.apply(self._state, x, key_kernel,
                                                query_kernel, self._count)
        self._count += 1
        return weights


class _Weigh(torch.autograd.Function):
    """A key enters the bank, and a query meets all keys in it."""

    @staticmethod
    def forward(ctx, state: Tensor, x: Tensor, key_kernel: Tensor,
                query_kernel: Optional[Tensor],
                slot: int) -> Tuple[Optional[Tensor], Tensor]:
        state = alias(state)  # (T, B, h, d)
        ctx.slot, ctx.x_shape, ctx.x_dtype = slot, x.shape, x.dtype
        ctx.set_materialize_grads(False)
        kernels = [key_kernel] if query_kernel is None else [
            key_kernel, query_kernel
        ]
        kernels = torch.cat(kernels).squeeze(1).to(state.dtype)  # (2, k)
        pooled = average_pool(x)  # (B, C)
        key, *query = torch.matmul(
            kernels,
            _windows(pooled, kernels.shape[1]).transpose(1, 2)).view(
                x.shape[0], -1, *state.shape[2:]).unbind(1)  # (B, h, d) each
        state[slot].copy_(key)
        weights = query = query[0] if query else None
        if query is not None:
            logits = (state[:slot + 1] * query).sum(-1)  # (n, B, h)
            weights = torch.softmax(
                logits.permute(1, 2, 0) / math.sqrt(state.shape[-1]),
                dim=-1)  # (B, h, n)
        ctx.save_for_backward(alias(state), pooled, key_kernel, query_kernel,
                              query, weights)
        return weights, state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Optional[Tensor], grad_keys: Optional[Tensor]):
        # grad (B, h, n), grad_keys (T, B, h, d) of the later layers
        (keys, pooled, key_kernel, query_kernel, query,
         weights) = ctx.saved_tensors
        if grad is not None:
            count, head_dim = ctx.slot + 1, keys.shape[-1]
            grad_logits = torch._softmax_backward_data(
                grad, weights, -1, weights.dtype) / math.sqrt(head_dim)
            grad_logits = grad_logits.permute(2, 0, 1).unsqueeze(
                -1)  # (n, B, h, 1)
            grad_query = (grad_logits * keys[:count]).sum(0)  # (B, h, d)
            if grad_keys is None:  # the last layer that has a gradient
                grad_keys = torch.zeros_like(keys)
            grad_keys[:count].addcmul_(grad_logits, query)
        if grad_keys is None:
            return None, None, None, None, None
        kernels, projected = [key_kernel], [grad_keys[ctx.slot]]
        if grad is not None:
            kernels.append(query_kernel)
            projected.append(grad_query)
        kernels = torch.cat(kernels).squeeze(1).to(keys.dtype)  # (2, k)
        projected = torch.stack(projected, 1).view(
            pooled.shape[0], len(kernels), -1)  # (B, 2, C)
        size = kernels.shape[1]
        # (2, B C) @ (B C, k)
        grad_kernels = projected.transpose(0, 1).flatten(1) @ _windows(
            pooled, size).reshape(-1, size)
        grad_pooled = torch.matmul(
            _windows(projected, size).transpose(1, 2).flatten(2),
            kernels.flip(1).flatten())  # (B, C, 2 k) @ (2 k) = (B, C)
        grad_key, *grad_query = (
            g.view_as(key_kernel).to(key_kernel.dtype) for g in grad_kernels)
        height, width = ctx.x_shape[2:]
        grad_x = (grad_pooled / (height * width)).to(ctx.x_dtype)
        # Expanded, not copied: it is added to other gradients of x.
        return (grad_keys, grad_x[..., None, None].expand(ctx.x_shape),
                grad_key, grad_query[0] if grad_query else None, None)


def alias(state: Tensor) -> Tensor:
    """The same memory with a version of its own, which inference has not."""
    return state if state.is_inference() else state.data


def average_pool(x: Tensor) -> Tensor:
    """Average over positions: (B, C, H, W) -> (B, C), float32 at least."""
    # Sum, then divide: backward expands the gradient without a copy.
    pooled = x.sum((2, 3), dtype=at_least_float32(x.dtype))
    return pooled / (x.shape[2] * x.shape[3])


def _windows(x: Tensor, size: int) -> Tensor:
    """What a convolution over the last dimension sees: (.., C, size)."""
    return F.pad(x, (size // 2, size // 2)).unfold(-1, size, 1)


def without_autocast(device: torch.device) -> ContextManager:
    """Make a context without autocast, also where a device has none."""
    try:
        return torch.autocast(device.type, enabled=False)
    except RuntimeError:  # such as the meta device
        return nullcontext()


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in (torch.half, torch.bfloat16) else dtype
