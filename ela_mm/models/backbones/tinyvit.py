"""TinyViT: a stage of convolutions, then stages of windowed attention."""
from typing import Callable, List, Optional, Tuple

from torch import Tensor

from ..layers import LayerMemory
from .checkpointed import CheckpointedStage
from .placed import PlacedAttentionMixin
from .stages import AttentionLayerInfo, AttentionStage, StageSpec
from .walked import TokenStage


class TinyViTStage(CheckpointedStage, TokenStage):
    """A stage of maps (B, C, H, W), or of tokens (B, HW, C) of a fixed size."""

    @property
    def hw_shape(self) -> Optional[Tuple[int, int]]:
        """H and W of the map that tokens form; None in a stage of maps."""
        return getattr(self.block(0), 'img_size', None)

    def walk(self, i: int, x: Tensor, memory: LayerMemory
             ) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block, and its attention on a map."""
        x = self.run_block(i, x)
        if self.hw_shape is None:
            return self.attend(i, x, memory)
        return self.attend_tokens(i, x, memory, self.hw_shape)

    def alone(self, x: Tensor) -> Tuple[AttentionStage, Tensor]:
        """Make a stage of maps of the same layers, and an input for it."""
        if self.hw_shape is None:
            return AttentionStage.alone(self, x)
        return super().alone(x, self.hw_shape)

    def through(self, tap: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply a function to a map, or to the one that tokens form."""
        return (tap(x) if self.hw_shape is None else
                super().through(tap, x, self.hw_shape))


class TinyViTAttentionMixin(PlacedAttentionMixin):
    """Adds layer attention to a TinyViT."""
    kinds = {'base': TinyViTStage}
    norm_cfg_by_default = dict(type='LN')
    caches_in_eval = True

    def stage_specs(self) -> List[StageSpec]:
        """Describe every stage."""
        return [
            StageSpec(f'stages.{i}.blocks', channels, self._attention_norm_cfg,
                      [0.] * len(stage.blocks), stage.use_checkpoint)
            for i, (stage, channels) in enumerate(
                zip(self.stages, self.channels))
        ]

    def add_attention(self) -> None:
        """Add attention; its stages checkpoint blocks instead of the host."""
        super().add_attention()
        for stage in self.stages:
            stage.use_checkpoint = False

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether ``frozen_stages``, 0 for none, freezes a layer."""
        return layer.stage <= self.frozen_stages
