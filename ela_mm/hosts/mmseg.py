"""ELA on MMSegmentation's ResNet family, and MMSegmentation as a host."""
from typing import List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmseg.models import (  # all of them, or none
    DepthEstimator,
    EncoderDecoder,
    ResNeSt,
    ResNet,
    ResNetV1c,
    ResNetV1d,
    ResNeXt,
)
from mmseg.registry import MODELS
from mmseg.utils import stack_batch
from torch import Tensor, nn

from ..compat.compiling import is_compiling
from ..config_types import type_name
from ..errors import UsageError
from ..models.backbones.resnet import PlanesMixin, WidePlanesMixin
from .host import Explained, Host, class_name, label_of


@MODELS.register_module()
class ELAResNet(PlanesMixin, ResNet):
    """mmseg's ResNet (18, 34, 50, 101, 152) with layer attention.

    Takes the arguments of :class:`mmseg.models.backbones.ResNet`, dilations,
    ``multi_grid`` and ``contract_dilation`` among them, and those of
    :class:`~ela_mm.models.backbones.layer_attention_mixin.LayerAttentionMixin`.
    Returns a tuple of (B, C, H, W), one for each entry of ``out_indices``.
    """


@MODELS.register_module()
class ELAResNetV1c(PlanesMixin, ResNetV1c):
    """mmseg's ResNetV1c (deep stem) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAResNetV1d(PlanesMixin, ResNetV1d):
    """mmseg's ResNetV1d (deep stem, average-pool shortcut) with attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAResNeXt(PlanesMixin, ResNeXt):
    """mmseg's ResNeXt (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAResNeSt(WidePlanesMixin, ResNeSt):
    """mmseg's ResNeSt (50, 101, 152, 200) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


class MMSeg(Host):
    """MMSegmentation."""

    scope = 'mmseg'
    deep_stem = tuple(f'stem.{i}' for i in (0, 1, 3, 4, 6, 7))
    main_metrics = ('mIoU', 'mDice', 'mFscore')
    exportable = dict(segmentor='an mmseg EncoderDecoder')
    tta_model = dict(type='mmseg.SegTTAModel')

    def picture_shape(self, backbone: dict) -> Tuple[int, int]:
        """Return the usual size of images: that of crops of ADE20K."""
        return 512, 512

    def show(self, cfg: Config, folder: Optional[str]) -> None:
        """Make the visualization hook draw every image of a test.

        Pictures are in ``vis_data/vis_image`` below the folder, as with the
        host's own tool.
        """
        cfg.default_hooks.visualization.update(draw=True, interval=1)
        if folder:
            if not cfg.get('visualizer'):
                cfg.visualizer = dict(type='mmseg.SegLocalVisualizer')
            # In place: a copy would contain classes, which cannot be dumped.
            cfg.visualizer.update(
                save_dir=folder, vis_backends=[dict(type='LocalVisBackend')])

    def tta_steps(self, pipeline: Sequence[dict]) -> List[dict]:
        """Make a pipeline that flips images only, and not their labels.

        Predictions are flipped back before they are compared with labels.
        """
        *steps, augment = super().tta_steps(pipeline)
        labels = [x for x in steps if 'Annotation' in type_name(x)]
        flips, pack = augment['transforms']
        return [
            *(x for x in steps if x not in labels),
            dict(augment, transforms=[flips, *([x] for x in labels), pack])
        ]

    def dump_results(self, path: str) -> DumpResults:
        """Build the metric that writes label maps, without logits."""
        return _DumpMaps(out_file_path=path)

    def preprocess(self, model: nn.Module, batch: dict) -> dict:
        """Preprocess a batch; pad images of different sizes and their labels.

        mmseg's own preprocessor pads only in training.
        """
        pictures, steps = batch['inputs'], model.data_preprocessor
        if len({tuple(x.shape) for x in pictures}) == 1:
            return super().preprocess(model, batch)
        alone = [
            steps(dict(inputs=[picture], data_samples=[sample]), False)
            for picture, sample in zip(pictures, batch['data_samples'])
        ]
        inputs, samples = stack_batch(
            [x['inputs'][0] for x in alone],
            [x['data_samples'][0] for x in alone],
            size_divisor=1,
            pad_val=steps.pad_val,
            seg_pad_val=steps.seg_pad_val)
        return dict(inputs=inputs, data_samples=samples)

    def explain(self,
                model: nn.Module,
                data: dict,
                wanted: Optional[str] = None) -> Explained:
        """Choose what class activation maps explain: the pixels of a class.

        By default it is the class with most predicted pixels, other than
        background if there is another. Its score is its mean logit over the
        pixels predicted as this class; Seg-Grad-CAM uses the sum (Vinogradova
        et al., AAAI 2020, eq. 2).

        Raises:
            UsageError: If no pixel is predicted as the wanted class.
        """
        if not _segments(model):
            return super().explain(model, data, wanted)
        from pytorch_grad_cam.utils.model_targets import (
            SemanticSegmentationTarget,
        )
        with torch.no_grad():
            logits = _Segmentor(model)(data['inputs'])[0]  # (classes, H, W)
            found = _labels(model, logits)  # (H, W)
        pixels = {int(x): int((found == x).sum()) for x in found.unique()}
        if wanted is None:
            label = max(
                pixels, key=lambda x: (class_name(model, x) != 'background',
                                       pixels[x]))
        else:
            label = label_of(model, wanted, model.num_classes)
        if label not in pixels:
            raise UsageError(
                f'no pixel is found to be of class {wanted!r}: expected one of '
                + ', '.join(class_name(model, x) for x in pixels))
        share = (found == label) / pixels[label]  # (H, W), sums to 1
        target = SemanticSegmentationTarget(
            min(label, len(logits) - 1), share.cpu().numpy())
        # With a single logit, class 0 is where it is small.
        sign = -1 if len(logits) == 1 and label == 0 else 1
        return Explained(
            _Segmentor, lambda answer: sign * target(answer),
            f'the {pixels[label]} pixels of class {class_name(model, label)}')

    def default_part(self, model: nn.Module) -> str:
        """Return the part to export: the whole model, if it segments."""
        return 'segmentor' if _segments(model) else super().default_part(model)

    def export(self, model: nn.Module,
               scores: bool) -> Tuple[nn.Module, List[str]]:
        """Make a module of the segmentor, from images to maps of their size.

        Sliding windows and flips are left to whoever runs it.
        """
        ending = None
        if scores:
            ending = (
                nn.Sigmoid() if model.out_channels == 1 else nn.Softmax(dim=1))
        return (_Segmentor(model, ending).eval(),
                ['scores' if scores else 'logits'])  # (B, classes, H, W)


