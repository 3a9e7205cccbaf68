"""ELA on families of MMPretrain with a few configs each."""
from typing import List

from mmpretrain.models.backbones import (
    VAN,
    Conformer,
    ConvMixer,
    CSPDarkNet,
    CSPResNet,
    CSPResNeXt,
    DaViT,
    DenseNet,
    EfficientFormer,
    LeViT,
    MixMIMTransformer,
    MlpMixer,
    MobileViT,
    MViT,
    PyramidVig,
    RepLKNet,
    ShuffleNetV1,
    ShuffleNetV2,
    T2T_ViT,
    Vig,
)
from mmpretrain.registry import MODELS

from ..models.backbones.conformer import ConformerAttentionMixin
from ..models.backbones.csp import CSPNetAttentionMixin
from ..models.backbones.dense import DenseNetAttentionMixin
from ..models.backbones.fresh_norms import FreshNormsMixin
from ..models.backbones.mixmim import MixMIMAttentionMixin
from ..models.backbones.mobilevit import MobileViTAttentionMixin
from ..models.backbones.mvit import MViTAttentionMixin
from ..models.backbones.sequences import (
    BatchNormSequencesMixin,
    last_channels,
)
from ..models.backbones.spans import (
    EfficientFormerAttentionMixin,
    LeViTAttentionMixin,
    PyramidVigAttentionMixin,
    RepLKNetAttentionMixin,
)
from ..models.backbones.stages import StageSpec
from ..models.backbones.swin import DaViTAttentionMixin
from ..models.backbones.van import VANAttentionMixin
from ..models.backbones.vit import (
    FrozenAgainMixin,
    MapGroupsMixin,
    ViTAttentionMixin,
)
from .mmpretrain import LayerDepthMixin


@MODELS.register_module()
class ELALeViT(LeViTAttentionMixin, LeViT):
    """mmpretrain's LeViT with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELARepLKNet(RepLKNetAttentionMixin, RepLKNet):
    """mmpretrain's RepLKNet with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAVAN(VANAttentionMixin, VAN):
    """mmpretrain's VAN with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELADenseNet(DenseNetAttentionMixin, DenseNet):
    """mmpretrain's DenseNet with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAPyramidVig(PyramidVigAttentionMixin, PyramidVig):
    """mmpretrain's PyramidVig with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAEfficientFormer(EfficientFormerAttentionMixin, EfficientFormer):
    """mmpretrain's EfficientFormer with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELADaViT(FreshNormsMixin, DaViTAttentionMixin, DaViT):
    """mmpretrain's DaViT with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMobileViT(MobileViTAttentionMixin, MobileViT):
    """mmpretrain's MobileViT with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELACSPDarkNet(CSPNetAttentionMixin, CSPDarkNet):
    """mmpretrain's CSPDarkNet with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELACSPResNet(CSPNetAttentionMixin, CSPResNet):
    """mmpretrain's CSPResNet with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELACSPResNeXt(CSPNetAttentionMixin, CSPResNeXt):
    """mmpretrain's CSPResNeXt with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMViT(MViTAttentionMixin, MViT):
    """mmpretrain's MViT (version 2) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAVig(FrozenAgainMixin, FreshNormsMixin, MapGroupsMixin, Vig):
    """mmpretrain's Vig with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    blocks_name = 'blocks'

    def token_channels(self) -> int:
        """Return the number of channels C of the maps."""
        return last_channels(self.blocks[0])


@MODELS.register_module()
class ELAConvMixer(FrozenAgainMixin, MapGroupsMixin, ConvMixer):
    """mmpretrain's ConvMixer with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    blocks_name = 'stages'


@MODELS.register_module()
class ELAMlpMixer(ViTAttentionMixin, MlpMixer):
    """mmpretrain's MlpMixer with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    norm_cfg_by_default = dict(type='LN')


@MODELS.register_module()
class ELAT2T_ViT(ViTAttentionMixin, T2T_ViT):
    """mmpretrain's T2T_ViT with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    norm_cfg_by_default = dict(type='LN')
    blocks_name = 'encoder'
    patches_name = 'tokens_to_token'

    def token_channels(self) -> int:
        """Return the number of channels C of the tokens."""
        return self.pos_embed.shape[-1]


@MODELS.register_module()
class ELAConformer(ConformerAttentionMixin, Conformer):
    """mmpretrain's Conformer with layer attention in its convolutional branch.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMixMIMTransformer(LayerDepthMixin, MixMIMAttentionMixin,
                           MixMIMTransformer):
    """mmpretrain's MixMIMTransformer with layer attention.

    It is not the backbone of pre-training, whose maps mix two images. Takes the
    arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAShuffleNetV1(BatchNormSequencesMixin, ShuffleNetV1):
    """mmpretrain's ShuffleNetV1 with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAShuffleNetV2(BatchNormSequencesMixin, ShuffleNetV2):
    """mmpretrain's ShuffleNetV2 with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """

    def stage_specs(self) -> List[StageSpec]:
        """Describe every stage; its last convolution has half the channels."""
        return [spec._replace(channels=2 * spec.channels)
                for spec in super().stage_specs()]
