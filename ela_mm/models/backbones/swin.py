"""Swin: ``stages[i].blocks`` work on tokens; what FPN sees has attention."""
from typing import List

from .placed import PlacedAttentionMixin
from .stages import AttentionLayerInfo, StageSpec
from .walked import TokenStage


class SwinAttentionMixin(PlacedAttentionMixin):
    """Adds layer attention to a SwinTransformer, before patches are merged.

    Attributes:
        frozen_from (int): The value of ``frozen_stages`` that freezes the
            first stage.
    """
    kinds = {'base': TokenStage}
    norm_cfg_by_default = dict(type='LN')
    frozen_from = 1

    def stage_specs(self) -> List[StageSpec]:
        """Take every stage."""
        return [
            StageSpec(f'stages.{i}.blocks', stage.blocks[0].ffn.embed_dims,
                      self._attention_norm_cfg, [0.] * len(stage.blocks),
                      stage.blocks[0].with_cp)
            for i, stage in enumerate(self.stages)
        ]

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Tell whether ``frozen_stages`` freezes a layer."""
        return layer.stage <= self.frozen_stages - self.frozen_from + 1
