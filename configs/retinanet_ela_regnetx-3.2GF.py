"""RetinaNet with ELA-RegNetX-3.2GF on COCO, 1x.

Train: tools/train.py configs/retinanet_ela_regnetx-3.2GF.py
frozen_stages=1, norm_eval=True and the RegNet weights stay as the base has
them. Windows and parameters are the paper's for ResNets.
"""
_base_ = [
    'mmdet::regnet/retinanet_regnetx-3.2GF_fpn_1x_coco.py',
    './_base_/ela_coco.py'
]

model = dict(backbone=dict(type='ELARegNet', zero_init_attention=True))
