"""Semantic FPN with ELA-ResNetV1c-50 on handwritten digits: minutes on a CPU.

The pictures are made from scikit-learn's digits on first use
(data/digits_maps). The network is slim and starts from scratch.

Train: tools/train.py configs/fpn_ela_r50_digits.py
"""
_base_ = [
    'mmseg::_base_/models/fpn_r50.py', 'mmseg::_base_/default_runtime.py'
]

custom_imports = dict(imports=['ela_mm'], allow_failed_imports=False)

max_iters = 400

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    pretrained=None,
    backbone=dict(
        type='ELAResNetV1c',
        stem_channels=32,
        base_channels=16,
        norm_cfg=norm_cfg),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    decode_head=dict(
        in_channels=[64] * 4,
        channels=64,
        num_classes=11,
        norm_cfg=norm_cfg,
        # Seven eighths of the pixels are background.
        loss_decode=dict(class_weight=[0.2] + [1.] * 10)))

# The paper's settings for CIFAR, which fit small images and training from scratch.
custom_hooks = [
    dict(
        type='ELAPruneHook',
        by_epoch=False,
        windows=[(1, 50), (151, 200)],
        criterion=dict(type='EBQM', gamma=0.75, alpha=5.0, beta=1.0, mu=0.3)),
    dict(type='ReseedHook')  # runs of one seed see the same batches
]

data_root = 'data/digits_maps/'
dataset = dict(type='DigitsSegmentationDataset', data_root=data_root)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='train', seg_map_path='train_maps'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs')
        ],
        **dataset))
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='val', seg_map_path='val_maps'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs')
        ],
        test_mode=True,
        **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=100)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(
        type='PolyLR',
        power=0.9,
        eta_min=1e-5,
        by_epoch=False,
        begin=30,
        end=max_iters)
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=100,
        max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))
randomness = dict(seed=0)
