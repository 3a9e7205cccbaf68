"""PVT, PVTv2 and MiT: ``layers[i]`` is patch embedding, blocks and norm."""
from typing import Any, List

from torch import Tensor, nn

from .placed import PlacedAttentionMixin
from .stages import StageSpec
from .walked import TokenStage


class PVTStage(TokenStage):
    """A stage of tokens; PVT, version 1, embeds positions before the blocks."""

    @property
    def _first(self) -> int:
        """Where the first block is: 1 behind an embedding, else 0."""
        return len(self._modules) - 1 - len(self.attention)

    def block(self, i: int) -> nn.Module:
        """The host's block number i."""
        return self._modules[str(self._first + i)]

    def block_name(self, i: int) -> str:
        """What block number i is called in the backbone."""
        return f'{self.name}.{self._first + i}'

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Embed positions as the host does, then run blocks and attention.

        Args:
            x (Tensor): (B, HW, C).
            *args: H and W.

        Returns:
            Tensor: (B, HW, C).
        """
        for i in range(self._first):
            x = self._modules[str(i)](x, *args)
        return super().forward(x, *args)


class PVTAttentionMixin(PlacedAttentionMixin):
    """Adds layer attention to a PyramidVisionTransformer, either version.

    Also to MMSegmentation's MixVisionTransformer, which is built alike. The
    norm that ends a stage of version 2 and of MiT comes behind attention.
    """
    kinds = {'base': PVTStage}
    norm_cfg_by_default = dict(type='LN', eps=1e-6)

    def stage_specs(self) -> List[StageSpec]:
        """Take every stage."""
        return [
            StageSpec(f'layers.{i}.1', self.embed_dims * self.num_heads[i],
                      self._attention_norm_cfg, [0.] * depth,
                      getattr(self, 'with_cp', False))
            for i, depth in enumerate(self.num_layers)
        ]
