"""ELA on MMPretrain's ResNet."""
from mmpretrain.models.backbones import ResNet
from mmpretrain.registry import MODELS

from .ela_resnet import LayerAttentionMixin


@MODELS.register_module()
class ELAResNet(LayerAttentionMixin, ResNet):
    """mmpretrain's ResNet (18, 34, 50, 101, 152) with layer attention.

    Takes the arguments of :class:`mmpretrain.models.backbones.ResNet` and
    those of :class:`~ela_mm.models.backbones.ela_resnet.LayerAttentionMixin`;
    ``drop_path_rate`` also drops the attention's terms. Returns a tuple of
    (B, C, H, W), one per entry of ``out_indices``.
    """

    def _stage_channels(self, kwargs: dict) -> int:
        return kwargs['out_channels']
