"""The bank for compilers: a few operators a layer, however many values.

Written as a sum over a list, a stage of T layers is T^2 / 2 products, and as
many again for each of its gradients, one by one in a compiler's graph. Here a
stage's values lie in one buffer, as in
:class:`~ela_mm.models.layers.bank.values.ValueBank`, and so do the gradients of
its sums. What reads or writes a buffer is an operator of ``torch.library``, which
a compiler takes as it is; norm, relu and all else it still writes itself.

Backward reads the buffers when the forward pass has filled them, so that a
compiler keeps each once, not once a layer.
"""
from typing import Iterable, List, Optional

import torch
from torch import Tensor, nn

from ...compat.compiling import is_compiling, is_exporting
from .bank.values import head_products, weighted_sum


class TracedBank:
    """The values of one stage and forward pass, as compilers see them.

    Args:
        values (int): T, the number of values to come.
        retrievals (int): R, the number of retrievals to come.
    """

    def __init__(self, values: int, retrievals: int) -> None:
        self._values, self._retrievals = values, retrievals
        self._slot = self._number = -1  # of the last value and retrieval
        self._unseen: List[Tensor] = []  # values that no retrieval has seen
        self._state: Optional[Tensor] = None  # (T, B, h, L)
        self._weights: Optional[Tensor] = None  # (T, B, h, R)
        self._gradients: Optional[Tensor] = None  # (R, B, h, L)

    def add(self, value: Tensor, heads: int) -> None:
        """Add a value.

        Args:
            value (Tensor): (B, C, H, W).
            heads (int): h.
        """
        if self._state is None:
            batch, row = value.shape[0], value.shape[1:].numel() // heads
            self._state = value.new_empty(self._values, batch, heads, row)
            self._weights = value.new_zeros(self._values, batch, heads,
                                            self._retrievals)
            self._gradients = value.new_zeros(self._retrievals, batch, heads,
                                              row)
        self._slot += 1
        self._unseen.append(value)
        with torch.no_grad():
            torch.ops.ela_mm.write_map(self._state, value.detach(), self._slot)

    def retrieve(self, weights: Tensor) -> Tensor:
        """Sum the values so far.

        Args:
            weights (Tensor): (B, h, n).

        Returns:
            Tensor: (B, C, H, W), in the values' dtype.
        """
        weights = weights.to(self._state.dtype)
        self._number += 1
        with torch.no_grad():
            torch.ops.ela_mm.write_weights(self._weights, weights.detach(),
                                           self._number)
        retrieved = torch.ops.ela_mm.retrieve(
            weights, self._unseen, self._state, self._weights,
            self._gradients, self._slot, self._number)
        self._unseen = []
        return retrieved


def _write_map(buffer: Tensor, x: Tensor, slot: int) -> None:
    """Copy (B, C, H, W) into a buffer (n, B, h, L)."""
    buffer[slot].copy_(x.reshape(buffer.shape[1:]))


def _write_weights(buffer: Tensor, weights: Tensor, number: int) -> None:
    """Copy a retrieval's weights (B, h, n) into a buffer (T, B, h, R)."""
    buffer[:weights.shape[-1], ..., number] = weights.permute(2, 0, 1)


def _retrieve(weights: Tensor, unseen: List[Tensor], state: Tensor,
              all_weights: Tensor, gradients: Tensor, slot: int,
              number: int) -> Tensor:
    """The sum (B, C, H, W). ``unseen`` are the values that it sees first."""
    return weighted_sum(weights, state[:weights.shape[-1]]).view(
        unseen[-1].shape)


def _weights_gradient(grad: Tensor, state: Tensor, seen: int) -> Tensor:
    """Of the weights (B, h, n) of a sum with the gradient (B, C, H, W)."""
    return head_products(grad.reshape(state.shape[1:]), state[:seen])


def _value_gradient(grad: Tensor, all_weights: Tensor, gradients: Tensor,
                    slot: int, first: int) -> Tensor:
    """Of a value (B, C, H, W) that the retrievals from ``first`` on saw."""
    return weighted_sum(all_weights[slot, ..., first:],
                        gradients[first:]).view(grad.shape)


def _keep(ctx, inputs, output) -> None:
    weights, unseen, ctx.state, ctx.weights, ctx.gradients, slot, number = inputs
    # Not by save_for_backward, which wants what later layers leave alone.
    ctx.seen, ctx.number = weights.shape[-1], number
    ctx.slots = range(slot - len(unseen) + 1, slot + 1)


def _retrieve_backward(ctx, grad):
    grad = grad.contiguous()  # (B, C, H, W)
    torch.ops.ela_mm.write_map(ctx.gradients, grad, ctx.number)
    # Later retrievals have written theirs: each is a step nearer to the loss.
    of_unseen = [
        torch.ops.ela_mm.value_gradient(grad, ctx.weights, ctx.gradients, slot,
                                        ctx.number) for slot in ctx.slots
    ]
    of_weights = torch.ops.ela_mm.weights_gradient(grad, ctx.state, ctx.seen)
    return of_weights, of_unseen, *[None] * 5


# Since torch 2.4; before, compilers see the plain sum.
CAN_TRACE = hasattr(torch.library, 'custom_op')
if CAN_TRACE:
    for _function, _written in ((_write_map, 'buffer'),
                                (_write_weights, 'buffer'), (_retrieve, ()),
                                (_weights_gradient, ()), (_value_gradient, ())):
        _operator = torch.library.custom_op(
            'ela_mm::' + _function.__name__[1:], _function,
            mutates_args=_written and (_written, ))
        if _written:
            _operator.register_fake(lambda *args: None)

    @torch.library.register_fake('ela_mm::retrieve')
    def _(weights, unseen, *args):
        return unseen[-1].new_empty(unseen[-1].shape)

    @torch.library.register_fake('ela_mm::weights_gradient')
    def _(grad, state, seen):
        return grad.new_empty(*state.shape[1:3], seen)

    @torch.library.register_fake('ela_mm::value_gradient')
    def _(grad, *args):
        return grad.new_empty(grad.shape)

    torch.library.register_autograd(
        'ela_mm::retrieve', _retrieve_backward, setup_context=_keep)


def is_traced(x: Tensor, layers: Iterable[nn.Module]) -> bool:
    """Decide whether a stage's values lie in a :class:`TracedBank`.

    Args:
        x (Tensor): (B, C, H, W), the stage's input.
        layers (Iterable[LayerAttention]): Those that will leave a value.

    Returns:
        bool: True where a compiler traces a step that may go backward, and
        nobody waits for a module that the bank would not call.
    """
    return (CAN_TRACE and is_compiling() and not is_exporting()
            and torch.is_grad_enabled() and x.numel() > 0
            and all(layer.can_bank() for layer in layers))
