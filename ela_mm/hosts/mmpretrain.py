"""ELA on MMPretrain's ResNet family, and MMPretrain as a host."""
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
    """Gives attention a depth in layer-wise learning rates."""

    def get_layer_depth(self,
                        param_name: str,
                        prefix: str = '') -> Tuple[int, int]:
        """Return the depth of a parameter for layer-wise learning rates.

        Attention layers have the depth of their blocks.

        Args:
            param_name (str): Name of the parameter, such as
                ``backbone.layer3.attention.4.query.weight``.
            prefix (str): Prefix of the name, as in the host. Defaults to ``''``.

        Returns:
            Tuple[int, int]: Depth of the parameter, and number of depths.
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
    ``drop_path_rate`` also drops terms of attention. Returns a tuple of
    (B, C, H, W), one for each entry of ``out_indices``.
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

    Squeeze-and-excitation weighs channels within a block, and layer attention
    retrieves across blocks, from the output of both. Takes the arguments of the
    host's class and of the mixin.
    """
    last_norm_reader = 'se_layer'


@MODELS.register_module()
class ELASEResNeXt(MMPretrainMixin, SEResNeXt):
    """mmpretrain's SE-ResNeXt (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """
    last_norm_reader = 'se_layer'


# The paper's ResNets for CIFAR have 9 n + 2 layers: three stages of n
# bottlenecks with planes 16, 32, 64 (64, 128, 256 output channels), and 1x1
# convolutions where a shortcut changes width. The paper does not describe them;
# they were identified by the numbers of parameters in table 1.
_PAPER_CIFAR = dict(
    stem_channels=16,
    base_channels=16,
    num_stages=3,
    strides=(1, 2, 2),
    dilations=(1, 1, 1),
    out_indices=(2, ))


@MODELS.register_module()
class ELAResNet_CIFAR(MMPretrainMixin, ResNet_CIFAR):
    """ResNet for small images (3x3 stem, no max-pool) with layer attention.

    Args:
        depth (int): Depth: 20, 56 or 110 for the paper's networks, whose three
            stages have 64, 128 and 256 output channels; 18, 34, 50, 101 or 152
            for those of mmpretrain.
        **kwargs: Further arguments of mmpretrain's ResNet_CIFAR and of the
            mixin. At the paper's depths the defaults are the paper's
            (``stem_channels=16``, ``base_channels=16``, ``num_stages=3``,
            ``out_indices=(2, )``).

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

    It draws the first view of an image that is not flipped. The host's hook
    expects a single view and fails on several. Takes the host's arguments.
    """

    def _draw_samples(self, batch_idx: int, data_batch: dict,
                      data_samples: Sequence[DataSample],
                      step: int = 0) -> None:
        views = data_batch['data_samples']  # for each view, a list of samples
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
        """Set defaults of data loaders, as the host's own tools do."""
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            loader = cfg.get(name)
            if loader is None:
                continue
            loader.setdefault('pin_memory', True)
            loader.setdefault('persistent_workers',
                              loader.get('num_workers', 0) > 0)
            loader.setdefault('collate_fn', ConfigDict(type='default_collate'))

    def picture_shape(self, backbone: dict) -> Tuple[int, int]:
        """Return the usual size of images, which is small for CIFAR."""
        small = 'CIFAR' in type_name(backbone)
        return (32, 32) if small else super().picture_shape(backbone)

    def tta(self, cfg: Config) -> None:
        """Set up test-time augmentation, and a hook that draws one view."""
        super().tta(cfg)
        hook = (cfg.get('default_hooks') or {}).get('visualization') or {}
        if type_name(hook) == VisualizationHook.__name__:
            hook['type'] = f'mmpretrain.{ViewVisualizationHook.__name__}'

    def default_part(self, model: nn.Module) -> str:
        """Return the part to export: the classifier, if there is a head."""
        classifies = isinstance(model, ImageClassifier) and model.with_head
        return 'classifier' if classifies else super().default_part(model)

    def export(self, model: nn.Module,
               scores: bool) -> Tuple[nn.Module, List[str]]:
        """Make a module of the classifier, from images to logits or scores.

        Raises:
            UsageError: If scores are wanted and the type of head is unknown.
        """
        ending = _scoring(model.head) if scores else None
        return (Classifier(model, ending).eval(),
                ['scores' if scores else 'logits'])  # (B, classes)


def _scoring(head: nn.Module) -> nn.Module:
    """Return the module by which a head turns logits into scores."""
    if isinstance(head, MultiLabelClsHead):
        return nn.Sigmoid()
    if isinstance(head, ClsHead):
        return nn.Softmax(dim=1)
    raise UsageError(f'scores of a {type(head).__name__} are not known: '
                     'export its logits, without --scores')


HOST = MMPretrain()
