"""PVT, PVTv2, MiT: ``layers[i]`` has patch embedding, blocks and norm."""
from typing import Any, List

from torch import Tensor, nn

from .placed import PlacedAttentionMixin
from .stages import StageSpec
from .walked import TokenStage


class PVTStage(TokenStage):
    """A stage of tokens; in PVT v1 a position embedding precedes the blocks."""

    @property
    def _first(self) -> int:
        """Index of the first block: 1 behind a position embedding, else 0."""
        return len(self._modules) - 1 - len(self.attention)

    def block(self, i: int) -> nn.Module:
        """Return the host's block i."""
        return self._modules[str(self._first + i)]

    def block_name(self, i: int) -> str:
        """Return the name of block i in the backbone."""
        return f'{self.name}.{self._first + i}'

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Embed positions as the host does, then run blocks and attention.

        Args:
            x (Tensor): (B, HW, C), tokens.
            *args: The size (H, W).

        Returns:
            Tensor: (B, HW, C), tokens.
        """
        for i in range(self._first):
            x = self._modules[str(i)](x, *args)
        return super().forward(x, *args)


class PVTAttentionMixin(PlacedAttentionMixin):
    """Adds layer attention to a PyramidVisionTransformer, v1 or v2.

    It also fits MMSegmentation's MixVisionTransformer, which is built in the
    same way. The norm at the end of a stage of v2 and MiT follows attention.
    """
    kinds = {'base': PVTStage}
    norm_cfg_by_default = dict(type='LN', eps=1e-6)

    def stage_specs(self) -> List[StageSpec]:
        """Describe every stage."""
        return [
            StageSpec(f'layers.{i}.1', self.embed_dims * self.num_heads[i],
                      self._attention_norm_cfg, [0.] * depth,
                      getattr(self, 'with_cp', False))
            for i, depth in enumerate(self.num_layers)
        ]
