"""ELA on MMPretrain's other families of backbones."""
import re
from typing import Dict, Tuple

from mmpretrain.models.backbones import (
    BEiTViT,
    ConvNeXt,
    DeiT3,
    DistilledVisionTransformer,
    EfficientNetV2,
    HRNet,
    MobileNetV2,
    PoolFormer,
    RegNet,
    RepVGG,
    Res2Net,
    ResNeSt,
    RIFormer,
    SwinTransformer,
    SwinTransformerV2,
    VisionTransformer,
    ViTEVA02,
    ViTSAM,
    XCiT,
)
from mmpretrain.registry import MODELS
from torch import Tensor

from ..models.backbones.convnext import ConvNeXtAttentionMixin
from ..models.backbones.fresh_norms import FreshNormsMixin
from ..models.backbones.hrnet import HRNetAttentionMixin
from ..models.backbones.sequences import (
    BatchNormSequencesMixin,
    SequencesMixin,
)
from ..models.backbones.stages import (
    AttentionLayerInfo,
    AttentionStage,
    LightAttentionStage,
)
from ..models.backbones.swin import SwinAttentionMixin
from ..models.backbones.vit import (
    FrozenAgainMixin,
    MapBlockGroup,
    ViTAttentionMixin,
)
from .mmpretrain import LayerDepthMixin, MMPretrainMixin


class _BottleneckMixin(MMPretrainMixin):
    """Families with bottlenecks, in which compared systems are not tested."""
    kinds = {'base': AttentionStage, 'light': LightAttentionStage}


@MODELS.register_module()
class ELARegNet(_BottleneckMixin, RegNet):
    """mmpretrain's RegNet with layer attention.

    Takes the arguments of the host's class and of the mixin; ``head_dim``
    defaults to 8 for ``regnetx_1.6gf`` and ``regnetx_6.4gf``.
    """


@MODELS.register_module()
class ELARes2Net(_BottleneckMixin, Res2Net):
    """mmpretrain's Res2Net (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    last_norm_reader = None  # its blocks have drop_path, and do not call it


@MODELS.register_module()
class ELAResNeSt(_BottleneckMixin, ResNeSt):
    """mmpretrain's ResNeSt (50, 101, 152, 200, 269) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    last_norm_reader = None  # its blocks have drop_path, and do not call it


@MODELS.register_module()
class ELAConvNeXt(LayerDepthMixin, ConvNeXtAttentionMixin, ConvNeXt):
    """mmpretrain's ConvNeXt, V1 and V2, with layer attention.

    Takes the arguments of the host's class and of the mixin. In mmdet's
    configs its type is ``mmpretrain.ELAConvNeXt``.
    """


@MODELS.register_module()
class ELAHRNet(HRNetAttentionMixin, HRNet):
    """mmpretrain's HRNet with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAEfficientNetV2(BatchNormSequencesMixin, EfficientNetV2):
    """mmpretrain's EfficientNetV2 with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    norm_cfg_by_default = dict(type='BN', eps=1e-3, momentum=0.1)


@MODELS.register_module()
class ELAMobileNetV2(BatchNormSequencesMixin, MobileNetV2):
    """mmpretrain's MobileNetV2 with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELARepVGG(BatchNormSequencesMixin, RepVGG):
    """mmpretrain's RepVGG with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAPoolFormer(SequencesMixin, PoolFormer):
    """mmpretrain's PoolFormer with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    norm_cfg_by_default = dict(type='GN', num_groups=1)


@MODELS.register_module()
class ELARIFormer(SequencesMixin, RIFormer):
    """mmpretrain's RIFormer with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    norm_cfg_by_default = dict(type='GN', num_groups=1)
    frozen_from = 0


@MODELS.register_module()
class ELASwinTransformer(LayerDepthMixin, FreshNormsMixin, SwinAttentionMixin,
                         SwinTransformer):
    """mmpretrain's SwinTransformer with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    frozen_from = 0

    def _load_from_state_dict(self, state_dict: Dict[str, Tensor], prefix: str,
                              local_metadata: dict, *args, **kwargs) -> None:
        """Load checkpoints of earlier versions of the host's class as well.

        The host does so only for SwinTransformer itself, not for subclasses.
        """
        version = local_metadata.get('version') or 0
        for key in [key for key in state_dict if key.startswith(prefix)]:
            if version < 2 and key.startswith(f'{prefix}norm.'):
                last = f'{prefix}norm{len(self.stages) - 1}.'
                state_dict[key.replace(f'{prefix}norm.', last, 1)] = (
                    state_dict.pop(key))
            elif version < 3 and 'attn_mask' in key:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      *args, **kwargs)


@MODELS.register_module()
class ELASwinTransformerV2(FreshNormsMixin, SwinAttentionMixin,
                           SwinTransformerV2):
    """mmpretrain's SwinTransformerV2 with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    frozen_from = 0


class ViTDepthMixin:
    """Gives attention in groups a depth in layer-wise learning rates."""

    def get_layer_depth(self,
                        param_name: str,
                        prefix: str = '') -> Tuple[int, int]:
        """Return the depth of a parameter for layer-wise learning rates.

        Attention layers have the depth of their blocks.

        Args:
            param_name (str): Name of the parameter, such as
                ``layers.group2.attention.1.query.weight``.
            prefix (str): Prefix of the name, as in the host. Defaults to ``''``.

        Returns:
            Tuple[int, int]: Depth of the parameter, and number of depths.
        """
        name = self.blocks_name
        param_name = re.sub(
            rf'{name}\.group(\d+)\.attention\.(\d+)\.', lambda found:
            f'{name}.{self.depth_of(*map(int, found.groups()))}.', param_name)
        return super().get_layer_depth(param_name, prefix)


class _ViTMixin(ViTDepthMixin, ViTAttentionMixin):
    """Adds layer attention to a plain vision transformer of mmpretrain."""


@MODELS.register_module()
class ELAVisionTransformer(_ViTMixin, VisionTransformer):
    """mmpretrain's VisionTransformer, also DeiT, with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELADistilledVisionTransformer(_ViTMixin, DistilledVisionTransformer):
    """mmpretrain's DistilledVisionTransformer with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELADeiT3(_ViTMixin, DeiT3):
    """mmpretrain's DeiT3 with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELABEiTViT(_ViTMixin, BEiTViT):
    """mmpretrain's BEiTViT (BEiT and BEiT v2, fine-tuned) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAViTEVA02(_ViTMixin, ViTEVA02):
    """mmpretrain's ViTEVA02 with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAViTSAM(_ViTMixin, ViTSAM):
    """mmpretrain's ViTSAM, built as ViTDet is, with layer attention.

    Most blocks have windows, and there are no extra tokens. Takes the arguments
    of the host's class and of the mixin.
    """
    kinds = {'base': MapBlockGroup}


@MODELS.register_module()
class ELAXCiT(FrozenAgainMixin, ViTAttentionMixin, XCiT):
    """mmpretrain's XCiT with layer attention behind its XCA layers.

    The layers for the class token, which follow, have none. Takes the arguments
    of the host's class and of the mixin.
    """
    blocks_name = 'xca_layers'

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether ``frozen_stages``, counted from 2, freezes a layer."""
        return self.depth_of(layer.stage, layer.index) < (
            self.frozen_stages - 1)
