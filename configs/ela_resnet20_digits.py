"""ELA-ResNet-20 on scikit-learn's handwritten digits: a minute on a CPU.

Train: tools/train.py configs/ela_resnet20_digits.py
"""
_base_ = './ela_resnet20_cifar10.py'

max_epochs = 10

data_preprocessor = dict(
    num_classes=10, mean=[78] * 3, std=[96] * 3, to_rgb=False)
dataset = dict(
    _delete_=True,
    type='DigitsClassificationDataset',
    pipeline=[dict(type='PackInputs')])
# MMPretrain's own tools would set it to True, which fails without workers.
loader = dict(batch_size=64, num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(split='train', **dataset), **loader)
val_dataloader = dict(dataset=dict(split='val', **dataset), **loader)
test_dataloader = dict(dataset=dict(split='val', **dataset), **loader)

train_cfg = dict(max_epochs=max_epochs)
param_scheduler = dict(milestones=[7, 9])
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=1, max_keep_ckpts=2, save_best=None))
custom_hooks = [
    dict(
        type='ELAPruneHook',
        windows=[(1, 1), (4, 4)],
        criterion=dict(type='EBQM', gamma=0.75, alpha=5.0, beta=1.0, mu=0.3)),
    dict(type='ReseedHook')  # runs of one seed see the same batches
]
