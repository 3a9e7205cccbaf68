"""The weighted sum over earlier layers' values: layer attention's hot loop.

Taken literally, the equations have each layer concatenate all earlier values,
which copies T^2 / 2 values in a stage of T layers. Here the values of a stage are
in one buffer, a :class:`ValueBank`, each written once:

- The sum of a layer is one batched matrix product over the buffer. It reads
  each value once and writes the result once.
- For backward a layer keeps only its weights, which are small. The sum and what
  follows it (norm, relu, scale) are recomputed from the buffer.
- The gradient of a value is a sum over all later layers. Autograd would add up
  its T^2 / 2 products one by one, out of place. Here they are added in place,
  in one of two ways (:class:`ShortStage`, :class:`LongStage`), chosen by T.

:func:`ela_mm.models.layers.layer_attention.retrieve` computes the same in one
line per value.
"""
from typing import Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .keys import by_head

# The largest T for which ShortStage is used. Passes over a map in backward, of
# ShortStage and LongStage: 48 and 50 for T = 5, 67 and 63 for T = 6, 89 and 77 for
# T = 7. ShortStage launches one operation less per layer.
SHORT = 6

# How many layers' sums are recomputed at once. More would read the buffer less
# often, but hold more sums at a time.
GROUP = 12


class ValueBank:
    """A buffer for the values of one stage in one forward pass.

    Args:
        capacity (int): T, the number of values to come.

    Attributes:
        layout (Layout | None): How a value is stored in the buffer; None before
            the first value.
        state (Tensor | None): (T, B, h, L), the buffer as autograd sees it: the
            layers form a chain, and the buffer of gradients travels back along
            it.
        retrievals (ShortStage | LongStage | None): What backward needs to know
            about the layers that retrieved; None before the first value.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.layout: Optional[Layout] = None
        self.state: Optional[Tensor] = None
        self.retrievals: Optional[ShortStage] = None

    def write(self, value: Tensor, head_dim: int, slot: int,
              state: Optional[Tensor]) -> Tensor:
        """Write a value to the buffer, which the first one allocates.

        Args:
            value (Tensor): (B, C, H, W), contiguous or in channels last.
            head_dim (int): d, channels per head.
            slot (int): The row of the buffer.
            state (Tensor, optional): The buffer; None before the first value.

        Returns:
            Tensor: The buffer (T, B, h, L).
        """
        if state is None:
            self.layout = Layout.of(value, head_dim)
            self.retrievals = (
                ShortStage if self._capacity <= SHORT else LongStage)()
            if self._capacity == 1:  # the value may be its own buffer
                return self.layout.flat(value).unsqueeze(0)
            state = value.new_empty(self._capacity, *self.layout.flat_shape)
        self.layout.write(state[slot], value)
        return state

    def begin(self, x: Tensor, dtype: torch.dtype, head_dim: int) -> Tensor:
        """Allocate the buffer, for layers that write their values themselves.

        Args:
            x (Tensor): (B, C, H, W), a map of the values' shape; contiguous.
            dtype (torch.dtype): The values' dtype.
            head_dim (int): d, channels per head.

        Returns:
            Tensor: The buffer (T, B, h, L), uninitialised.
        """
        self.layout = Layout(x.shape[1] // head_dim, x.shape, False)
        self.retrievals = LongStage()
        return x.new_empty(
            self._capacity, *self.layout.flat_shape, dtype=dtype)


class Layout(NamedTuple):
    """How a map (B, C, H, W) is stored in the bank: head by head.

    A head's d H W numbers are adjacent, whatever the map's memory format, so that
    a weighted sum is one batched product over heads.

    Attributes:
        heads (int): h, the number of heads.
        shape (torch.Size): The map's shape (B, C, H, W).
        channels_last (bool): Whether maps are in channels last.
    """
    heads: int
    shape: torch.Size
    channels_last: bool

    @classmethod
    def of(cls, x: Tensor, head_dim: int) -> 'Layout':
        """Return the layout for maps of the shape and format of x (B, C, H, W)."""
        return cls(
            x.shape[1] // head_dim, x.shape, not x.is_contiguous()
            and x.is_contiguous(memory_format=torch.channels_last))

    @property
    def flat_shape(self) -> Tuple[int, int, int]:
        """The shape (B, h, L) of a stored map, where L = d H W."""
        return self.shape[0], self.heads, self.shape[1:].numel() // self.heads

    def flat(self, x: Tensor) -> Tensor:
        """Reshape (B, C, H, W) to (B, h, L), as a view where possible."""
        return self._split(x).reshape(self.flat_shape)

    def write(self, slot: Tensor, x: Tensor) -> None:
        """Copy (B, C, H, W) into a slot (B, h, L)."""
        heads = self._split(x)
        slot.view(heads.shape).copy_(heads)

    def map(self, flat: Tensor) -> Tensor:
        """Reshape (B, h, L) to (B, C, H, W): a view, or a copy in channels last."""
        if not self.channels_last:
            return flat.view(self.shape)
        x = torch.empty(
            self.shape,
            dtype=flat.dtype,
            device=flat.device,
            memory_format=torch.channels_last)
        heads = self._split(x)
        heads.copy_(flat.view(heads.shape))
        return x

    def _split(self, x: Tensor) -> Tensor:
        """View x as (B, h, d, H, W), or as (B, h, H, W, d) in channels last."""
        x = x.unflatten(1, (self.heads, -1))  # (B, h, d, H, W)
        return x.movedim(2, -1) if self.channels_last else x


class ShortStage:
    """The retrievals of a stage with few layers.

    The backward of each layer recomputes its own sum, and adds its part to the
    gradients of all values that it retrieved. A value's gradient is complete when
    backward reaches the layer that wrote it.

    Attributes:
        count (int): The number of retrievals so far.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, weights: Tensor, state: Tensor) -> int:
        """Record a retrieval, and return its number.

        Args:
            weights (Tensor): (B, h, n), its weights, in the values' dtype.
            state (Tensor): (T, B, h, L), the values.

        Returns:
            int: The number of the retrieval, from 0.
        """
        self.count += 1
        return self.count - 1

    def recompute(self, number: int, weights: Tensor,
                  values: Tensor) -> Tensor:
        """Recompute a retrieval's sum, for backward.

        Args:
            number (int): The retrieval's number. Backward starts with the last.
            weights (Tensor): (B, h, n), its weights, in the values' dtype.
            values (Tensor): (n, B, h, L), the values that it retrieved.

        Returns:
            Tensor: (B, h, L), the sum.
        """
        return weighted_sum(weights, values)

    def spread(self, gradients: Optional[Tensor], number: int, grad: Tensor,
               weights: Tensor, state: Tensor,
               layout: Layout) -> Tuple[Tensor, Tensor]:
        """Add the gradient of a retrieval's sum to the buffer of gradients.

        Args:
            gradients (Tensor, optional): (T, B, h, L), the buffer, which is
                written to; None if this is the last retrieval with a gradient.
            number (int): The retrieval's number.
            grad (Tensor): (B, C, H, W), the gradient of the sum.
            weights (Tensor): (B, h, n), its weights, in the values' dtype.
            state (Tensor): (T, B, h, L), the values.
            layout (Layout): The bank's layout.

        Returns:
            tuple: The buffer, and ``grad`` as (B, h, L).
        """
        flat = layout.flat(grad)
        seen = weights.shape[-1]
        if gradients is None:
            if len(state) == 1:
                return flat.unsqueeze(0), flat
            gradients = new_gradients(state)
            if seen == 1:
                gradients[0].copy_(flat)
            else:
                torch.mul(_as_factors(weights), flat, out=gradients[:seen])
        elif seen == 1:  # softmax over one layer is 1, whatever its logit
            gradients[0].add_(flat)
        else:
            gradients[:seen].addcmul_(_as_factors(weights), flat)
        return gradients, flat

    def leave_out(self, gradients: Tensor, number: int) -> None:
        """Record that a retrieval has no gradient, though a later one had one."""

    def of_value(self, gradients: Tensor, slot: int, first: int) -> Tensor:
        """Return the gradient of a value.

        Args:
            gradients (Tensor): (T, B, h, L), the buffer of gradients.
            slot (int): The value's row in its buffer.
            first (int): The number of the first retrieval that included it.

        Returns:
            Tensor: (B, h, L), the gradient.
        """
        return gradients[slot]


