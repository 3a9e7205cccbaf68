"""ELA on MMPretrain's backbones for self-supervised training."""
from mmpretrain.models.backbones import HiViT
from mmpretrain.models.selfsup import (
    BEiTPretrainViT,
    CAEPretrainViT,
    MAEHiViT,
    MAEViT,
    MaskFeatViT,
    MILANViT,
    MoCoV3ViT,
    SimMIMSwinTransformer,
    iTPNHiViT,
)
from mmpretrain.registry import MODELS

from ..models.backbones.fresh_norms import FreshNormsMixin
from ..models.backbones.masked import (
    CAEAttentionMixin,
    HiViTAttentionMixin,
    MAEAttentionMixin,
    MaskArgumentMixin,
    MILANAttentionMixin,
)
from ..models.backbones.swin import SwinAttentionMixin
from ..models.backbones.vit import FrozenAgainMixin
from .mmpretrain import LayerDepthMixin
from .mmpretrain_families import ViTDepthMixin, _ViTMixin

try:
    from mmpretrain.models.selfsup import MFFViT
except ImportError:  # MMPretrain 1.0
    MFFViT = None


@MODELS.register_module()
class ELAMAEViT(ViTDepthMixin, MAEAttentionMixin, MAEViT):
    """mmpretrain's MAEViT with layer attention, also on few patches.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMILANViT(ViTDepthMixin, MILANAttentionMixin, MILANViT):
    """mmpretrain's MILANViT with layer attention, also on few patches.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELACAEPretrainViT(ViTDepthMixin, CAEAttentionMixin, CAEPretrainViT):
    """mmpretrain's CAEPretrainViT with layer attention, also on few patches.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAHiViT(ViTDepthMixin, HiViTAttentionMixin, HiViT):
    """mmpretrain's HiViT with layer attention behind its main blocks.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMAEHiViT(ViTDepthMixin, HiViTAttentionMixin, MAEHiViT):
    """mmpretrain's MAEHiViT with layer attention, also on few patches.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAiTPNHiViT(ViTDepthMixin, HiViTAttentionMixin, iTPNHiViT):
    """mmpretrain's iTPNHiViT with layer attention, also on few patches.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELABEiTPretrainViT(MaskArgumentMixin, _ViTMixin, BEiTPretrainViT):
    """mmpretrain's BEiTPretrainViT with layer attention.

    A learned token stands for each masked patch. Takes the arguments of the
    host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMaskFeatViT(MaskArgumentMixin, _ViTMixin, MaskFeatViT):
    """mmpretrain's MaskFeatViT with layer attention.

    A learned token stands for each masked patch. Takes the arguments of the
    host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMoCoV3ViT(FrozenAgainMixin, _ViTMixin, MoCoV3ViT):
    """mmpretrain's MoCoV3ViT with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELASimMIMSwinTransformer(MaskArgumentMixin, LayerDepthMixin,
                               FreshNormsMixin, SwinAttentionMixin,
                               SimMIMSwinTransformer):
    """mmpretrain's SimMIMSwinTransformer with layer attention.

    A learned token stands for each masked patch. Takes the arguments of the
    host's class and of the mixin.
    """
    frozen_from = 0


if MFFViT is not None:

    @MODELS.register_module()
    class ELAMFFViT(ViTDepthMixin, MAEAttentionMixin, MFFViT):
        """mmpretrain's MFFViT with layer attention, also on few patches.

        Takes the arguments of the host's class and of the mixin.
        """
