"""MobileViT: every part of ``layers`` is a sequence of blocks."""
from typing import Iterator, Tuple

from torch import nn

from .sequences import SequencesMixin


class MobileViTAttentionMixin(SequencesMixin):
    """Adds layer attention to a MobileViT.

    It attends behind an inverted residual and behind a MobileViT block as a
    whole. The transformer within the latter mixes no neighbours and sees maps
    in pieces.
    """

    def _sequences(self) -> Iterator[Tuple[str, int, nn.Sequential]]:
        """Name, place in the host's list, from 0, and blocks of the stages."""
        for i, part in enumerate(self.layers):
            yield f'layers.{i}', i, part
