"""ELA on MMPose's ResNet family, and MMPose as a host."""
from typing import Optional, Tuple

import torch
from mmengine.config import Config
from mmpose.models import (  # all of them, or none
    ResNeSt,
    ResNet,
    ResNetV1d,
    ResNeXt,
    SEResNet,
    SEResNeXt,
)
from mmpose.registry import MODELS
from torch import Tensor, nn

from ..errors import UsageError
from ..models.backbones.resnet import ResNetAttentionMixin
from .host import Explained, Host


class _MMPoseMixin(ResNetAttentionMixin):

    def _stage_channels(self, kwargs: dict) -> int:
        return kwargs['out_channels']


@MODELS.register_module()
class ELAResNet(_MMPoseMixin, ResNet):
    """mmpose's ResNet (18, 34, 50, 101, 152) with layer attention.

    Takes the arguments of :class:`mmpose.models.backbones.ResNet` and those of
    :class:`~ela_mm.models.backbones.layer_attention_mixin.LayerAttentionMixin`.
    Returns a tuple of (B, C, H, W), one for each entry of ``out_indices``.
    """


@MODELS.register_module()
class ELAResNetV1d(_MMPoseMixin, ResNetV1d):
    """mmpose's ResNetV1d (deep stem, average-pool shortcut) with attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAResNeXt(_MMPoseMixin, ResNeXt):
    """mmpose's ResNeXt (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELASEResNet(_MMPoseMixin, SEResNet):
    """mmpose's SE-ResNet (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    last_norm_reader = 'se_layer'


@MODELS.register_module()
class ELASEResNeXt(_MMPoseMixin, SEResNeXt):
    """mmpose's SE-ResNeXt (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    last_norm_reader = 'se_layer'


@MODELS.register_module()
class ELAResNeSt(_MMPoseMixin, ResNeSt):
    """mmpose's ResNeSt (50, 101, 152, 200, 269) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


class MMPose(Host):
    """MMPose."""

    scope = 'mmpose'
    main_metrics = ('coco/AP', 'crowdpose/AP', 'PCK', 'AUC', 'NME')

    def picture_shape(self, backbone: dict) -> Tuple[int, int]:
        """Return the usual size of images: a crop of one person."""
        return 256, 192

    def tta(self, cfg: Config) -> None:
        """Set up test-time augmentation as the config says.

        Raises:
            UsageError: If the config has no ``tta_model``: MMPose flips within
                the model.
        """
        if 'tta_model' not in cfg:
            raise UsageError(
                'mmpose flips within the model: leave --tta out and set '
                '--cfg-options model.test_cfg.flip_test=True')
        super().tta(cfg)

    def explain(self,
                model: nn.Module,
                data: dict,
                wanted: Optional[str] = None) -> Explained:
        """Choose what class activation maps explain: the joints found.

        The score is the value of each joint's heatmap at its peak, averaged
        over joints.

        Raises:
            UsageError: If the head predicts no heatmaps, or a class is wanted.
        """
        if wanted is not None:
            raise UsageError(f'class {wanted!r}: expected none, since joints '
                             'are explained together')
        with torch.no_grad():
            heatmaps = model(data['inputs'], None, mode='tensor')
        if not isinstance(heatmaps, Tensor) or heatmaps.ndim != 4:
            raise UsageError(
                f'{type(model).__name__} answers with no heatmaps, whose peaks '
                'are explained: expected a head such as HeatmapHead')
        peaks = heatmaps[0].flatten(1).argmax(1, keepdim=True)  # (K, 1)
        return Explained(
            _Heatmaps,
            lambda answer: answer.flatten(1).gather(1, peaks).mean(),
            f'the {len(peaks)} joints that are found')


class _Heatmaps(nn.Module):
    """Maps images (B, 3, H, W) to heatmaps (B, K, h, w)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs, None, mode='tensor')


HOST = MMPose()
