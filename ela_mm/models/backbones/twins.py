"""Twins, which embeds positions behind the first block of every stage."""
from typing import Any, List, Optional, Tuple

from torch import Tensor, nn

from ..layers import LayerMemory
from .placed import PlacedAttentionMixin
from .stages import AttentionStage, StageSpec
from .walked import TokenStage, tokens_to_map


class TwinsStage(TokenStage):
    """A stage of tokens, whose first block ends with a position embedding.

    So the values of all layers, including the first, contain positions.
    """

    def block_parts(self, i: int) -> List[str]:
        """Return the names in the backbone of the modules of block i."""
        parts = super().block_parts(i)
        if i == 0:
            number = self.name.rpartition('.')[2]
            parts.append(f'position_encodings.{number}')
        return parts

    def walk(self, i: int, x: Tensor, memory: LayerMemory,
             hw_shape: Tuple[int, int], embedding: nn.Module
             ) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block on tokens, and its attention on the map they form."""
        x = self.block(i)(x, hw_shape)  # (B, HW, C)
        if i == 0:
            x = embedding(x, hw_shape)  # (B, HW, C)
        return self.attend_tokens(i, x, memory, hw_shape)

    def alone(self, x: Tensor, hw_shape: Tuple[int, int],
              *args: Any) -> Tuple[AttentionStage, Tensor]:
        """Make a stage of maps of the same layers, and an input for it."""
        return super().alone(x, hw_shape)

    def through(self, tap, x: Tensor, hw_shape: Tuple[int, int],
                *args: Any) -> Tensor:
        """Apply a function to the map that tokens (B, HW, C) form."""
        return super().through(tap, x, hw_shape)


class TwinsAttentionMixin(PlacedAttentionMixin):
    """Adds layer attention to Twins, PCPVT or SVT.

    Attributes:
        stages_name (str): Name of the host's list of stages.
    """
    kinds = {'base': TwinsStage}
    norm_cfg_by_default = dict(type='LN')
    stages_name = 'stages'

    def stage_specs(self) -> List[StageSpec]:
        """Describe every stage."""
        return [
            StageSpec(f'{self.stages_name}.{i}', patches.embed_dims,
                      self._attention_norm_cfg, [0.] * depth)
            for i, (patches, depth) in enumerate(
                zip(self.patch_embeds, self.depths))
        ]

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Do as the host does, whose loop cannot run a stage as a whole.

        Args:
            x (Tensor): (B, 3, H, W), normalised images.

        Returns:
            Tuple[Tensor, ...]: (B, C, H, W), one for each entry of ``out_indices``.
        """
        if self.attention_kind is None:
            return super().forward(x)
        outs = []
        for i, stage in enumerate(getattr(self, self.stages_name)):
            x, hw_shape = self.patch_embeds[i](x)
            x = self.position_encoding_drops[i](x)  # (B, HW, C)
            x = stage(x, hw_shape, self.position_encodings[i])
            x = self.end_stage(i, x)
            x = tokens_to_map(x, hw_shape).contiguous()  # as in the host
            if i in self.out_indices:
                outs.append(x)  # (B, C, H, W)
        return tuple(outs)

    def end_stage(self, i: int, x: Tensor) -> Tensor:
        """Apply to tokens (B, HW, C) what the host has behind stage i."""
        return getattr(self, f'norm_after_stage{i}')(x)
