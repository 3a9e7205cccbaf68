"""The common part of the COCO configs: the paper's section 4.2 and table 5.

Each of them adds one line, which replaces the backbone of its base:

    model = dict(backbone=dict(type='ELAResNet', zero_init_attention=True))

frozen_stages=1, norm_eval=True and the ImageNet ResNet weights stay as the
base has them. Attention starts at zero on top of these weights: the first
forward pass is the plain ResNet's, bit for bit.

To start from ELA-pretrained ImageNet weights instead, replace the line by

    model = dict(backbone=dict(type='ELAResNet', init_cfg=dict(checkpoint='path/to/ela_resnet50.pth', prefix='backbone.')))

Attention that starts at zero learns slowly at the common rate. On small
classifiers ten times that rate let it leave the ranking it was drawn with, at
no lower accuracy (docs/validity.md); on COCO it has not been tried:

    --cfg-options optim_wrapper.paramwise_cfg.custom_keys.attention.lr_mult=10

uninformative='warn', the hook's default, says so where layers rank by position
or attention is still as it was drawn.
"""
custom_imports = dict(imports=['ela_mm'], allow_failed_imports=False)

# Measure redundancy in epochs 1 and 7, skip redundant layers right after each.
# gamma is this project's choice (docs/choices.md), the rest is the paper's.
custom_hooks = [
    dict(
        type='ELAPruneHook',
        windows=[(1, 1), (7, 7)],
        criterion=dict(type='EBQM', gamma=0.75, alpha=2.0, beta=5.0, mu=0.2)),
    dict(type='ReseedHook')  # runs of one seed see the same batches
]
