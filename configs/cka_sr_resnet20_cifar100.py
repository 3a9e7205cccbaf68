"""Sparse ResNet-20 with CKA-SR on CIFAR-100: arXiv 2307.07389, appendix, table 5.

Train: tools/train.py configs/cka_sr_resnet20_cifar100.py
The table's other densities (0.3, 0.15, 0.1, 0.02, 0.002) and AugCKA-SR, by
--cfg-options: custom_hooks.0.density=0.3 custom_hooks.1.variant=AugCKA-SR
The whole table: tools/ablation.py --preset cka_sr
"""
# Base: CIFAR-100, batches of 128, crop with 4 pixels of padding, flip.
_base_ = './ela_resnet20_cifar100.py'

custom_imports = dict(imports=['ela_mm'])

# The paper's ResNet-20 has basic blocks of 16, 32 and 64 channels, not the
# bottlenecks of ELA's. zero_init_residual, mmpretrain's default, is off, so that
# blocks differ from the start.
model = dict(
    backbone=dict(
        type='ELABasicResNet_CIFAR',
        attention=None,
        zero_init_residual=False),
    head=dict(in_channels=64))

optim_wrapper = dict(optimizer=dict(nesterov=True, weight_decay=5e-4))
train_cfg = dict(max_epochs=160)
param_scheduler = dict(milestones=[80, 120])

custom_hooks = [
    dict(
        type='SparseTrainingHook', density=0.05, scheme=dict(type='ERK')),
    dict(
        type='CKARegularizationHook', weight=1e-4, samples=8, interval=5),
    dict(type='ReseedHook')  # runs of one seed see the same batches
]
