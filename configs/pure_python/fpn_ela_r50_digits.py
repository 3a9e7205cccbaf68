"""Semantic FPN with ELA-ResNetV1c-50 on digits, as a pure Python config.

The twin of ../fpn_ela_r50_digits.py.
Train: tools/train.py configs/pure_python/fpn_ela_r50_digits.py
"""
from mmcv.transforms import LoadImageFromFile
from mmengine.config import read_base
from mmengine.dataset import InfiniteSampler
from mmengine.optim import PolyLR
from mmengine.runner import IterBasedTrainLoop
from mmseg.datasets import LoadAnnotations, PackSegInputs
from mmseg.engine import SegVisualizationHook
from mmseg.evaluation import IoUMetric
from mmseg.models import (
    CrossEntropyLoss,
    EncoderDecoder,
    FPN,
    FPNHead,
    SegDataPreProcessor,
)
from mmseg.visualization import SegLocalVisualizer
from torch.nn import BatchNorm2d

from ela_mm.datasets.mmseg import DigitsSegmentationDataset
from ela_mm.hosts.mmseg import ELAResNetV1c

with read_base():
    from ._base_.files import *

max_iters = 400

norm_cfg = dict(type=BatchNorm2d, requires_grad=True)
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(96, 96)),
    backbone=dict(
        type=ELAResNetV1c,
        depth=50,
        stem_channels=32,
        base_channels=16,
        contract_dilation=True,
        norm_cfg=norm_cfg),
    neck=dict(
        type=FPN,
        in_channels=[64, 128, 256, 512],
        out_channels=64,
        num_outs=4),
    decode_head=dict(
        type=FPNHead,
        in_channels=[64] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=64,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        # Seven eighths of the pixels are background.
        loss_decode=dict(
            type=CrossEntropyLoss, class_weight=[0.2] + [1.] * 10)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))

custom_hooks[0].update(by_epoch=False, windows=[(1, 50), (151, 200)])

data_root = 'data/digits_maps/'
pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations),
    dict(type=PackSegInputs)
]
train_dataloader.update(
    batch_size=8,
    sampler=dict(type=InfiniteSampler, shuffle=True),
    dataset=dict(
        type=DigitsSegmentationDataset,
        data_root=data_root,
        data_prefix=dict(img_path='train', seg_map_path='train_maps'),
        pipeline=pipeline))
val_dataloader.update(
    batch_size=8,
    dataset=dict(
        type=DigitsSegmentationDataset,
        data_root=data_root,
        data_prefix=dict(img_path='val', seg_map_path='val_maps'),
        pipeline=pipeline,
        test_mode=True))
test_dataloader = val_dataloader
val_evaluator = dict(type=IoUMetric, iou_metrics=['mIoU'])
test_evaluator = val_evaluator

train_cfg = dict(
    type=IterBasedTrainLoop, max_iters=max_iters, val_interval=100)
optim_wrapper['optimizer'].update(lr=2e-3)
param_scheduler.append(
    dict(
        type=PolyLR,
        power=0.9,
        eta_min=1e-5,
        by_epoch=False,
        begin=30,
        end=max_iters))

default_hooks['logger'].update(interval=50, log_metric_by_epoch=False)
default_hooks['checkpoint'].update(by_epoch=False, interval=100)
default_hooks.update(visualization=dict(type=SegVisualizationHook))
visualizer.update(type=SegLocalVisualizer)
log_processor.update(by_epoch=False)
