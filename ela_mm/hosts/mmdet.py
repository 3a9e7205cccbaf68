"""ELA on MMDetection's ResNet family, and MMDetection as a host."""
from copy import deepcopy
from typing import Dict, List, Optional

import torch
from mmdet.models import ResNet, ResNetV1d, ResNeXt  # all of them, or none
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.evaluator import DumpResults
from torch import Tensor, nn

from ..errors import UsageError
from ..models.backbones.resnet import PlanesMixin
from .host import Explained, Host, class_name, label_of


@MODELS.register_module()
class ELAResNet(PlanesMixin, ResNet):
    """mmdet's ResNet (18, 34, 50, 101, 152) with layer attention.

    Takes the arguments of :class:`mmdet.models.backbones.ResNet` and those of
    :class:`~ela_mm.models.backbones.layer_attention_mixin.LayerAttentionMixin`.
    Returns a tuple of (B, C, H, W), one for each entry of ``out_indices``.
    """


@MODELS.register_module()
class ELAResNetV1d(PlanesMixin, ResNetV1d):
    """mmdet's ResNetV1d (deep stem, average-pool shortcut) with attention.

    Takes the arguments of the host's class and of the mixin.
    """


@MODELS.register_module()
class ELAResNeXt(PlanesMixin, ResNeXt):
    """mmdet's ResNeXt (50, 101, 152) with layer attention.

    Takes the arguments of the host's class and of the mixin.
    """


class MMDet(Host):
    """MMDetection."""

    scope = 'mmdet'
    deep_stem = tuple(f'stem.{i}' for i in (0, 1, 3, 4, 6, 7))
    main_metrics = ('coco/bbox_mAP', 'coco/segm_mAP')
    tta_model = dict(
        type='mmdet.DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
    tta_meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape',
                     'scale_factor', 'flip', 'flip_direction')

    def show(self, cfg: Config, folder: Optional[str]) -> None:
        """Make the visualization hook draw every image of a test."""
        cfg.default_hooks.visualization.update(draw=True, test_out_dir=folder)

    def dump_results(self, path: str) -> DumpResults:
        """Build the metric that writes predictions, with masks in RLE."""
        from mmdet.evaluation import DumpDetResults
        return DumpDetResults(out_file_path=path)

    def explain(self,
                model: nn.Module,
                data: dict,
                wanted: Optional[str] = None) -> Explained:
        """Choose what class activation maps explain: the three best boxes.

        For a tracker these are the boxes of its detector in one frame.

        Raises:
            UsageError: If nothing, or nothing of the wanted class, is found in
                the image.
        """
        if hasattr(model, 'detector'):
            found = self.explain(
                model.detector, dict(
                    data, data_samples=[data['data_samples'][0][0]]), wanted)
            return found._replace(
                answer=lambda network: found.answer(network.detector))
        if not (hasattr(model, 'bbox_head') or hasattr(model, 'roi_head')):
            return super().explain(model, data, wanted)
        from pytorch_grad_cam.utils.model_targets import (
            FasterRCNNBoxScoreTarget,
        )
        sample = data['data_samples'][0]
        with torch.no_grad():
            answer = _Detector(model, sample)(data['inputs'])[0]
        kept = answer['scores'].argsort(descending=True)
        what = 'nothing'
        if wanted is not None:
            what = f'no {wanted!r}'
            label = label_of(model, wanted, _number_of_classes(model, answer))
            kept = kept[answer['labels'][kept] == label]
        kept = kept[answer['scores'][kept] > 0][:3]
        if not len(kept):
            raise UsageError(
                f'the detector finds {what} in the picture, and the maps '
                'explain what was found: expected one with an object, or a '
                'lower threshold such as --cfg-options '
                'model.test_cfg.rcnn.score_thr=0.001')
        labels = answer['labels'][kept]
        target = FasterRCNNBoxScoreTarget(labels, answer['boxes'][kept].cpu())
        return Explained(
            lambda network: _Detector(network, sample), target,
            'the surest boxes, of classes ' + ', '.join(
                class_name(model, label)
                for label in dict.fromkeys(labels.tolist())))


def _number_of_classes(model: nn.Module, answer: dict) -> int:
    """Count the classes of the dataset, or else those that are found."""
    names = getattr(model, 'dataset_meta', {}).get('classes') or ()
    return len(names) or len(answer['labels'].bincount())


class _Detector(nn.Module):
    """Maps images of equal shape to boxes, as grad-cam's targets take them."""

    def __init__(self, model: nn.Module, sample) -> None:
        super().__init__()
        self.model = model
        self.sample = sample

    def forward(self, inputs: Tensor) -> List[Dict[str, Tensor]]:
        samples = [deepcopy(self.sample) for _ in inputs]
        results = self.model.predict(inputs, samples, rescale=False)
        found = [result.pred_instances for result in results]
        return [
            dict(boxes=x.bboxes, labels=x.labels, scores=x.scores)
            for x in found
        ]


HOST = MMDet()
