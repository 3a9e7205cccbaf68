"""Families whose stages are sequences of blocks, among other modules.

EfficientNetV2, MobileNetV2, PoolFormer, RepVGG and RIFormer. Some of their
stages have a single block, where attention has one layer to retrieve from.
"""
from typing import Iterator, List, Tuple

from torch import nn

from .fresh_norms import FreshNormsMixin
from .placed import PlacedAttentionMixin
from .stages import AttentionLayerInfo, StageSpec


class SequencesMixin(PlacedAttentionMixin):
    """Adds layer attention to every sequence of blocks of a backbone.

    Attributes:
        frozen_from (int): The value of ``frozen_stages`` that freezes the
            first module of the host's list.
    """
    frozen_from = 1

    def stage_specs(self) -> List[StageSpec]:
        """Take every sequence of blocks."""
        stages = list(self._sequences())
        self._places = {name: number for name, number, _ in stages}
        return [
            StageSpec(name, last_channels(blocks[-1]),
                      self._attention_norm_cfg, [0.] * len(blocks),
                      getattr(self, 'with_cp', False))
            for name, _, blocks in stages
        ]

    def _sequences(self) -> Iterator[Tuple[str, int, nn.Sequential]]:
        """Name, place in the host's list, from 0, and blocks of the stages."""
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
        """Tell whether ``frozen_stages`` freezes a layer."""
        return self._places[layer.stage_name] <= (
            self.frozen_stages - self.frozen_from)


class BatchNormSequencesMixin(FreshNormsMixin, SequencesMixin):
    """The same for hosts with batch norms and ``norm_eval``."""


def last_channels(block: nn.Module) -> int:
    """C of what a block returns: its last convolution's."""
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    return convs[-1].out_channels
