"""What the layers of one stage leave for the later ones."""
from typing import List, Optional, Tuple

from torch import Tensor

from .bank.keys import KeyBank
from .bank.values import ValueBank


class LayerMemory:
    """Keys and values of the layers of a stage so far.

    One instance serves one stage and one forward pass.

    Args:
        capacity (int, optional): T, the number of layers that will leave a
            key and a value. If given, these lie in buffers, which makes
            attention fast and its backward small; see
            :func:`~ela_mm.models.layers.bank.can_bank` for when they may.
            Defaults to None: lists, for anybody to read.

    Attributes:
        keys (List[Tensor]): n tensors (B, h, d), in the order of the layers;
            none where ``key_bank`` holds them.
        values (List[Tensor]): n tensors (B, C, H, W); none where
            ``value_bank`` holds them.
        weights (Tensor | None): (B, h, n) float32, the attention weights P of
            the last layer that was called with this memory; None before the
            first. A stage does not read it: ``attend`` returns the weights.
        hw_shape (Tuple[int, int] | None): H and W of the maps, where layers
            are given tokens instead.
        kept (Tensor | None): (B, N), where on the map, row by row, the N
            tokens of each picture lie, if some were left out.
        key_bank (KeyBank | None): The buffer of keys; None without capacity.
        value_bank (ValueBank | None): The buffer of values, like the keys'.
    """

    def __init__(self, capacity: Optional[int] = None) -> None:
        self.key_bank = KeyBank(capacity) if capacity else None
        self.value_bank = ValueBank(capacity) if capacity else None
        self.keys: List[Tensor] = []
        self.values: List[Tensor] = []
        self.weights: Optional[Tensor] = None
        self.hw_shape: Optional[Tuple[int, int]] = None
        self.kept: Optional[Tensor] = None
