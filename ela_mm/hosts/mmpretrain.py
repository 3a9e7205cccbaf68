"""ELA on MMPretrain's ResNet family, and what only MMPretrain knows."""
from typing import List, Sequence, Tuple

from mmengine.config import Config, ConfigDict
from mmpretrain.engine import VisualizationHook
from mmpretrain.models import ImageClassifier  # all of them, or none
from mmpretrain.models.backbones import (
    ResNet,
    ResNet_CIFAR,
    ResNetV1c,
    ResNetV1d,
    ResNeXt,
    SEResNet,
    SEResNeXt,
)
from mmpretrain.models.backbones.resnet import Bottleneck
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from mmpretrain.registry import HOOKS, MODELS
from mmpretrain.structures import DataSample
from torch import nn

from ..config_types import type_name
from ..errors import UsageError
from ..models.backbones.resnet import ResNetAttentionMixin
from .host import Classifier, Host


class LayerDepthMixin:
    """What attention is to layer-wise learning rates."""

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


class MMPretrainMixin(LayerDepthMixin, ResNetAttentionMixin):
    """Adds layer attention to a ResNet class of mmpretrain."""
    last_norm_reader = 'drop_path'

    def _stage_channels(self, kwargs: dict) -> int:
        return kwargs['out_channels']


@MODELS.register_module()
class ELAResNet(MMPretrainMixin, ResNet):
    """mmpretrain's ResNet (18, 34, 50, 101, 152) with layer attention.

    Takes the arguments of :class:`mmpretrain.models.backbones.ResNet` and those of
    :class:`~ela_mm.models.backbones.layer_attention_mixin.LayerAttentionMixin`;
    ``drop_path_rate`` also drops the attention's terms. Returns a tuple of
    (B, C, H, W), one per entry of ``out_indices``.
    """


@MODELS.register_module()
class ELAResNetV1c(MMPretrainMixin, ResNetV1c):
    """mmpretrain's ResNetV1c (deep stem) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAResNetV1d(MMPretrainMixin, ResNetV1d):
    """mmpretrain's ResNetV1d (deep stem, average-pool shortcut) with attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAResNeXt(MMPretrainMixin, ResNeXt):
    """mmpretrain's ResNeXt (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELASEResNet(MMPretrainMixin, SEResNet):
    """mmpretrain's SE-ResNet (50, 101, 152) with layer attention.

    Squeeze-and-excitation weighs channels inside a block, layer attention
    retrieves across blocks; a block's output passes through both. Takes the
    arguments of the host's class and of the mixin.
    """
    last_norm_reader = 'se_layer'


@MODELS.register_module()
class ELASEResNeXt(MMPretrainMixin, SEResNeXt):
    """mmpretrain's SE-ResNeXt (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    last_norm_reader = 'se_layer'


# The paper's ResNets for CIFAR: 9 n + 2 layers, three stages of n bottlenecks
# with planes 16, 32, 64 (64, 128, 256 channels out), 1x1 convolutions where
# the shortcut changes. The paper does not describe them; they were identified
# by the parameters of table 1.
_PAPER_CIFAR = dict(
    stem_channels=16,
    base_channels=16,
    num_stages=3,
    strides=(1, 2, 2),
    dilations=(1, 1, 1),
    out_indices=(2, ))


@MODELS.register_module()
class ELAResNet_CIFAR(MMPretrainMixin, ResNet_CIFAR):
    """ResNet for small pictures (3x3 stem, no max-pool) with layer attention.

    Args:
        depth (int): 20, 56 or 110 for the paper's networks, whose three
            stages have 64, 128 and 256 channels out; 18, 34, 50, 101 or 152
            for mmpretrain's.
        **kwargs: Further arguments of mmpretrain's ResNet_CIFAR and of the
            mixin. At the paper's depths they default to the paper's
            (``stem_channels=16``, ``base_channels=16``, ``num_stages=3``,
            ``out_indices=(2, )``), else to mmpretrain's.

    Raises:
        KeyError: On another depth.
    """

    arch_settings = {
        **ResNet_CIFAR.arch_settings,
        **{
            depth: (Bottleneck, ((depth - 2) // 9, ) * 3)
            for depth in (20, 56, 110)
        }
    }

    def __init__(self, depth: int, **kwargs) -> None:
        if depth in (20, 56, 110):
            kwargs = {**_PAPER_CIFAR, **kwargs}
        super().__init__(depth, **kwargs)


@HOOKS.register_module()
class ViewVisualizationHook(VisualizationHook):
    """mmpretrain's VisualizationHook for test-time augmentation.

    Of the views of a picture it draws the first that is not flipped; the
    host's, which expects one view, fails on several. Takes the host's arguments.
    """

    def _draw_samples(self, batch_idx: int, data_batch: dict,
                      data_samples: Sequence[DataSample],
                      step: int = 0) -> None:
        views = data_batch['data_samples']  # of each view, of each picture
        chosen = next((i for i, view in enumerate(views)
                       if not view[0].get('flip')), 0)
        super()._draw_samples(
            batch_idx, dict(inputs=data_batch['inputs'][chosen]), data_samples,
            step)


class MMPretrain(Host):
    """MMPretrain."""

    scope = 'mmpretrain'
    deep_stem = tuple(
        f'stem.{i}.{part}' for i in range(3) for part in ('conv', 'bn'))
    main_metrics = ('accuracy/top1', 'single-label/f1-score',
                    'multi-label/mAP')
    exportable = dict(classifier='an mmpretrain ImageClassifier')
    tta_model = dict(type='mmpretrain.AverageClsScoreTTA')

    def prepare_config(self, cfg: Config) -> None:
        """Set the loaders' defaults; the host's configs rely on its tools."""
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            loader = cfg.get(name)
            if loader is None:
                continue
            loader.setdefault('pin_memory', True)
            loader.setdefault('persistent_workers',
                              loader.get('num_workers', 0) > 0)
            loader.setdefault('collate_fn', ConfigDict(type='default_collate'))

    def picture_shape(self, backbone: dict) -> Tuple[int, int]:
        """Say for which pictures a backbone is made: CIFAR's are small."""
        small = 'CIFAR' in type_name(backbone)
        return (32, 32) if small else super().picture_shape(backbone)

    def tta(self, cfg: Config) -> None:
        """Wrap model and test pipeline, and let the hook draw one view."""
        super().tta(cfg)
        hook = (cfg.get('default_hooks') or {}).get('visualization') or {}
        if type_name(hook) == VisualizationHook.__name__:
            hook['type'] = f'mmpretrain.{ViewVisualizationHook.__name__}'

    def default_part(self, model: nn.Module) -> str:
        """Say what of a model is exported: a classifier, if it has a head."""
        classifies = isinstance(model, ImageClassifier) and model.with_head
        return 'classifier' if classifies else super().default_part(model)

    def export(self, model: nn.Module,
               scores: bool) -> Tuple[nn.Module, List[str]]:
        """Make a module of the classifier, from pictures to logits or scores.

        Raises:
            UsageError: If scores are wanted of a head that is not known.
        """
        ending = _scoring(model.head) if scores else None
        return (Classifier(model, ending).eval(),
                ['scores' if scores else 'logits'])  # (B, classes)


def _scoring(head: nn.Module) -> nn.Module:
    """What the head's ``predict`` makes scores of logits with."""
    if isinstance(head, MultiLabelClsHead):
        return nn.Sigmoid()
    if isinstance(head, ClsHead):
        return nn.Softmax(dim=1)
    raise UsageError(f'scores of a {type(head).__name__} are not known: '
                     'export its logits, without --scores')


HOST = MMPretrain()
