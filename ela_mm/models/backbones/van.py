"""VAN: ``blocks1``, ``blocks2``, ... are lists of blocks of maps."""
from typing import List, Optional, Tuple

from torch import Tensor

from ..layers import LayerMemory
from .fresh_norms import FreshNormsMixin
from .placed import PlacedAttentionMixin
from .stages import AttentionLayerInfo, StageSpec
from .walked import WalkedStage


class VANStage(WalkedStage):
    """A stage of VAN, whose host reads ``out_channels`` of the last block."""

    @property
    def out_channels(self) -> int:
        """Number of output channels of the blocks."""
        return self.attention[-1].channels

    def walk(self, i: int, x: Tensor,
             memory: LayerMemory) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block and its attention."""
        return self.attend(i, self.block(i)(x), memory)


class VANAttentionMixin(FreshNormsMixin, PlacedAttentionMixin):
    """Adds layer attention to a VAN.

    Its norm is batch norm, as in the blocks. The host's ``norm_cfg`` is that of
    its outputs.
    """
    kinds = {'base': VANStage}
    norm_argument = ''

    def stage_specs(self) -> List[StageSpec]:
        """Describe every stage."""
        return [
            StageSpec(f'blocks{i}', channels, self._attention_norm_cfg,
                      [0.] * depth)
            for i, (channels, depth) in enumerate(
                zip(self.embed_dims, self.depths), start=1)
        ]

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether ``frozen_stages``, from 0 on, freezes a layer."""
        return layer.stage <= self.frozen_stages + 1
