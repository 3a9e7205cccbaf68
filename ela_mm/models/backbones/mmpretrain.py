"""ELA on MMPretrain's ResNet family."""
from typing import Tuple

from mmpretrain.models.backbones import (
    ResNet,
    ResNet_CIFAR,
    ResNeXt,
    SEResNet,
)
from mmpretrain.models.backbones.resnet import Bottleneck
from mmpretrain.registry import MODELS

from .ela_resnet import LayerAttentionMixin


class _MMPretrainMixin(LayerAttentionMixin):

    def _stage_channels(self, kwargs: dict) -> int:
        return kwargs['out_channels']

    def get_layer_depth(self,
                        param_name: str,
                        prefix: str = '') -> Tuple[int, int]:
        """Depth of a parameter for layer-wise learning rates.

        An attention layer's is that of its block.

        Args:
            param_name (str): ``backbone.layer3.attention.4.query.weight``.
            prefix (str): As in the host. Defaults to ''.

        Returns:
            Tuple[int, int]: The parameter's depth and the number of depths.
        """
        return super().get_layer_depth(
            param_name.replace('.attention.', '.'), prefix)


@MODELS.register_module()
class ELAResNet(_MMPretrainMixin, ResNet):
    """mmpretrain's ResNet (18, 34, 50, 101, 152) with layer attention.

    Takes the arguments of :class:`mmpretrain.models.backbones.ResNet` and
    those of :class:`~ela_mm.models.backbones.ela_resnet.LayerAttentionMixin`;
    ``drop_path_rate`` also drops the attention's terms. Returns a tuple of
    (B, C, H, W), one per entry of ``out_indices``.
    """


@MODELS.register_module()
class ELAResNeXt(_MMPretrainMixin, ResNeXt):
    """mmpretrain's ResNeXt (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELASEResNet(_MMPretrainMixin, SEResNet):
    """mmpretrain's SE-ResNet (50, 101, 152) with layer attention.

    Squeeze-and-excitation weighs channels inside a block, layer attention
    retrieves across blocks; a block's output passes through both. Takes the
    arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAResNet_CIFAR(_MMPretrainMixin, ResNet_CIFAR):
    """The paper's ResNet for CIFAR (20, 56, 110) with layer attention.

    Bottleneck blocks, 9 n + 2 layers: three stages of n blocks with planes 16,
    32, 64 (64, 128, 256 channels out), a 3x3 stem of 16 channels without
    max-pool, 1x1 convolutions where the shortcut changes. The paper does not
    describe it; it was identified by the parameters of table 1.

    Args:
        depth (int): 20, 56 or 110.
        stem_channels (int): Channels of the stem. Defaults to 16.
        base_channels (int): Planes of the first stage. Defaults to 16.
        num_stages (int): Defaults to 3.
        strides (Tuple[int, ...]): Defaults to (1, 2, 2).
        dilations (Tuple[int, ...]): Defaults to (1, 1, 1).
        out_indices (Tuple[int, ...]): Defaults to (2, ).
        **kwargs: Further arguments of mmpretrain's ResNet and of the mixin.

    Raises:
        KeyError: On another depth.
    """

    arch_settings = {
        depth: (Bottleneck, ((depth - 2) // 9, ) * 3)
        for depth in (20, 56, 110)
    }

    def __init__(self,
                 depth: int,
                 stem_channels: int = 16,
                 base_channels: int = 16,
                 num_stages: int = 3,
                 strides: Tuple[int, ...] = (1, 2, 2),
                 dilations: Tuple[int, ...] = (1, 1, 1),
                 out_indices: Tuple[int, ...] = (2, ),
                 **kwargs) -> None:
        super().__init__(
            depth,
            stem_channels=stem_channels,
            base_channels=base_channels,
            num_stages=num_stages,
            strides=strides,
            dilations=dilations,
            out_indices=out_indices,
            **kwargs)
