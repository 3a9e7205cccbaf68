"""What the layers of a stage leave for the later ones."""
from typing import List, Optional

import torch
from torch import Tensor

from ...compat.compiling import is_compiling
from .bank.keys import KeyBank
from .bank.values import ValueBank


class LayerMemory:
    """What the layers of one stage leave for the later ones.

    One instance serves one stage and one forward pass.

    Args:
        capacity (int, optional): T, the number of layers that will leave a
            key and a value. If given, these lie in buffers, which makes
            attention fast and its backward small. Defaults to None.

    Attributes:
        keys (List[Tensor]): n tensors (B, h, d), in the order of the layers;
            none where ``key_bank`` holds them.
        values (List[Tensor]): n tensors (B, C, H, W); none where
            ``value_bank`` holds them.
        weights (Tensor | None): (B, h, n) float32, the attention weights P of
            the last layer that attended; None before the first.
        key_bank (KeyBank | None): The buffer of keys; None without a
            capacity, and where compilers or exporters trace the network, who
            fuse the plain operations themselves.
        value_bank (ValueBank | None): The buffer of values, like the keys'.
    """

    def __init__(self, capacity: Optional[int] = None) -> None:
        if is_compiling() or torch.jit.is_tracing():
            capacity = None
        self.key_bank = KeyBank(capacity) if capacity else None
        self.value_bank = ValueBank(capacity) if capacity else None
        self.keys: List[Tensor] = []
        self.values: List[Tensor] = []
        self.weights: Optional[Tensor] = None
