"""CSPNeXt and CSPDarknet: a stage's blocks lie within its CSP layer."""
from typing import List

from .fresh_norms import FreshNormsMixin
from .placed import PlacedAttentionMixin
from .stages import AttentionLayerInfo, StageSpec


class CSPAttentionMixin(FreshNormsMixin, PlacedAttentionMixin):
    """Adds layer attention to the blocks of cross stage partial layers.

    They work on a half of the channels, and so does attention.
    """
    norm_cfg_by_default = dict(type='BN', momentum=0.03, eps=0.001)

    def stage_specs(self) -> List[StageSpec]:
        """Find the CSP layer of every stage, behind convolution and pooling."""
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
        """Tell whether ``frozen_stages``, 0 for the stem, freezes a layer."""
        return layer.stage <= self.frozen_stages
