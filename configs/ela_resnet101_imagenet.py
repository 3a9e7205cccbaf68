"""ELA-ResNet-101 on ImageNet-1K, 100 epochs: the paper's section 4.1, table 2.

Train: tools/train.py configs/ela_resnet101_imagenet.py
"""
_base_ = './ela_resnet50_imagenet.py'

model = dict(backbone=dict(depth=101))
