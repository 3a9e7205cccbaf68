"""Random batches that a host's models may take."""
import copy
from typing import Any, Iterator, Optional, Tuple

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import nn

from dev.drop_in.configs import HOSTS
from dev.drop_in.downloads import CLASSES

# What a training step is tried with, in turn, until the plain network takes it.
# Pixels, stride of the semantic map, and whether objects have masks.
_DETECTOR_INPUTS = ((64, 1, True), (64, 8, True), (64, 1, False),
                    (128, 1, True), (256, 1, True))
# Views, and pixels of a side: transformers with positions take one size alone.
_CLASSIFIER_INPUTS = ((1, 64), (2, 64), (8, 64), (1, 224), (1, 256), (1, 384),
                      (1, 512))
_SEGMENTOR_SIZES = (64, 128, 256, 512, 640)


def inputs_for(model: nn.Module, host: str) -> Iterator[Tuple[str, Any]]:
    """Random batches of two pictures that a model may take.

    Args:
        model (nn.Module): A whole detector, classifier or segmentor.
        host (str): Whose it is.

    Yields:
        Tuple[str, Any]: A description, and what the data loader would return.
    """
    # Some of mmpretrain's configs are detectors, to try its backbones in, and
    # some of mmdet's are classifiers, to train its backbones.
    package = type(model).__module__.split('.')[0]
    kind = package if package in HOSTS else host
    if kind == 'mmdet':
        yield from _detector_inputs(model)
    elif kind == 'mmseg':
        yield from _segmentor_inputs(model)
    else:
        yield from _classifier_inputs(model)


def _detector_inputs(model: nn.Module) -> Iterator[Tuple[str, Any]]:
    from mmdet.models.detectors import SemiBaseDetector
    from mmdet.models.mot import BaseMOTModel
    from mmdet.models.reid import BaseReID
    from mmdet.structures import ReIDDataSample
    from mmdet.testing import demo_mm_inputs, demo_track_inputs
    if isinstance(model, BaseMOTModel):
        for size in (128, 256):
            np.random.seed(0)
            yield f'two frames, {size} px', demo_track_inputs(
                batch_size=1, num_frames=2, key_frames_inds=[0],
                image_shapes=[(3, size, size)], num_items=[3],
                num_classes=1, with_mask=True)
        # ByteTrack's and OC-SORT's detectors are trained in the tracker.
    if isinstance(model, BaseReID):
        sample = ReIDDataSample().set_gt_label(np.array([0, 0, 1, 1]))
        yield '4 crops of 2 persons, 256 x 128 px', dict(
            inputs=[torch.randn(4, 3, 256, 128)], data_samples=[sample])
        return
    for size, stride, masks in _DETECTOR_INPUTS:
        np.random.seed(0)
        data = demo_mm_inputs(
            batch_size=2, image_shapes=[(3, size, size)] * 2,
            num_items=[3, 2], num_classes=2, with_mask=True,
            with_semantic=True, sem_seg_output_strides=stride,
            use_box_type=True)
        for sample in data['data_samples']:
            truth = sample.gt_instances
            # A box of half the picture, so that every assigner has a positive.
            truth.bboxes.tensor[0] = torch.tensor(
                [.25, .25, .75, .75]) * size
            truth.bboxes = truth.bboxes.tensor
            truth.labels = truth.labels * 0  # which every detector has
            truth.masks.masks[0, size // 4:size * 3 // 4,
                              size // 4:size * 3 // 4] = 1
            sample.ignored_instances = InstanceData(
                bboxes=torch.zeros(0, 4))
            sample.proposals = InstanceData(
                bboxes=truth.bboxes.clone(),
                scores=torch.ones(len(truth.bboxes)))
            sample.set_metainfo(dict(
                homography_matrix=np.eye(3, dtype=np.float32),
                text=CLASSES, custom_entities=True))
            if not masks:  # as data of boxes alone: RTMDet reads those it gets
                del truth.masks
        note = f'2 pictures, {size} px'
        if stride != 1:
            note += f', semantic map at 1/{stride}'
        if not masks:
            note += ', without masks'
        if isinstance(model, SemiBaseDetector):
            branches = ('sup', 'unsup_teacher', 'unsup_student')
            data = {
                key: {branch: copy.deepcopy(value) for branch in branches}
                for key, value in data.items()
            }
            note += ', with and without labels'
        yield note, data


def _segmentor_inputs(model: nn.Module) -> Iterator[Tuple[str, Any]]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    for size in _SEGMENTOR_SIZES:
        generator = torch.Generator().manual_seed(0)
        # Regions of 16 px, each of a class.
        labels = torch.randint(
            0, model.num_classes, (2, 1, size // 16, size // 16),
            generator=generator).repeat_interleave(16, 2).repeat_interleave(
                16, 3)  # (2, 1, size, size)
        shape = dict(ori_shape=(size, size), img_shape=(size, size))
        samples = [
            SegDataSample(
                gt_sem_seg=PixelData(data=x), metainfo=dict(shape))
            for x in labels
        ]
        pictures = torch.randint(
            0, 256, (2, 3, size, size), dtype=torch.uint8,
            generator=generator)
        yield f'2 pictures, {size} px', dict(
            inputs=list(pictures), data_samples=samples)


def _classifier_inputs(model: nn.Module) -> Iterator[Tuple[str, Any]]:
    from mmpretrain.structures import DataSample
    mask = _mask_of(model)
    inputs = [(size, ) * views for views, size in _CLASSIFIER_INPUTS]
    if mask is not None:  # of pictures of one size, and of their targets
        side = getattr(model.backbone.patch_embed, 'init_input_size', (224, ))[0]
        inputs = [(side, ), (side, side // 2), (side, side)]
    for sizes in inputs:
        number = 4 if sizes[0] == 64 else 2
        samples = [DataSample().set_gt_label(i % 2) for i in range(number)]
        note = (f'{number} pictures, {sizes[0]} px, {len(sizes)} view'
                + 's' * (len(sizes) > 1))
        if mask is not None:
            samples = [sample.set_mask(mask) for sample in samples]
            note += ', masked'
        pictures = [torch.randint(0, 256, (number, 3, size, size),
                                  dtype=torch.uint8) for size in sizes]
        yield note, dict(
            inputs=pictures if len(sizes) > 1 else pictures[0],
            data_samples=samples)


def _mask_of(model: nn.Module) -> Optional[torch.Tensor]:
    """(H, W), for networks whose data says which patches to mask."""
    from mmpretrain.models.selfsup import (
        CAE,
        BEiT,
        MaskFeat,
        SimMIM,
        iTPN,
    )
    if isinstance(model, iTPN) and model.backbone.reconstruction_type == 'clip':
        height = width = 14
    elif isinstance(model, (BEiT, CAE, MaskFeat, SimMIM)):
        height, width = model.backbone.patch_embed.init_out_size
    else:
        return None
    order = torch.randperm(height * width,
                           generator=torch.Generator().manual_seed(0))
    # 75 of 196 patches, of which CAE wants this number.
    return (order < height * width * 75 // 196).long().view(height, width)