def _segments(model: nn.Module) -> bool:
    return isinstance(model, EncoderDecoder) and not isinstance(
        model, DepthEstimator)


def _labels(model: nn.Module, logits: Tensor) -> Tensor:
    """Turn logits (classes, H, W) into labels (H, W), as the host does."""
    if len(logits) > 1:
        return logits.argmax(0)
    return (logits[0].sigmoid() > model.decode_head.threshold).long()


class _Segmentor(nn.Module):
    """Maps images (B, 3, H, W) to logits (B, classes, H, W), or to scores.

    Args:
        model (nn.Module): An EncoderDecoder.
        scores (nn.Module, optional): Module that turns logits into scores.
    """

    def __init__(self,
                 model: nn.Module,
                 scores: Optional[nn.Module] = None) -> None:
        super().__init__()
        self.model = model
        self.scores = scores or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        shape = inputs.shape[2:]
        # Heads read the first entry only, except those that predict masks; and
        # in a graph for any batch size, inputs have no length.
        number = 1 if is_compiling() else len(inputs)
        meta = dict(ori_shape=shape, img_shape=shape, pad_shape=shape)
        logits = self.model.encode_decode(
            inputs, [dict(meta) for _ in range(number)])
        return self.scores(logits)


class _DumpMaps(DumpResults):
    """Writes only the part of predictions that is needed to score them."""

    def process(self, data_batch: dict, predictions: Sequence[dict]) -> None:
        super().process(data_batch, [_small(x) for x in predictions])


def _small(prediction: dict) -> dict:
    labels = prediction['pred_sem_seg']['data']
    if labels.max() < 256:
        labels = labels.to(torch.uint8)
    # Logits have a float32 map for each class: hundreds of MB for an image.
    kept = {k: v for k, v in prediction.items() if k != 'seg_logits'}
    return dict(kept, pred_sem_seg=dict(data=labels))


HOST = MMSeg()
