"""ELA-ResNet-50 on ImageNet-1K, 100 epochs: the paper's section 4.1, table 2.

Train: tools/train.py configs/ela_resnet50_imagenet.py
The networks to compare with, by --cfg-options:
    MRLA-base   custom_hooks="[]"
    MRLA-light  custom_hooks="[]" model.backbone.attention=light
    plain       custom_hooks="[]" model.backbone.attention=None
"""
# SGD 0.1, batch 8 x 32, momentum 0.9, weight decay 1e-4, RandomResizedCrop 224
# and flip come from the base config.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

custom_imports = dict(imports=['ela_mm'], allow_failed_imports=False)

model = dict(backbone=dict(type='ELAResNet', drop_path_rate=0.2))

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.1,
        begin=0,
        end=3,
        by_epoch=True,
        convert_to_iter_based=True),
    dict(
        type='MultiStepLR', by_epoch=True, milestones=[30, 60, 90], gamma=0.1)
]

# gamma is this project's choice (docs/choices.md), the rest is the paper's.
custom_hooks = [
    dict(
        type='ELAPruneHook',
        windows=[(1, 3), (51, 53)],
        criterion=dict(type='EBQM', gamma=0.75, alpha=2.0, beta=5.0, mu=0.25)),
    dict(type='ReseedHook')  # runs of one seed see the same batches
]
