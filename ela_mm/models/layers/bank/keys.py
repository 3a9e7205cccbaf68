"""Attention weights over the layers of a stage (equation 4), and the bank of keys.

Query and key come from the pooled output of a block, so all tensors here are
small, and the cost is the number of operations. To save some, query and key come
from one matrix product, the scale is part of the product with the keys, and the
gradients of key and query are adjacent in memory, for the backward of the first
product. ``LayerAttention._weigh`` computes the same in plain operations.
"""
import math
from contextlib import nullcontext
from typing import ContextManager, List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ....compat.products import scaled_bmm
from ....errors import UsageError


class KeyBank:
    """A buffer for the keys of one stage in one forward pass.

    Args:
        capacity (int): T, the number of keys to come.

    Attributes:
        capacity (int): T, as above.
        count (int): The number of keys so far.
        state (Tensor | None): (T + 1, B, h, d), the buffer as autograd sees it:
            the layers form a chain, and the keys' gradients travel back along it
            in a buffer of the same shape. In that buffer the row after a layer's
            key is no longer needed, and takes the query's gradient. None before
            the first key.
        tracked (List[Tensor]): ``num_batches_tracked`` of the stage's norms, all
            incremented after the last key, in one operation.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self.state: Optional[Tensor] = None
        self.tracked: List[Tensor] = []

    def next_slot(self, x: Tensor, head_dim: int) -> int:
        """Reserve a row of the buffer for a key.

        Args:
            x (Tensor): (B, C, H, W), the block's output.
            head_dim (int): d, channels per head.

        Returns:
            int: The index of the row.

        Raises:
            UsageError: If there are T keys already.
        """
        if self.count == self.capacity:
            raise UsageError(
                'attention runs again on the keys and values of a forward pass '
                'that is over, as under activation checkpointing of an '
                'attention layer by itself: checkpoint whole stages instead, '
                "such as 'backbone.layer1'")
        if self.state is None:
            self.state = x.new_empty(
                (self.capacity + 1, x.shape[0], x.shape[1] // head_dim,
                 head_dim),
                dtype=at_least_float32(x.dtype))
        self.count += 1
        return self.count - 1


def windows(pooled: Tensor, size: int) -> Tensor:
    """Unfold the windows that a convolution over channels sees.

    Args:
        pooled (Tensor): (B, C), the pooled features.
        size (int): k, the convolution's kernel size; odd.

    Returns:
        Tensor: (k, B C), with zeros beyond the first and last channel.
    """
    # The batch becomes the height of one image: a single product covers it.
    return F.unfold(pooled[None, None], (1, size), padding=(0, size // 2))[0]


def windows_backward(grad: Tensor, batch: int) -> Tensor:
    """Compute the gradient of the pooled features from that of their windows.

    Args:
        grad (Tensor): (k, B C), the gradient of the result of :func:`windows`.
        batch (int): B, the batch size.

    Returns:
        Tensor: (B, C).
    """
    size, total = grad.shape
    return F.fold(
        grad[None], (batch, total // batch), (1, size),
        padding=(0, size // 2))[0, 0]


def weigh(query: Tensor, keys: Tensor) -> Tensor:
    """Compute P = softmax(q k^T / sqrt(d)) over n >= 2 layers.

    Args:
        query (Tensor): (B, h, d), this layer's query; contiguous.
        keys (Tensor): (n, B, h, d), the keys up to this layer's.

    Returns:
        Tensor: (B, h, n), the attention weights P.
    """
    logits = scaled_bmm(  # (B h, 1, d) @ (B h, d, n)
        query.flatten(0, 1).unsqueeze(1),
        by_head(keys).transpose(1, 2), 1 / math.sqrt(keys.shape[-1]))
    return torch.softmax(logits, -1).view(*query.shape[:2], -1)


def weigh_backward(grad: Tensor, weights: Tensor, query: Tensor, keys: Tensor,
                   grad_keys: Tensor, grad_query: Tensor) -> None:
    """Compute the gradients of the arguments of :func:`weigh`.

    Args:
        grad (Tensor): (B, h, n), the gradient of P.
        weights (Tensor): (B, h, n), P.
        query (Tensor): (B, h, d), this layer's query.
        keys (Tensor): (n, B, h, d), the keys.
        grad_keys (Tensor): (n, B, h, d), the buffer to which the keys' gradients
            are added.
        grad_query (Tensor): (B, h, d), the buffer to which the query's gradient
            is written; contiguous.
    """
    scale = 1 / math.sqrt(keys.shape[-1])
    grad = torch._softmax_backward_data(
        grad, weights, -1, weights.dtype)  # (B, h, n)
    out = grad_query.view(-1, 1, keys.shape[-1])  # (B h, 1, d)
    scaled_bmm(  # (B h, 1, n) @ (B h, n, d)
        grad.flatten(0, 1).unsqueeze(1), by_head(keys), scale, out=out)
    grad_keys.addcmul_(
        grad.permute(2, 0, 1).unsqueeze(-1), query, value=scale)


def by_head(rows: Tensor) -> Tensor:
    """View (n, B, h, L) as (B h, n, L)."""
    return rows.flatten(1, 2).transpose(0, 1)


def alias(state: Tensor) -> Tensor:
    """Return the same memory with a version counter of its own.

    Inference tensors have no version counter, and are returned as they are.
    """
    return state if state.is_inference() else state.data


def average_pool(x: Tensor) -> Tensor:
    """Average over positions: (B, C, H, W) -> (B, C), float32 or wider."""
    # Sum, then divide: autograd's backward expands the gradient without a copy.
    pooled = x.sum((2, 3), dtype=at_least_float32(x.dtype))
    return pooled / (x.shape[2] * x.shape[3])


def without_autocast(device: torch.device) -> ContextManager:
    """Return a context that turns autocast off, where the device has it."""
    try:
        return torch.autocast(device.type, enabled=False)
    except RuntimeError:  # no autocast, such as on the meta device
        return nullcontext()


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in (torch.half, torch.bfloat16) else dtype
