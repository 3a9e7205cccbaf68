"""CSPNeXt, CSPDarknet, CSPNet: a stage's blocks lie within its CSP layer."""
from typing import List

from .fresh_norms import FreshNormsMixin
from .placed import PlacedAttentionMixin
from .sequences import last_channels
from .stages import AttentionLayerInfo, StageSpec


class CSPAttentionMixin(FreshNormsMixin, PlacedAttentionMixin):
    """Adds layer attention to the blocks of cross stage partial layers.

    The blocks work on half of the channels, and so does attention.
    """
    norm_cfg_by_default = dict(type='BN', momentum=0.03, eps=0.001)

    def stage_specs(self) -> List[StageSpec]:
        """Find the blocks of every stage's CSP layer."""
        specs = []
        for name in self.layers[1:]:  # the first is the stem
            position, layer = next(
                (i, part) for i, part in enumerate(getattr(self, name))
                if hasattr(part, 'blocks'))
            specs.append(
                StageSpec(f'{name}.{position}.blocks',
                          layer.main_conv.conv.out_channels,
                          self._attention_norm_cfg, [0.] * len(layer.blocks)))
        return specs

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether ``frozen_stages``, 0 for the stem, freezes a layer."""
        return layer.stage <= self.frozen_stages


class CSPNetAttentionMixin(FreshNormsMixin, PlacedAttentionMixin):
    """Adds layer attention to a CSPDarkNet or CSPRes(NeX)t of MMPretrain."""
    norm_cfg_by_default = dict(type='BN', eps=1e-5)

    def stage_specs(self) -> List[StageSpec]:
        """Take the blocks of every stage."""
        return [
            StageSpec(f'stages.{i}.blocks', last_channels(stage.blocks[-1]),
                      self._attention_norm_cfg, [0.] * len(stage.blocks))
            for i, stage in enumerate(self.stages)
        ]

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether ``frozen_stages``, from 0 on, freezes a layer."""
        return layer.stage <= self.frozen_stages + 1
