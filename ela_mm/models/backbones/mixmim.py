"""MixMIM: stages of tokens of a fixed map size, which the host checkpoints."""
from typing import Any, Callable, List, Optional, Tuple

from torch import Tensor

from ..layers import LayerMemory
from .checkpointed import CheckpointedStage
from .placed import PlacedAttentionMixin
from .stages import AttentionStage, StageSpec
from .swin import merge_windows_of_any_batch
from .walked import TokenStage


class MixMIMStage(CheckpointedStage, TokenStage):
    """A stage of tokens (B, HW, C) of images that are not mixed."""

    @property
    def hw_shape(self) -> Tuple[int, int]:
        """H and W of the map that tokens form."""
        return self.block(0).input_resolution

    def forward(self, x: Tensor, attn_mask: Optional[Tensor] = None) -> Tensor:
        """Run the blocks and the active layers on tokens (B, HW, C)."""
        return super().forward(x, attn_mask)

    def walk(self, i: int, x: Tensor, memory: LayerMemory,
             attn_mask: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block on tokens, and its attention on the map they form."""
        x = self.run_block(i, x, attn_mask)
        return self.attend_tokens(i, x, memory, self.hw_shape)

    def alone(self, x: Tensor,
              attn_mask: Optional[Tensor] = None
              ) -> Tuple[AttentionStage, Tensor]:
        """Make a stage of maps of the same layers, and an input for it."""
        return super().alone(x, self.hw_shape)

    def through(self, tap: Callable[[Tensor], Tensor], x: Tensor,
                attn_mask: Optional[Tensor] = None) -> Tensor:
        """Apply a function to the map that tokens form."""
        return super().through(tap, x, self.hw_shape)


class MixMIMAttentionMixin(PlacedAttentionMixin):
    """Adds layer attention to a MixMIMTransformer."""
    kinds = {'base': MixMIMStage}
    norm_cfg_by_default = dict(type='LN')

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        merge_windows_of_any_batch(self)

    def stage_specs(self) -> List[StageSpec]:
        """Describe every stage."""
        return [
            StageSpec(f'layers.{i}.blocks', stage.embed_dims,
                      self._attention_norm_cfg, [0.] * len(stage.blocks),
                      stage.use_checkpoint)
            for i, stage in enumerate(self.layers)
        ]

    def add_attention(self) -> None:
        """Add attention; its stages checkpoint blocks instead of the host."""
        super().add_attention()
        for stage in self.layers:
            stage.use_checkpoint = False
