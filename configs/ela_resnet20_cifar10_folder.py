"""ELA-ResNet-20 on CIFAR-10 as image files, in one folder per class.

Expects data/cifar10_images/train/<class>/*.jpg and test/<class>/*.jpg.
"""
_base_ = './ela_resnet20_cifar10.py'

dataset = dict(
    _delete_=True, type='CustomDataset', data_root='data/cifar10_images')
load = dict(type='LoadImageFromFile')
data_preprocessor = dict(to_rgb=True)  # files are loaded as BGR
test_pipeline = [load, dict(type='PackInputs')]
train_dataloader = dict(
    dataset=dict(
        data_prefix='train',
        pipeline=[
            load,
            dict(type='RandomCrop', crop_size=32, padding=4),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
        **dataset))
val_dataloader = dict(
    dataset=dict(data_prefix='test', pipeline=test_pipeline, **dataset))
test_dataloader = dict(
    dataset=dict(data_prefix='test', pipeline=test_pipeline, **dataset))
