"""Families whose stages are sequences of blocks, among other modules.

These are EfficientNetV2, MobileNetV2, PoolFormer, RepVGG and RIFormer. Some of
their stages have a single block, which can only retrieve from itself.
"""
from typing import Iterator, List, Tuple

from torch import nn

from .fresh_norms import FreshNormsMixin
from .placed import PlacedAttentionMixin
from .stages import AttentionLayerInfo, StageSpec


class SequencesMixin(PlacedAttentionMixin):
    """Adds layer attention to every sequence of blocks of a backbone.

    Attributes:
        frozen_from (int): Value of ``frozen_stages`` that freezes the first
            module of the host's list only.
    """
    frozen_from = 1

    def stage_specs(self) -> List[StageSpec]:
        """Describe every sequence of blocks."""
        stages = list(self._sequences())
        self._places = {name: number for name, number, _ in stages}
        return [
            StageSpec(name, last_channels(blocks[-1]),
                      self._attention_norm_cfg, [0.] * len(blocks),
                      getattr(self, 'with_cp', False))
            for name, _, blocks in stages
        ]

    def _sequences(self) -> Iterator[Tuple[str, int, nn.Sequential]]:
        """Yield name, index in the host's list and blocks of each stage."""
        number = 0
        for name, child in self.named_children():
            if isinstance(child, nn.ModuleList):
                yield from ((f'{name}.{i}', i, part)
                            for i, part in enumerate(child)
                            if isinstance(part, nn.Sequential))
            elif isinstance(child, nn.Sequential):
                yield name, number, child
                number += 1

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether ``frozen_stages`` freezes a layer."""
        return self._places[layer.stage_name] <= (
            self.frozen_stages - self.frozen_from)


class BatchNormSequencesMixin(FreshNormsMixin, SequencesMixin):
    """Adds layer attention to sequences in hosts that have ``norm_eval``."""


def last_channels(block: nn.Module) -> int:
    """Return the output channels of a block: those of its last convolution."""
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    return convs[-1].out_channels
