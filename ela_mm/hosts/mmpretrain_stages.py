"""ELA on families of MMPretrain with stages or blocks of a special form."""
from mmpretrain.models.backbones import (
    PCPVT,
    SVT,
    VGG,
    EdgeNeXt,
    EfficientNet,
    HorNet,
    MobileNetV3,
    MobileOne,
    RepMLPNet,
    TinyViT,
)
from mmpretrain.registry import MODELS

from ..models.backbones.convnext import (
    ConvNeXtAttentionMixin,
    HorNetAttentionMixin,
    ListedStagesMixin,
)
from ..models.backbones.runs import (
    EfficientNetAttentionMixin,
    MobileNetV3AttentionMixin,
    VGGAttentionMixin,
)
from ..models.backbones.spans import MobileOneAttentionMixin
from ..models.backbones.tinyvit import TinyViTAttentionMixin
from ..models.backbones.twins import TwinsAttentionMixin


@MODELS.register_module()
class ELAEfficientNet(EfficientNetAttentionMixin, EfficientNet):
    """mmpretrain's EfficientNet, V1 and EdgeTPU, with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMobileNetV3(MobileNetV3AttentionMixin, MobileNetV3):
    """mmpretrain's MobileNetV3 with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAVGG(VGGAttentionMixin, VGG):
    """mmpretrain's VGG with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMobileOne(MobileOneAttentionMixin, MobileOne):
    """mmpretrain's MobileOne with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAHorNet(HorNetAttentionMixin, HorNet):
    """mmpretrain's HorNet with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAEdgeNeXt(ConvNeXtAttentionMixin, EdgeNeXt):
    """mmpretrain's EdgeNeXt with layer attention.

    Takes the arguments of the host's class and of the mixin; ``head_dim``
    defaults to 4 for ``xsmall``, to 8 for ``xxsmall`` and ``base``.
    """


@MODELS.register_module()
class ELARepMLPNet(ListedStagesMixin, RepMLPNet):
    """mmpretrain's RepMLPNet with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELATinyViT(TinyViTAttentionMixin, TinyViT):
    """mmpretrain's TinyViT with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAPCPVT(TwinsAttentionMixin, PCPVT):
    """mmpretrain's Twins-PCPVT with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELASVT(TwinsAttentionMixin, SVT):
    """mmpretrain's Twins-SVT with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
