"""Faster R-CNN with ELA-ResNet-50 on COCO, 1x: the paper's section 4.2 and table 5.

Train: tools/train.py configs/faster_rcnn_ela_r50.py
"""
_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', './_base_/ela_coco.py'
]

# Other weights to start from: see _base_/ela_coco.py.
model = dict(backbone=dict(type='ELAResNet', zero_init_attention=True))
