"""ELA-ResNet-56 on CIFAR-100, 180 epochs: the paper's section 4.1, table 1.

Train: tools/train.py configs/ela_resnet56_cifar100.py
"""
_base_ = './ela_resnet20_cifar100.py'

model = dict(backbone=dict(depth=56))
