"""UPerNet with ELA-ResNetV1c-50 on ADE20K, 160k iterations.

Train: tools/train.py configs/upernet_ela_r50_ade20k.py
"""
_base_ = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'

custom_imports = dict(imports=['ela_mm'], allow_failed_imports=False)

# It starts as the plain network with the base's ImageNet weights, bit for bit.
model = dict(backbone=dict(type='ELAResNetV1c', zero_init_attention=True))

# Windows and parameters are chosen as in fcn_ela_r50-d8_cityscapes.py.
custom_hooks = [
    dict(
        type='ELAPruneHook',
        by_epoch=False,
        windows=[(1, 13333), (80001, 93333)],
        criterion=dict(type='EBQM', gamma=0.75, alpha=2.0, beta=5.0, mu=0.2)),
    dict(type='ReseedHook')  # runs of one seed see the same batches
]
