"""Plain, MRLA-base and ELA ResNet-20 on a fixed tenth of CIFAR-10's images.

About half an hour on two cores. Expects data/cifar10_images, one folder per
class, as configs/ela_resnet20_cifar10_folder.py does.
"""
title = 'ResNet-20 on 5,000 pictures of CIFAR-10, 10 epochs'
config = 'configs/ela_resnet20_cifar10_folder.py'
depths = [20]
seeds = [0]
overrides = {
    # Every tenth of 50,000: 500 pictures of each class.
    'train_dataloader.dataset.indices': list(range(0, 50000, 10)),
    'val_dataloader.dataset.indices': list(range(0, 10000, 4)),
    'train_dataloader.num_workers': 1,
    'val_dataloader.num_workers': 1,
    'train_cfg.max_epochs': 10,
    'param_scheduler.milestones': [6, 8],
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.logger.interval': 10,
}
variants = {
    'plain': {'custom_hooks': [], 'model.backbone.attention': None},
    'MRLA-base': {'custom_hooks': []},
    'ELA': {'custom_hooks.0.windows': [(1, 1), (3, 3)]},
}
