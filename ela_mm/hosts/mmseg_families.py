"""ELA on MMSegmentation's other families of backbones.

Its ConvNeXt is MMPretrain's: ``mmpretrain.ELAConvNeXt``.
"""
from mmseg.engine.optimizers import (
    LayerDecayOptimizerConstructor,
    LearningRateDecayOptimizerConstructor,
)
from mmseg.models.backbones import (
    MAE,
    PCPVT,
    SVT,
    BEiT,
    HRNet,
    MixVisionTransformer,
    MobileNetV2,
    MobileNetV3,
    SwinTransformer,
    VisionTransformer,
)
from mmseg.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from torch import Tensor

from ..models.backbones.hrnet import HRNetAttentionMixin
from ..models.backbones.pvt import PVTAttentionMixin
from ..models.backbones.runs import MobileNetV3AttentionMixin
from ..models.backbones.sequences import BatchNormSequencesMixin
from ..models.backbones.stages import AttentionLayerInfo
from ..models.backbones.swin import SwinAttentionMixin
from ..models.backbones.twins import TwinsAttentionMixin
from ..models.backbones.vit import ViTAttentionMixin
from .layer_rates import KnowsAttention


@MODELS.register_module()
class ELASwinTransformer(SwinAttentionMixin, SwinTransformer):
    """mmseg's SwinTransformer with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMixVisionTransformer(PVTAttentionMixin, MixVisionTransformer):
    """mmseg's MixVisionTransformer (SegFormer's MiT) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAHRNet(HRNetAttentionMixin, HRNet):
    """mmseg's HRNet with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMobileNetV2(BatchNormSequencesMixin, MobileNetV2):
    """mmseg's MobileNetV2 with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMobileNetV3(MobileNetV3AttentionMixin, MobileNetV3):
    """mmseg's MobileNetV3, with dilations, and layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    norm_cfg_by_default = dict(type='BN')


class _TwinsMixin(TwinsAttentionMixin):
    stages_name = 'layers'

    def end_stage(self, i: int, x: Tensor) -> Tensor:
        """Apply the norm behind stage i to tokens (B, HW, C), if any."""
        return self.norm_list[i](x) if self.norm_after_stage else x


@MODELS.register_module()
class ELAPCPVT(_TwinsMixin, PCPVT):
    """mmseg's Twins-PCPVT with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELASVT(_TwinsMixin, SVT):
    """mmseg's Twins-SVT with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


class _ViTMixin(ViTAttentionMixin):
    norm_cfg_by_default = dict(type='LN')  # with torch's default eps, 1e-5

    def token_channels(self) -> int:
        """Return the number of channels C of the tokens."""
        return self.patch_embed.embed_dims


@MODELS.register_module()
class ELAVisionTransformer(_ViTMixin, VisionTransformer):
    """mmseg's VisionTransformer with layer attention.

    Takes the arguments of the host's class and of the mixin.
    ``frozen_exclude`` freezes attention too, unless it names it:
    ``['attention']`` trains attention alone.
    """

    def add_attention(self) -> None:
        """Add attention, and freeze what ``frozen_exclude`` does not name."""
        super().add_attention()
        self._freeze()

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether ``frozen_exclude`` freezes a layer."""
        names = [f'{layer.prefix}.{name}'
                 for name, _ in layer.module.named_parameters()]
        return 'all' not in self.frozen_exclude and not any(
            kept in name for kept in self.frozen_exclude for name in names)


@MODELS.register_module()
class ELABEiT(_ViTMixin, BEiT):
    """mmseg's BEiT with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMAE(_ViTMixin, MAE):
    """mmseg's MAE, as it is fine-tuned for segmentation, with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(
    'LearningRateDecayOptimizerConstructor', force=True)
class ELALearningRateDecayConstructor(KnowsAttention,
                                      LearningRateDecayOptimizerConstructor):
    """mmseg's layer-wise learning rates, extended to attention.

    Registered under the host's name, so that configs need no change. Networks
    without attention are not affected.
    """


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(
    'LayerDecayOptimizerConstructor', force=True)
class ELALayerDecayConstructor(KnowsAttention, LayerDecayOptimizerConstructor):
    """The same, under the name that mmseg has deprecated."""
