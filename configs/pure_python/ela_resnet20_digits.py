"""ELA-ResNet-20 on scikit-learn's handwritten digits, as a pure Python config.

Train: tools/train.py configs/pure_python/ela_resnet20_digits.py
"""
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.optim import MultiStepLR
from mmpretrain.datasets import PackInputs
from mmpretrain.engine.hooks import VisualizationHook
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import (
    CrossEntropyLoss,
    GlobalAveragePooling,
    ImageClassifier,
    LinearClsHead,
)
from mmpretrain.visualization import UniversalVisualizer
from torch.optim import SGD

from ela_mm.datasets.mmpretrain import DigitsClassificationDataset
from ela_mm.hosts.mmpretrain import ELAResNet_CIFAR

with read_base():
    from ._base_.runtime import *

model = dict(
    type=ImageClassifier,
    backbone=dict(type=ELAResNet_CIFAR, depth=20),
    neck=dict(type=GlobalAveragePooling),
    head=dict(
        type=LinearClsHead,
        num_classes=10,
        in_channels=256,
        loss=dict(type=CrossEntropyLoss)))

data_preprocessor = dict(
    num_classes=10, mean=[78] * 3, std=[96] * 3, to_rgb=False)
pipeline = [dict(type=PackInputs)]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=DigitsClassificationDataset, split='train', pipeline=pipeline))
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=DigitsClassificationDataset, split='val', pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type=Accuracy, topk=(1, ))
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=6, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type=SGD, lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(
    type=MultiStepLR, by_epoch=True, milestones=[4, 5], gamma=0.1)
auto_scale_lr = dict(base_batch_size=64)

default_hooks.update(visualization=dict(type=VisualizationHook, enable=False))
visualizer.update(type=UniversalVisualizer)
