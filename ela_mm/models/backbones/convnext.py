"""ConvNeXt: ``stages`` is a list of sequences of blocks."""
from typing import List

from .placed import PlacedAttentionMixin
from .stages import AttentionLayerInfo, StageSpec


class ConvNeXtAttentionMixin(PlacedAttentionMixin):
    """Adds layer attention to a ConvNeXt, V1 or V2."""
    norm_cfg_by_default = dict(type='LN2d', eps=1e-6)

    def stage_specs(self) -> List[StageSpec]:
        """Take every stage."""
        return [
            StageSpec(f'stages.{i}', channels, self._attention_norm_cfg,
                      [0.] * len(stage), stage[0].with_cp)
            for i, (stage, channels) in enumerate(
                zip(self.stages, self.channels))
        ]

    def add_attention(self) -> None:
        """Add it, and freeze it where the host has frozen its stage."""
        super().add_attention()
        self._freeze_stages()

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Tell whether ``frozen_stages``, 0 for none, freezes a layer."""
        return layer.stage <= self.frozen_stages
