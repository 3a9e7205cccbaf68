"""ELA on MMDetection's other families of backbones."""
from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor
from mmdet.models.backbones import (
    CSPDarknet,
    CSPNeXt,
    DetectoRS_ResNet,
    DetectoRS_ResNeXt,
    EfficientNet,
    HRNet,
    MobileNetV2,
    PyramidVisionTransformer,
    PyramidVisionTransformerV2,
    RegNet,
    Res2Net,
    ResNeSt,
    SwinTransformer,
    TridentResNet,
)
from mmdet.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS

from ..models.backbones.csp import CSPAttentionMixin
from ..models.backbones.detectors import DetectoRSMixin
from ..models.backbones.hrnet import HRNetAttentionMixin
from ..models.backbones.pvt import PVTAttentionMixin
from ..models.backbones.resnet import PlanesMixin, WidePlanesMixin
from ..models.backbones.runs import EfficientNetAttentionMixin
from ..models.backbones.sequences import BatchNormSequencesMixin
from ..models.backbones.stages import AttentionStage, LightAttentionStage
from ..models.backbones.swin import SwinAttentionMixin
from ..models.backbones.trident import TridentMixin
from .layer_rates import KnowsAttention

# Compared systems change a ResNet's blocks, and are not tested in these.
_KINDS = {'base': AttentionStage, 'light': LightAttentionStage}


@MODELS.register_module()
class ELARegNet(PlanesMixin, RegNet):
    """mmdet's RegNet with layer attention.

    Takes the arguments of the host's class and of the mixin; ``head_dim``
    defaults to 8 for ``regnetx_1.6gf`` and ``regnetx_6.4gf``.
    """
    kinds = _KINDS


@MODELS.register_module()
class ELARes2Net(WidePlanesMixin, Res2Net):
    """mmdet's Res2Net (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    kinds = _KINDS


@MODELS.register_module()
class ELAResNeSt(WidePlanesMixin, ResNeSt):
    """mmdet's ResNeSt (50, 101, 152, 200) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    kinds = _KINDS


@MODELS.register_module()
class ELATridentResNet(TridentMixin, TridentResNet):
    """mmdet's TridentResNet (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin. The three
    branches of the last stage share attention as they share convolutions.
    """


@MODELS.register_module()
class ELADetectoRS_ResNet(DetectoRSMixin, DetectoRS_ResNet):
    """mmdet's DetectoRS_ResNet (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin. As ``backbone`` of
    a detector it attends in its forward pass; as ``rfp_backbone`` of the neck
    also in the recursive passes. ELAPruneHook prunes only one backbone, so one
    of the two has to be plain.
    """


@MODELS.register_module()
class ELADetectoRS_ResNeXt(DetectoRSMixin, DetectoRS_ResNeXt):
    """mmdet's DetectoRS_ResNeXt (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin, as
    :class:`ELADetectoRS_ResNet`.
    """


@MODELS.register_module()
class ELACSPNeXt(CSPAttentionMixin, CSPNeXt):
    """mmdet's CSPNeXt (RTMDet's backbone) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELACSPDarknet(CSPAttentionMixin, CSPDarknet):
    """mmdet's CSPDarknet (YOLOX's backbone) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAHRNet(HRNetAttentionMixin, HRNet):
    """mmdet's HRNet with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAEfficientNet(EfficientNetAttentionMixin, EfficientNet):
    """mmdet's EfficientNet with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAMobileNetV2(BatchNormSequencesMixin, MobileNetV2):
    """mmdet's MobileNetV2 with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELASwinTransformer(SwinAttentionMixin, SwinTransformer):
    """mmdet's SwinTransformer with layer attention.

    Takes the arguments of the host's class and of the mixin, also
    ``convert_weights``.
    """


@MODELS.register_module()
class ELAPyramidVisionTransformer(PVTAttentionMixin, PyramidVisionTransformer):
    """mmdet's PyramidVisionTransformer (PVT) with layer attention.

    Takes the arguments of the host's class and of the mixin, also
    ``convert_weights``. Block 0 of a stage is its position embedding: layer
    ``layers.0.1.2`` attends behind block ``layers.0.1.3``.
    """


@MODELS.register_module()
class ELAPyramidVisionTransformerV2(PVTAttentionMixin,
                                    PyramidVisionTransformerV2):
    """mmdet's PyramidVisionTransformerV2 (PVTv2) with layer attention.

    Takes the arguments of the host's class and of the mixin, also
    ``convert_weights``.
    """


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(
    'LearningRateDecayOptimizerConstructor', force=True)
class ELALearningRateDecayConstructor(KnowsAttention,
                                      LearningRateDecayOptimizerConstructor):
    """mmdet's layer-wise learning rates, extended to attention.

    Registered under the host's name, so that configs need no change. Networks
    without attention are not affected.
    """
