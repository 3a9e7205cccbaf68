"""ELA-ResNet-20 on CIFAR-10, 180 epochs: the paper's section 4.1, table 1.

Train: tools/train.py configs/ela_resnet20_cifar10.py
The data is downloaded to data/cifar10 on first use.
The networks to compare with, by --cfg-options:
    MRLA-base   custom_hooks="[]"
    MRLA-light  custom_hooks="[]" model.backbone.attention=light
    plain       custom_hooks="[]" model.backbone.attention=None
"""
# Crop with 4 pixels of padding and flip come from the base config.
_base_ = [
    'mmpretrain::_base_/datasets/cifar10_bs16.py',
    'mmpretrain::_base_/default_runtime.py'
]

custom_imports = dict(imports=['ela_mm'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    backbone=dict(type='ELAResNet_CIFAR', depth=20),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=256,
        loss=dict(type='CrossEntropyLoss')))

train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128)
test_dataloader = dict(batch_size=128)

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(
    type='MultiStepLR', by_epoch=True, milestones=[100, 150], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=180, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=128)
default_hooks = dict(
    checkpoint=dict(
        type='CheckpointHook', interval=10, max_keep_ckpts=2,
        save_best='auto'))

# gamma is this project's choice (docs/choices.md), the rest is the paper's.
custom_hooks = [
    dict(
        type='ELAPruneHook',
        windows=[(1, 3), (45, 48), (91, 93)],
        criterion=dict(type='EBQM', gamma=0.75, alpha=5.0, beta=1.0, mu=0.3)),
    dict(type='ReseedHook')  # runs of one seed see the same batches
]
