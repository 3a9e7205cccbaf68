"""Mask R-CNN with ELA-Swin-T on COCO, 1x.

Train: tools/train.py configs/mask_rcnn_ela_swin-t.py
The base's AdamW, its Swin weights and their conversion stay. Windows and
parameters are the paper's for ResNets on COCO.
"""
_base_ = [
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', './_base_/ela_coco.py'
]

model = dict(backbone=dict(type='ELASwinTransformer', zero_init_attention=True))
