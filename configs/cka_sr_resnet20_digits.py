"""Sparse ResNet-20 with CKA-SR on scikit-learn's digits: a minute on a CPU.

Train: tools/train.py configs/cka_sr_resnet20_digits.py
"""
_base_ = './ela_resnet20_digits.py'

custom_imports = dict(imports=['ela_mm'])

model = dict(
    backbone=dict(
        type='ELABasicResNet_CIFAR',
        attention=None,
        zero_init_residual=False),
    head=dict(in_channels=64))

optim_wrapper = dict(optimizer=dict(nesterov=True, weight_decay=5e-4))

custom_hooks = [
    dict(type='SparseTrainingHook', density=0.1, scheme=dict(type='ERK')),
    dict(
        type='CKARegularizationHook', weight=1e-4, samples=8, interval=5),
    dict(type='ReseedHook')  # runs of one seed see the same batches
]
