"""The weighted sum over earlier layers' values: layer attention's hot loop.

As the equations are written, each layer concatenates all earlier values: in a
stage of T layers that copies T^2 / 2 values, in time and in memory. Here the
values of a stage lie in one buffer, a :class:`ValueBank`, each written once:

- The sum of a layer is one batched matrix product over the buffer, which
  reads each value once and writes the result once.
- For backward a layer keeps its small weights only. The sum and what follows
  it (norm, relu, scale) are recomputed from the buffer when they are needed,
  the sums of several layers in one product, which reads the buffer once.
- The gradient of a value sums over all later layers. Autograd would add T^2 /
  2 products to it, one by one; here the gradients of the retrieved features
  are collected in a buffer like the values', and a value's gradient is one
  batched product over it.

:func:`ela_mm.models.layers.layer_attention.retrieve` says the same in one line
per value.
"""
from typing import Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import batch_norm
from .keys import alias

# So many layers' sums are recomputed at once. More would read the buffer
# less often, and hold more sums at a time.
GROUP = 8


class ValueBank:
    """The values of one stage and forward pass in one buffer.

    Args:
        capacity (int): T, the number of values to come.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._count = 0
        self._layout: Optional[_Layout] = None
        # The buffer (T, B, h, L) as autograd sees it: writes and retrievals
        # form a chain, on which the buffer of gradients travels back.
        self._state: Optional[Tensor] = None
        self._retrievals: Optional[_Retrievals] = None

    def __len__(self) -> int:
        """n, the number of values so far."""
        return self._count

    def write(self, value: Tensor, head_dim: int) -> None:
        """Add a value.

        Args:
            value (Tensor): (B, C, H, W).
            head_dim (int): d.
        """
        if self._layout is None:
            self._layout = _Layout.of(value, head_dim)
            self._state = value.new_empty(self._capacity,
                                          *self._layout.flat_shape)
            self._retrievals = _Retrievals(self._state)
        self._state = _Write.apply(self._state, value, self._count,
                                   self._retrievals, self._layout)
        self._count += 1

    def retrieve(self,
                 weights: Tensor,
                 norm: Optional[nn.BatchNorm2d] = None,
                 relu: bool = False,
                 scale: Optional[Tensor] = None) -> Tensor:
        """Sum the values and form what follows the sum.

        Args:
            weights (Tensor): (B, h, n), the attention weights P; they sum to
                1 over n.
            norm (nn.BatchNorm2d, optional): That
                :func:`~ela_mm.models.layers.bank.batch_norm.can_be_recomputed`;
                None ends with the sum. Defaults to None.
            relu (bool): Whether a relu follows the norm. Defaults to False.
            scale (Tensor, optional): (C), multiplied last. Defaults to None.

        Returns:
            Tensor: (B, C, H, W).
        """
        affine = (None, None) if norm is None else (norm.weight, norm.bias)
        term, self._state = _Retrieve.apply(self._state, weights, *affine,
                                            scale, self._retrievals,
                                            self._layout, norm, relu)
        return term


class _Layout(NamedTuple):
    """How a map (B, C, H, W) lies in the bank: head by head.

    A head's d H W numbers lie side by side, whatever the map's memory format:
    a weighted sum is then one batched product over heads.
    """
    heads: int
    shape: torch.Size  # (B, C, H, W)
    channels_last: bool

    @classmethod
    def of(cls, x: Tensor, head_dim: int) -> '_Layout':
        return cls(
            x.shape[1] // head_dim, x.shape, not x.is_contiguous()
            and x.is_contiguous(memory_format=torch.channels_last))

    @property
    def flat_shape(self) -> Tuple[int, int, int]:
        """(B, h, L), where L = d H W."""
        return self.shape[0], self.heads, self.shape[1:].numel() // self.heads

    def flat(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, L), a copy only if it must be one."""
        return self._split(x).reshape(self.flat_shape)

    def write(self, slot: Tensor, x: Tensor) -> None:
        """Copy (B, C, H, W) into a slot (B, h, L)."""
        heads = self._split(x)
        slot.view(heads.shape).copy_(heads)

    def map(self, flat: Tensor) -> Tensor:
        """(B, h, L) -> (B, C, H, W), a copy in channels last.

        Also one of several sums, which do not lie in one piece, is copied.
        """
        if not self.channels_last:
            return flat.reshape(self.shape)
        x = torch.empty(
            self.shape,
            dtype=flat.dtype,
            device=flat.device,
            memory_format=torch.channels_last)
        heads = self._split(x)
        heads.copy_(flat.view(heads.shape))
        return x

    def _split(self, x: Tensor) -> Tensor:
        """A view (B, h, d, H, W), or (B, h, H, W, d) in channels last."""
        x = x.unflatten(1, (self.heads, -1))  # (B, h, d, H, W)
        return x.movedim(2, -1) if self.channels_last else x


