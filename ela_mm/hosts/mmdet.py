"""ELA on MMDetection's ResNet family."""
from mmdet.models.backbones import ResNet, ResNetV1d, ResNeXt
from mmdet.registry import MODELS

from ..models.backbones.layer_attention_mixin import LayerAttentionMixin


class _MMDetMixin(LayerAttentionMixin):

    def _stage_channels(self, kwargs: dict) -> int:
        return kwargs['planes'] * self.block.expansion


@MODELS.register_module()
class ELAResNet(_MMDetMixin, ResNet):
    """mmdet's ResNet (18, 34, 50, 101, 152) with layer attention.

    Takes the arguments of :class:`mmdet.models.backbones.ResNet` and those of
    :class:`~ela_mm.models.backbones.LayerAttentionMixin`. Returns
    a tuple of (B, C, H, W), one per entry of ``out_indices``.
    """


@MODELS.register_module()
class ELAResNetV1d(_MMDetMixin, ResNetV1d):
    """mmdet's ResNetV1d (deep stem, average-pool shortcut) with attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAResNeXt(_MMDetMixin, ResNeXt):
    """mmdet's ResNeXt (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
