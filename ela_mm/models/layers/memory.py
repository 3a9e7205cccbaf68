"""The memory of a stage: keys and values that layers pass on to later ones."""
from typing import List, Optional, Tuple

from torch import Tensor

from .bank.keys import KeyBank
from .bank.values import ValueBank


class LayerMemory:
    """Keys and values that the layers of a stage have written so far.

    One instance serves one stage and one forward pass.

    Args:
        capacity (int, optional): T, the number of layers that will write a key
            and a value. If given, keys and values go into buffers, which makes
            attention fast and saves memory in backward;
            :func:`~ela_mm.models.layers.bank.can_bank` tells when that is
            possible. Defaults to None: keys and values are kept in lists.

    Attributes:
        keys (List[Tensor]): n tensors (B, h, d), in the order of the layers;
            empty where ``key_bank`` holds them.
        values (List[Tensor]): n tensors (B, C, H, W); empty where
            ``value_bank`` holds them.
        weights (Tensor | None): (B, h, n) float32, the attention weights P of
            the last layer that was called with this memory; None before the
            first. A stage does not read it: ``attend`` returns the weights.
        hw_shape (Tuple[int, int] | None): H and W of the map that the tokens
            form; None for layers of maps.
        kept (Tensor | None): (B, N), the positions on that map, row by row, of
            the N tokens kept per image; None unless some were masked out.
        key_bank (KeyBank | None): The buffer of keys; None without capacity.
        value_bank (ValueBank | None): The buffer of values; None without capacity.
    """

    def __init__(self, capacity: Optional[int] = None) -> None:
        self.key_bank = KeyBank(capacity) if capacity else None
        self.value_bank = ValueBank(capacity) if capacity else None
        self.keys: List[Tensor] = []
        self.values: List[Tensor] = []
        self.weights: Optional[Tensor] = None
        self.hw_shape: Optional[Tuple[int, int]] = None
        self.kept: Optional[Tensor] = None
