"""A small classifier on pictures of digits, trained by the tool."""
import cv2
from sklearn.datasets import load_digits

from support.running import tool

CONFIG = """
_base_ = 'mmpretrain::_base_/default_runtime.py'
custom_imports = dict(imports=['ela_mm'])
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ELAResNet', depth=34, stem_channels=16,
                  base_channels=16),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=128,
              topk=(1, ), loss=dict(type='CrossEntropyLoss')),
    data_preprocessor=dict(num_classes=2, mean=[40] * 3, std=[60] * 3))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root='{root}',
                 pipeline=pipeline))
val_dataloader = test_dataloader = train_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, ))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
auto_scale_lr = dict(base_batch_size=8)
custom_hooks = [dict(type='ELAPruneHook', windows=[(1, 1)],
                     criterion=dict(type='EBQM', alpha=5., beta=1., mu=0.3))]
"""


def write_pictures(root):
    """Six pictures each of two digits, in a folder each."""
    digits = load_digits()
    for label in (0, 1):
        pictures = root / str(label)
        pictures.mkdir(parents=True)
        for i, image in enumerate(digits.images[digits.target == label][:6]):
            cv2.imwrite(str(pictures / f'{i}.png'),
                        cv2.resize(image, (32, 32)).astype('uint8') * 15)


def train_classifier(folder, *options):
    """Config, work dir and output of a run on folders of pictures (data)."""
    write_pictures(folder / 'data')
    config = folder / 'classifier.py'
    config.write_text(CONFIG.replace('{root}', str(folder / 'data')))
    process = tool('train.py', config, '--work-dir', folder / 'work', *options)
    assert process.returncode == 0, process.stderr[-2000:]
    return config, folder / 'work', process.stdout
