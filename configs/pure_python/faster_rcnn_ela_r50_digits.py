"""Faster R-CNN with ELA-ResNet-50 on handwritten digits, as a pure Python config.

The twin of ../faster_rcnn_ela_r50_digits.py.
Train: tools/train.py configs/pure_python/faster_rcnn_ela_r50_digits.py
"""
from mmcv.ops import RoIAlign, nms
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.evaluation import CocoMetric
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import RPNHead
from mmdet.models.detectors import FasterRCNN
from mmdet.models.losses import CrossEntropyLoss, L1Loss
from mmdet.models.necks import FPN
from mmdet.models.roi_heads import (
    Shared2FCBBoxHead,
    SingleRoIExtractor,
    StandardRoIHead,
)
from mmdet.models.task_modules import (
    AnchorGenerator,
    DeltaXYWHBBoxCoder,
    MaxIoUAssigner,
    RandomSampler,
)
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.optim import CosineAnnealingLR
from mmengine.runner import EpochBasedTrainLoop

from ela_mm.datasets.mmdet import DigitsDetectionDataset
from ela_mm.hosts.mmdet import ELAResNet

with read_base():
    from ._base_.files import *

max_epochs = 6
coder = dict(type=DeltaXYWHBBoxCoder, target_means=[0.] * 4)
assigner = dict(type=MaxIoUAssigner, ignore_iof_thr=-1)
sampler = dict(type=RandomSampler, neg_pos_ub=-1)

model = dict(
    type=FasterRCNN,
    data_preprocessor=dict(
        type=DetDataPreprocessor,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32),
    backbone=dict(type=ELAResNet, depth=50, norm_eval=False),
    neck=dict(
        type=FPN,
        in_channels=[256, 512, 1024, 2048],
        out_channels=64,
        num_outs=5),
    rpn_head=dict(
        type=RPNHead,
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(
            type=AnchorGenerator,
            scales=[4],
            ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(target_stds=[1.] * 4, **coder),
        loss_cls=dict(type=CrossEntropyLoss, use_sigmoid=True),
        loss_bbox=dict(type=L1Loss)),
    roi_head=dict(
        type=StandardRoIHead,
        bbox_roi_extractor=dict(
            type=SingleRoIExtractor,
            roi_layer=dict(type=RoIAlign, output_size=7, sampling_ratio=2),
            out_channels=64,
            featmap_strides=[4, 8, 16, 32]),
        bbox_head=dict(
            type=Shared2FCBBoxHead,
            in_channels=64,
            fc_out_channels=128,
            roi_feat_size=7,
            num_classes=10,
            bbox_coder=dict(target_stds=[.1, .1, .2, .2], **coder),
            loss_cls=dict(type=CrossEntropyLoss),
            loss_bbox=dict(type=L1Loss))),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                pos_iou_thr=0.7,
                neg_iou_thr=0.3,
                min_pos_iou=0.3,
                **assigner),
            sampler=dict(
                num=128,
                pos_fraction=0.5,
                add_gt_as_proposals=False,
                **sampler),
            allowed_border=-1,
            pos_weight=-1,
            debug=False),
        rpn_proposal=dict(
            nms_pre=500,
            max_per_img=200,
            nms=dict(type=nms, iou_threshold=0.7),
            min_bbox_size=0),
        rcnn=dict(
            assigner=dict(
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
                **assigner),
            sampler=dict(
                num=64,
                pos_fraction=0.25,
                add_gt_as_proposals=True,
                **sampler),
            pos_weight=-1,
            debug=False)),
    test_cfg=dict(
        rpn=dict(
            nms_pre=300,
            max_per_img=100,
            nms=dict(type=nms, iou_threshold=0.7),
            min_bbox_size=0),
        rcnn=dict(
            score_thr=0.05,
            nms=dict(type=nms, iou_threshold=0.5),
            max_per_img=100)))

# The images are made from scikit-learn's digits on first use.
data_root = 'data/digits/'
boxes = dict(type=LoadAnnotations, with_bbox=True)
train_dataloader.update(
    batch_size=4,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=DigitsDetectionDataset,
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type=LoadImageFromFile),
            boxes,
            dict(  # mmdet 3.1 insists on all keys, and nothing is resized
                type=PackDetInputs,
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'))
        ]))
val_dataloader.update(
    batch_size=4,
    dataset=dict(
        type=DigitsDetectionDataset,
        data_root=data_root,
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=[
            dict(type=LoadImageFromFile),
            dict(type=Resize, scale=(96, 96)),  # their size; sets the scale
            boxes,
            dict(
                type=PackDetInputs,
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                           'scale_factor'))
        ]))
test_dataloader = val_dataloader
val_evaluator = dict(
    type=CocoMetric, ann_file=data_root + 'val.json', metric='bbox')
test_evaluator = val_evaluator

train_cfg = dict(
    type=EpochBasedTrainLoop, max_epochs=max_epochs, val_interval=2)
optim_wrapper['optimizer'].update(lr=5e-4, fused=True)
param_scheduler.append(
    dict(
        type=CosineAnnealingLR,
        begin=0,
        end=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True))

default_hooks.update(visualization=dict(type=DetVisualizationHook))
visualizer.update(type=DetLocalVisualizer)
log_processor.update(window_size=50, by_epoch=True)
