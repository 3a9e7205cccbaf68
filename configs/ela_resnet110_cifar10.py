"""ELA-ResNet-110 on CIFAR-10, 180 epochs: the paper's section 4.1, table 1.

Train: tools/train.py configs/ela_resnet110_cifar10.py
"""
_base_ = './ela_resnet20_cifar10.py'

model = dict(backbone=dict(depth=110))
