"""Mask R-CNN with ELA-ResNet-50 on COCO, 1x: the paper's section 4.2 and table 5.

Train: tools/train.py configs/mask_rcnn_ela_r50.py
"""
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['ela_mm'], allow_failed_imports=False)

# frozen_stages=1, norm_eval=True and the ImageNet ResNet weights come from the
# base config. Attention starts at zero on top of them: the first forward pass
# is the plain ResNet's, bit for bit.
model = dict(backbone=dict(type='ELAResNet', zero_init_attention=True))
# To start from ELA-pretrained ImageNet weights instead, replace that line by
# model = dict(backbone=dict(type='ELAResNet', init_cfg=dict(checkpoint='path/to/ela_resnet50.pth', prefix='backbone.')))

# Measure redundancy in epochs 1 and 7, skip redundant layers right after each.
# gamma is this project's choice (docs/choices.md), the rest is the paper's.
custom_hooks = [
    dict(
        type='ELAPruneHook',
        windows=[(1, 1), (7, 7)],
        criterion=dict(type='EBQM', gamma=0.75, alpha=2.0, beta=5.0, mu=0.2))
]
