"""Faster R-CNN with ELA-ResNet-50 on handwritten digits: minutes on a CPU.

The pictures are made from scikit-learn's digits on first use (data/digits).
Neck and heads are slim; the backbone is the full ELA-ResNet-50, from scratch.
"""
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/default_runtime.py'
]

custom_imports = dict(imports=['ela_mm'], allow_failed_imports=False)

max_epochs = 6

model = dict(
    backbone=dict(
        type='ELAResNet', init_cfg=None, frozen_stages=-1, norm_eval=False),
    neck=dict(out_channels=64),
    rpn_head=dict(
        in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=64, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(in_channels=64, fc_out_channels=128, num_classes=10)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)))

# The paper's settings for CIFAR, which fit small images and training from scratch.
custom_hooks = [
    dict(
        type='ELAPruneHook',
        windows=[(1, 1), (3, 3)],
        criterion=dict(type='EBQM', gamma=0.75, alpha=5.0, beta=1.0, mu=0.3)),
    dict(type='ReseedHook')  # runs of one seed see the same batches
]

data_root = 'data/digits/'
load_pipeline = [dict(type='LoadImageFromFile')]
boxes = dict(type='LoadAnnotations', with_bbox=True)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='DigitsDetectionDataset',
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=load_pipeline + [
            boxes,
            dict(  # mmdet 3.1 insists on all keys, and nothing is resized
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'))
        ]))
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='DigitsDetectionDataset',
        data_root=data_root,
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=load_pipeline + [
            dict(type='Resize', scale=(96, 96)),  # their size; sets scale_factor
            boxes,
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                           'scale_factor'))
        ]))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', ann_file=data_root + 'val.json', metric='bbox')
test_evaluator = val_evaluator

train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(interval=1, max_keep_ckpts=2))
randomness = dict(seed=0)
