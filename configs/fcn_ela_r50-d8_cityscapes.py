"""FCN with ELA-ResNetV1c-50 (D8) on Cityscapes, 80k iterations.

Train: tools/train.py configs/fcn_ela_r50-d8_cityscapes.py
"""
_base_ = 'mmseg::fcn/fcn_r50-d8_4xb2-80k_cityscapes-512x1024.py'

custom_imports = dict(imports=['ela_mm'], allow_failed_imports=False)

# It starts as the plain network with the base's ImageNet weights, bit for bit.
model = dict(backbone=dict(type='ELAResNetV1c', zero_init_attention=True))

# The paper has no segmentation. As in its COCO runs, windows are in the first and
# the seventh twelfth of the training; alpha, beta and mu are those of COCO.
custom_hooks = [
    dict(
        type='ELAPruneHook',
        by_epoch=False,
        windows=[(1, 6667), (40001, 46667)],
        criterion=dict(type='EBQM', gamma=0.75, alpha=2.0, beta=5.0, mu=0.2)),
    dict(type='ReseedHook')  # runs of one seed see the same batches
]
