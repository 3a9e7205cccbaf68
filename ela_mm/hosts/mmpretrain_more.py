"""ELA on families of MMPretrain with a few configs each."""
from mmpretrain.models.backbones import (
    VAN,
    CSPDarkNet,
    CSPResNet,
    CSPResNeXt,
    DaViT,
    DenseNet,
    EfficientFormer,
    LeViT,
    MobileViT,
    PyramidVig,
    RepLKNet,
)
from mmpretrain.registry import MODELS

from ..models.backbones.csp import CSPNetAttentionMixin
from ..models.backbones.dense import DenseNetAttentionMixin
from ..models.backbones.fresh_norms import FreshNormsMixin
from ..models.backbones.mobilevit import MobileViTAttentionMixin
from ..models.backbones.spans import (
    EfficientFormerAttentionMixin,
    LeViTAttentionMixin,
    PyramidVigAttentionMixin,
    RepLKNetAttentionMixin,
)
from ..models.backbones.swin import DaViTAttentionMixin
from ..models.backbones.van import VANAttentionMixin


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
