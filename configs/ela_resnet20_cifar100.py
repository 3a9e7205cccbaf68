"""ELA-ResNet-20 on CIFAR-100, 180 epochs: the paper's section 4.1, table 1.

Train: tools/train.py configs/ela_resnet20_cifar100.py
"""
_base_ = './ela_resnet20_cifar10.py'

data_preprocessor = dict(
    num_classes=100,
    mean=[129.304, 124.070, 112.434],
    std=[68.170, 65.392, 70.418])
model = dict(head=dict(num_classes=100))
train_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='data/cifar100'))
val_dataloader = dict(dataset=dict(type='CIFAR100', data_root='data/cifar100'))
test_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='data/cifar100'))
