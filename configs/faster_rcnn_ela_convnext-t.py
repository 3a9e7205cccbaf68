"""Faster R-CNN with ELA-ConvNeXt-T on COCO, 1x.

Train: tools/train.py configs/faster_rcnn_ela_convnext-t.py
Backbone, weights and layer-wise learning rates are those of mmdet's Mask R-CNN
with ConvNeXt-T; attention learns at the rate of its block. Windows and
parameters are the paper's for ResNets.
"""
_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    './_base_/ela_coco.py'
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ELAConvNeXt',
        zero_init_attention=True,
        arch='tiny',
        out_indices=[0, 1, 2, 3],
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        gap_before_final_norm=False,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/'
            'convnext/downstream/convnext-tiny_3rdparty_32xb128-noema_in1k_'
            '20220301-795e9634.pth',
            prefix='backbone.')),
    neck=dict(in_channels=[96, 192, 384, 768]))

optim_wrapper = dict(
    constructor='LearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(
        decay_rate=0.95, decay_type='layer_wise', num_layers=6),
    optimizer=dict(
        _delete_=True,
        type='AdamW',
        lr=0.0001,
        betas=(0.9, 0.999),
        weight_decay=0.05))