class LongStage(ShortStage):
    """The retrievals of a stage with many layers.

    The gradients of the sums are collected in a buffer of the values' shape, and
    the gradient of a value is one batched product over it. The sums of several
    layers are recomputed in one product. The methods take the same arguments as
    those of :class:`ShortStage`.

    Attributes:
        weights (Tensor | None): (T, B, h, T), the weight of each value (first
            index) in each retrieval (last index), without gradient; 0 for values
            that a retrieval did not include. None before the first retrieval.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: Optional[Tensor] = None
        self._recomputed: Dict[int, Tensor] = {}

    def table(self, state: Tensor) -> Tensor:
        """Return ``weights``, allocated at first for the values (T, B, h, L)."""
        if self.weights is None:
            self.weights = state.new_zeros(*state.shape[:3], len(state))
        return self.weights

    def add(self, weights: Tensor, state: Tensor) -> int:
        """Record a retrieval's weights, and return its number."""
        self.table(state)[:weights.shape[-1], ..., self.count] = (
            weights.permute(2, 0, 1))
        return super().add(weights, state)

    def recompute(self, number: int, weights: Tensor,
                  values: Tensor) -> Tensor:
        """Recompute a retrieval's sum, together with those before it."""
        if number not in self._recomputed:
            first = max(number - GROUP + 1, 0)
            grouped = self.weights[:len(values), ..., first:number + 1].permute(
                1, 2, 3, 0).flatten(0, 1)  # (B h, g, n)
            # Each sum in one piece; (B h, g, n) @ (B h, n, L).
            sums = values.new_empty(grouped.shape[1], *values.shape[1:])
            torch.bmm(grouped, by_head(values), out=by_head(sums))
            self._recomputed = dict(enumerate(sums, start=first))
        return self._recomputed.pop(number)

    def spread(self, gradients: Optional[Tensor], number: int, grad: Tensor,
               weights: Tensor, state: Tensor,
               layout: Layout) -> Tuple[Tensor, Tensor]:
        """Store the gradient of a retrieval's sum."""
        if gradients is None:
            gradients = new_gradients(state)
            gradients[number + 1:].zero_()
        layout.write(gradients[number], grad)
        return gradients, gradients[number]

    def leave_out(self, gradients: Tensor, number: int) -> None:
        """Set the gradient of a retrieval that has none to 0."""
        gradients[number].zero_()

    def of_value(self, gradients: Tensor, slot: int, first: int) -> Tensor:
        """Return a value's gradient, a sum over the retrievals that included it."""
        later = slice(first, self.count)
        return weighted_sum(self.weights[slot, ..., later], gradients[later])


def new_gradients(state: Tensor) -> Tensor:
    """Allocate a buffer (T, B, h, L) for gradients, uninitialised."""
    # Anomaly detection would report NaN that happens to be in fresh memory.
    make = torch.zeros_like if torch.is_anomaly_enabled() else torch.empty_like
    return make(state)


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Apply equation 5 in the bank: (B, h, n), (n, B, h, L) -> (B, h, L)."""
    weights = weights.flatten(0, 1).unsqueeze(1)
    # (B h, 1, n) @ (B h, n, L)
    return torch.bmm(weights, by_head(values)).view(values.shape[1:])


def head_products(x: Tensor, values: Tensor) -> Tensor:
    """Return inner products per head: (B, h, L), (n, B, h, L) -> (B, h, n)."""
    # (B h, 1, L) @ (B h, L, n)
    products = torch.bmm(
        x.flatten(0, 1).unsqueeze(1),
        by_head(values).transpose(1, 2))
    return products.view(*x.shape[:2], -1)


def _as_factors(weights: Tensor) -> Tensor:
    """View weights (B, h, n) as factors (n, B, h, 1)."""
    return weights.permute(2, 0, 1).unsqueeze(-1)
