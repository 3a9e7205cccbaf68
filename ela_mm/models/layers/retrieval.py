"""The weighted sum over earlier layers' values: layer attention's hot loop.

As the equations are written, each layer concatenates all earlier values: in a
stage of T layers that copies T^2 / 2 values, in time and in memory. Here the
values of a stage lie in one buffer, a :class:`ValueBank`, each written once:

- The sum of a layer is one batched matrix product over the buffer, which
  reads each value once and writes the result once.
- For backward a layer keeps its small weights only. What follows the sum
  (norm, relu, scale) is formed again from the buffer when it is needed.
- The gradient of a value sums over all later layers. Autograd would add T^2 /
  2 products to it, one by one; here the gradients of the retrieved features
  are collected in a buffer like the values', and a value's gradient is one
  batched product over it.

:func:`retrieve` says the same in one line per value. It is what compilers
and exporters see, who fuse it themselves.
"""
from typing import Callable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .weighing import alias


def retrieve(weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Sum the values of a stage's layers, weighted per sample and head.

    Equation 5 of the paper, o = sum_i P[i] * v_i.

    Args:
        weights (Tensor): (B, h, n), the attention weights P of this layer
            over the n layers in memory.
        values (Sequence[Tensor]): n tensors (B, C, H, W); head j owns the
            channels j * C / h to (j + 1) * C / h.

    Returns:
        Tensor: (B, C, H, W), in the values' dtype.
    """
    factors = _per_channel(weights.to(values[0].dtype), values[0])
    retrieved = factors[0] * values[0]  # (B, C, H, W)
    for factor, value in zip(factors[1:], values[1:]):
        # In place: autograd keeps factor and value, never the partial sums.
        retrieved.addcmul_(factor, value)
    return retrieved


class ValueBank:
    """The values of one stage and forward pass in one buffer.

    Args:
        capacity (int): T, the number of values to come.

    Attributes:
        values (List[Tensor]): n tensors (B, C, H, W), views of the buffer
            that carry no gradient.
    """

    def __init__(self, capacity: int) -> None:
        self.values: List[Tensor] = []
        self._capacity = capacity
        self._buffer: Optional[Tensor] = None  # (T, B, C, H, W)
        # The buffer as autograd sees it: writes and retrievals form a chain,
        # on which the buffer of gradients travels back.
        self._state: Optional[Tensor] = None
        # The weights (B, h, n) of the retrievals so far, without gradient.
        self._weights: List[Tensor] = []

    def write(self, value: Tensor) -> None:
        """Add a value.

        Args:
            value (Tensor): (B, C, H, W).
        """
        if self._buffer is None:
            self._buffer = _buffer(value, self._capacity, torch.empty)
            self._state = self._buffer
        slot = len(self.values)
        self._buffer[slot].copy_(value.detach())
        self.values.append(self._buffer[slot])
        self._state = _Write.apply(self._state, value, slot, self._weights)

    def retrieve(self,
                 weights: Tensor,
                 norm: Optional[nn.BatchNorm2d] = None,
                 relu: bool = False,
                 scale: Optional[Tensor] = None) -> Tensor:
        """Sum the values and form what follows the sum.

        Args:
            weights (Tensor): (B, h, n), as in :func:`retrieve`; they sum to
                1 over n.
            norm (nn.BatchNorm2d, optional): That :func:`fits_bank`; None ends
                with the sum. Defaults to None.
            relu (bool): Whether a relu follows the norm. Defaults to False.
            scale (Tensor, optional): (C), multiplied last. Defaults to None.

        Returns:
            Tensor: (B, C, H, W).
        """
        affine = (None, None) if norm is None else (norm.weight, norm.bias)
        term, self._state = _Retrieve.apply(self._state, weights, *affine,
                                            scale, self._weights, norm, relu)
        return term


def fits_bank(norm: nn.Module) -> bool:
    """Whether the bank can form a norm again: a plain batch norm.

    Args:
        norm (nn.Module): Any norm. Others (group norm, synchronised batch
            norm) run as modules after the bank's sum, and keep their input.

    Returns:
        bool: Also False where a hook waits for the module to be called.
    """
    return (type(norm) is nn.BatchNorm2d and norm.affine
            and norm.track_running_stats and norm.momentum is not None
            and not norm._forward_hooks and not norm._forward_pre_hooks)


class _Write(torch.autograd.Function):
    """A value enters the bank."""

    @staticmethod
    def forward(ctx, state: Tensor, value: Tensor, slot: int,
                weights: List[Tensor]) -> Tensor:
        ctx.slot, ctx.weights = slot, weights
        ctx.first = len(weights)  # the first retrieval that sees it
        ctx.set_materialize_grads(False)
        return alias(state)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradients: Optional[Tensor]):
        # gradients (T, B, C, H, W): of retrieved features, by retrieval
        if gradients is None or not ctx.needs_input_grad[1]:
            return gradients, None, None, None
        weights = torch.stack([w[..., ctx.slot]
                               for w in ctx.weights[ctx.first:]], -1)
        later = gradients[ctx.first:len(ctx.weights)]
        return gradients, _weighted_sum(weights, later), None, None


class _Retrieve(torch.autograd.Function):
    """A layer retrieves from the bank; norm, relu and scale follow."""

    @staticmethod
    def forward(ctx, state: Tensor, weights: Tensor, gamma: Optional[Tensor],
                beta: Optional[Tensor], scale: Optional[Tensor],
                record: List[Tensor], norm: Optional[nn.BatchNorm2d],
                relu: bool) -> Tuple[Tensor, Tensor]:
        n = weights.shape[-1]
        ctx.number, ctx.capacity = len(record), len(state)
        ctx.relu, ctx.norm = relu, norm is not None
        record.append(weights.detach())
        term = _retrieved(weights, state[:n])  # (B, C, H, W)
        mean = var = None
        if norm is not None:
            ctx.training, ctx.eps = norm.training, norm.eps
            mean, var = (
                batch_statistics(norm, term) if norm.training else
                (norm.running_mean, norm.running_var))
            term = _normalized(term, gamma, beta, mean, var, norm.eps)
        elif n == 1:
            term = term.clone()  # the bank's own
        if relu:
            term.relu_()
        if scale is not None:
            term = term * _along_channels(scale, term)
        # An alias with a version of its own: later writes go to other slots.
        ctx.save_for_backward(alias(state)[:n], weights, gamma, beta, scale,
                              mean, var)
        ctx.set_materialize_grads(False)
        return term, alias(state)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Optional[Tensor], gradients: Optional[Tensor]):
        # grad (B, C, H, W), gradients (T, B, C, H, W)
        if grad is None:
            if gradients is not None:
                gradients[ctx.number].zero_()
            return gradients, *[None] * 7
        values, weights, gamma, beta, scale, mean, var = ctx.saved_tensors
        grad_gamma = grad_beta = grad_scale = None
        if ctx.norm:
            retrieved = _retrieved(weights, values)  # (B, C, H, W)
            if ctx.relu or scale is not None:
                term = _normalized(retrieved, gamma, beta, mean, var, ctx.eps)
            if scale is not None:
                out = term.relu() if ctx.relu else term
                grad_scale = (grad * out).sum((0, 2, 3)).to(scale.dtype)
                grad = grad * _along_channels(scale, grad)
            if ctx.relu:
                grad = torch.ops.aten.threshold_backward(grad, term, 0)
            grad, grad_gamma, grad_beta = (
                torch.ops.aten.native_batch_norm_backward(
                    grad, retrieved, gamma, mean, var, mean,
                    torch.rsqrt(var + ctx.eps), ctx.training, ctx.eps,
                    [True, True, True]))
        grad_weights = None
        if ctx.needs_input_grad[1]:
            grad_weights = torch.zeros_like(weights) if len(
                values) == 1 else _head_products(
                    grad, values, weights.shape[1]).to(weights.dtype)
        if ctx.needs_input_grad[0]:
            if gradients is None:  # the last retrieval that has a gradient
                # Anomaly detection would take what lies in memory for NaN.
                gradients = _buffer(
                    values[0], ctx.capacity, torch.zeros
                    if torch.is_anomaly_enabled() else torch.empty)
                gradients[ctx.number + 1:].zero_()
            gradients[ctx.number].copy_(grad)
        return (gradients, grad_weights, grad_gamma, grad_beta, grad_scale,
                None, None, None)


def batch_statistics(norm: nn.BatchNorm2d,
                     x: Tensor) -> Tuple[Tensor, Tensor]:
    """Mean and variance of a batch, added to a norm's running statistics.

    Args:
        norm (nn.BatchNorm2d): In training mode; changed.
        x (Tensor): (B, C, H, W).

    Returns:
        tuple: Mean (C) and biased variance (C).
    """
    batch, channels, height, width = x.shape
    norm.num_batches_tracked.add_(1)
    if (x.device.type != 'cpu' or not x.is_contiguous()
            or x.dtype not in (torch.float32, torch.float64)):
        _, mean, invstd = torch.native_batch_norm(
            x, None, None, norm.running_mean, norm.running_var, True,
            norm.momentum, norm.eps)
        return mean, invstd.pow(-2) - norm.eps
    # On a CPU batch norm sums one number after the other, in double. Group
    # norm's moments are as exact, and take a seventh of the time.
    _, means, rstds = torch.native_group_norm(x, None, None, batch, channels,
                                              height * width, channels,
                                              norm.eps)  # (B, C)
    mean = means.mean(0)
    var = (rstds.pow(-2) + (means - mean).square()).mean(0) - norm.eps
    count = batch * height * width
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var * (count / (count - 1)), norm.momentum)
    return mean, var


def _normalized(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor,
                var: Tensor, eps: float) -> Tensor:
    return torch.native_batch_norm(x, gamma, beta, mean, var, False, 0., eps)[0]


def _buffer(value: Tensor, capacity: int, make: Callable) -> Tensor:
    """A buffer (T, B, C, H, W) whose slots lie in memory as a value does."""
    batch, channels, height, width = value.shape
    options = dict(dtype=value.dtype, device=value.device)
    if _channels_last(value):
        return make(capacity, batch, height, width, channels,
                    **options).permute(0, 1, 4, 2, 3)
    return make(capacity, *value.shape, **options)


def _channels_last(value: Tensor) -> bool:
    return not value.is_contiguous() and value.is_contiguous(
        memory_format=torch.channels_last)


def _retrieved(weights: Tensor, values: Tensor) -> Tensor:
    """The weighted sum; the value itself (no copy) if there is only one."""
    # Softmax over one layer is 1, whatever its logit.
    return values[0] if len(values) == 1 else _weighted_sum(weights, values)


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """:func:`retrieve` from a buffer (n, B, C, H, W), without gradient."""
    if len(values) == 1 or not values[0].is_contiguous():
        return retrieve(weights, values.unbind())  # no product over heads
    count, (batch, heads) = len(values), weights.shape[:2]
    weights = weights.to(values.dtype).view(batch * heads, 1, count)
    by_head = values.view(count, batch * heads, -1).transpose(0, 1)
    # (B h, 1, n) @ (B h, n, d H W)
    return torch.bmm(weights, by_head).view(values.shape[1:])


def _head_products(x: Tensor, values: Tensor, heads: int) -> Tensor:
    """Inner products per head: (B, C, H, W), (n, B, C, H, W) -> (B, h, n)."""
    count, batch = values.shape[:2]
    if not values[0].is_contiguous():
        products = [(x * value).sum((2, 3)) for value in values]  # (B, C)
        return torch.stack(products, -1).view(batch, heads, -1,
                                              count).sum(2)  # (B, h, n)
    x = x.reshape(batch * heads, 1, -1)
    values = values.view(count, batch * heads, -1).permute(1, 2, 0)
    # (B h, 1, d H W) @ (B h, d H W, n)
    return torch.bmm(x, values).view(batch, heads, count)


def _per_channel(weights: Tensor, value: Tensor) -> Tuple[Tensor, ...]:
    """Weights (B, h, n) as n factors (B, C, 1, 1)."""
    batch, channels = value.shape[:2]
    weights = weights.repeat_interleave(
        channels // weights.shape[1], dim=1)  # (B, C, n)
    return weights.view(batch, channels, 1, 1, -1).unbind(-1)


def _along_channels(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype).view(1, -1, 1, 1)
