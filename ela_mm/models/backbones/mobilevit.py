"""MobileViT: every entry of ``layers`` is a sequence of blocks."""
from typing import Iterator, Tuple

from torch import nn

from .sequences import SequencesMixin


class MobileViTAttentionMixin(SequencesMixin):
    """Adds layer attention to a MobileViT.

    Attention follows each inverted residual and each MobileViT block as a
    whole. The transformers within MobileViT blocks get none: they work on
    pieces of the map, in which neighbouring pixels are apart.
    """

    def _sequences(self) -> Iterator[Tuple[str, int, nn.Sequential]]:
        """Yield name, index in the host's list and blocks of each stage."""
        for i, part in enumerate(self.layers):
            yield f'layers.{i}', i, part