class _Retrievals:
    """The retrievals of a stage and forward pass.

    Attributes:
        count (int): Of the retrievals so far.
        weights (Tensor): (T, B, h, T), by retrieval and value, without
            gradient; 0 for values that a retrieval did not see.
    """

    def __init__(self, state: Tensor) -> None:
        self.count = 0
        self.weights = state.new_zeros(*state.shape[:3], len(state))
        self._recomputed: Dict[int, Tensor] = {}

    def add(self, weights: Tensor) -> None:
        """Add a retrieval's weights (B, h, n)."""
        self.weights[self.count, ..., :weights.shape[-1]] = weights
        self.count += 1

    def recompute(self, number: int, values: Tensor) -> Tensor:
        """A retrieval's sum, for backward.

        Args:
            number (int): Of the retrieval. Backward comes from the last; the
                sums of the ones before it are formed along with it.
            values (Tensor): (n, B, h, L), that it saw.

        Returns:
            Tensor: (B, h, L).
        """
        count = len(values)
        if count == 1:
            return values[0]
        if number not in self._recomputed:
            first = max(number - GROUP + 1, 0)
            weights = self.weights[first:number + 1, ..., :count].permute(
                1, 2, 0, 3).flatten(0, 1)  # (B h, g, n)
            # (B h, g, n) @ (B h, n, L)
            sums = torch.bmm(weights, _by_head(values)).view(
                *values.shape[1:3], -1, values.shape[3])  # (B, h, g, L)
            self._recomputed = dict(enumerate(sums.unbind(2), start=first))
        return self._recomputed.pop(number)


class _Write(torch.autograd.Function):
    """A value enters the bank."""

    @staticmethod
    def forward(ctx, state: Tensor, value: Tensor, slot: int,
                retrievals: _Retrievals, layout: _Layout) -> Tensor:
        ctx.slot, ctx.retrievals, ctx.layout = slot, retrievals, layout
        ctx.first = retrievals.count  # the first retrieval that sees it
        ctx.set_materialize_grads(False)
        # An alias with a version of its own: other layers saved other slots.
        state = alias(state)
        layout.write(state[slot], value)
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx, gradients: Optional[Tensor]):
        # gradients (T, B, h, L): of retrieved features, by retrieval
        if gradients is None or not ctx.needs_input_grad[1]:
            return gradients, None, None, None, None
        later = slice(ctx.first, ctx.retrievals.count)
        weights = ctx.retrievals.weights[later, ..., ctx.slot]  # (m, B, h)
        grad = ctx.layout.map(
            _weighted_sum(weights.permute(1, 2, 0), gradients[later]))
        return gradients, grad, None, None, None


