"""ELA-ConvNeXt-T on ImageNet-1K, 300 epochs, from scratch.

Train: tools/train.py configs/ela_convnext-tiny_imagenet.py
Like the paper's ResNets, it is pruned near the start and half way.
"""
_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

custom_imports = dict(imports=['ela_mm'], allow_failed_imports=False)

model = dict(backbone=dict(type='ELAConvNeXt'))

# gamma is this project's choice (docs/choices.md), the rest is the paper's.
custom_hooks = [
    dict(
        type='ELAPruneHook',
        windows=[(1, 3), (151, 153)],
        criterion=dict(type='EBQM', gamma=0.75, alpha=2.0, beta=5.0, mu=0.25)),
    dict(type='ReseedHook'),  # runs of one seed see the same batches
    *_base_.custom_hooks,
]