class _Retrieve(torch.autograd.Function):
    """A layer retrieves from the bank; norm, relu and scale follow."""

    @staticmethod
    def forward(ctx, state: Tensor, weights: Tensor, gamma: Optional[Tensor],
                beta: Optional[Tensor], scale: Optional[Tensor],
                retrievals: _Retrievals, layout: _Layout,
                norm: Optional[nn.BatchNorm2d],
                relu: bool) -> Tuple[Tensor, Tensor]:
        values = state[:weights.shape[-1]]  # (n, B, h, L)
        ctx.number, ctx.count = retrievals.count, len(values)
        ctx.retrievals, ctx.weights_dtype = retrievals, weights.dtype
        ctx.layout, ctx.relu, ctx.norm = layout, relu, norm is not None
        retrievals.add(weights)
        # Softmax over one layer is 1, whatever its logit.
        term = layout.map(values[0] if len(values) == 1 else _weighted_sum(
            weights, values))  # (B, C, H, W)
        mean = var = None
        if norm is not None:
            ctx.eps = norm.eps
            mean, var, ctx.own_statistics = batch_norm.statistics(norm, term)
            term = batch_norm.normalize(term, gamma, beta, mean, var, norm.eps)
        elif len(values) == 1:
            term = term.clone()  # the bank's own
        if relu:
            term.relu_()
        if scale is not None:
            term = term * _along_channels(scale, term)
        state = alias(state)
        ctx.save_for_backward(state, gamma, beta, scale, mean, var)
        ctx.set_materialize_grads(False)
        return term, state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Optional[Tensor], gradients: Optional[Tensor]):
        # grad (B, C, H, W), gradients (T, B, h, L)
        if grad is None:
            if gradients is not None:
                gradients[ctx.number].zero_()
            return gradients, *[None] * 8
        state, gamma, beta, scale, mean, var = ctx.saved_tensors
        values = state[:ctx.count]  # (n, B, h, L)
        grad_gamma = grad_beta = grad_scale = None
        if ctx.norm:
            retrieved = ctx.layout.map(
                ctx.retrievals.recompute(ctx.number, values))  # (B, C, H, W)
            if ctx.relu or scale is not None:
                term = batch_norm.normalize(retrieved, gamma, beta, mean, var,
                                            ctx.eps)  # (B, C, H, W)
            if scale is not None:
                out = term.relu() if ctx.relu else term
                grad_scale = (grad * out).sum((0, 2, 3)).to(scale.dtype)
                grad = grad * _along_channels(scale, grad)
            if ctx.relu:
                grad = torch.ops.aten.threshold_backward(grad, term, 0)
            grad, grad_gamma, grad_beta = batch_norm.normalize_backward(
                grad, retrieved, gamma, mean, var, ctx.eps, ctx.own_statistics)
        if ctx.needs_input_grad[0]:
            if gradients is None:  # the last retrieval that has a gradient
                # Anomaly detection would take what lies in memory for NaN.
                make = (
                    torch.zeros_like
                    if torch.is_anomaly_enabled() else torch.empty_like)
                gradients = make(state)
                gradients[ctx.number + 1:].zero_()
            ctx.layout.write(gradients[ctx.number], grad)
        grad_weights = None
        if ctx.needs_input_grad[1] and ctx.count == 1:
            grad_weights = values.new_zeros(
                *values.shape[1:3], 1, dtype=ctx.weights_dtype)
        elif ctx.needs_input_grad[1]:
            flat = (
                gradients[ctx.number]
                if ctx.needs_input_grad[0] else ctx.layout.flat(grad))
            grad_weights = _head_products(flat, values).to(ctx.weights_dtype)
        return (gradients, grad_weights, grad_gamma, grad_beta, grad_scale,
                None, None, None, None)


def _by_head(maps: Tensor) -> Tensor:
    """A view (n, B, h, L) -> (B h, n, L)."""
    return maps.flatten(1, 2).transpose(0, 1)


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Equation 5 in the bank: (B, h, n), (n, B, h, L) -> (B, h, L)."""
    # Batched products of strided rows would run one by one.
    weights = weights.to(values.dtype).flatten(0, 1).unsqueeze(1).contiguous()
    # (B h, 1, n) @ (B h, n, L)
    return torch.bmm(weights, _by_head(values)).view(values.shape[1:])


def _head_products(x: Tensor, values: Tensor) -> Tensor:
    """Inner products per head: (B, h, L), (n, B, h, L) -> (B, h, n)."""
    # (B h, 1, L) @ (B h, L, n)
    products = torch.bmm(
        x.flatten(0, 1).unsqueeze(1),
        _by_head(values).transpose(1, 2))
    return products.view(*x.shape[:2], -1)


def _along_channels(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype).view(1, -1, 1, 1)
