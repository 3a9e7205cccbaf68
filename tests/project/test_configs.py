"""Every config of ELA builds, and says what the paper says."""
import re
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope
from support import ROOT
from support.versions import with_its_host

CONFIGS = sorted(path for path in (ROOT / 'configs').glob('*ela_r*.py')
                 if 'regnet' not in path.stem)
SEGMENTATION = [path for path in CONFIGS
                if path.stem.endswith(('cityscapes', 'ade20k'))]
COCO = [path for path in CONFIGS
        if 'rcnn' in path.stem and 'digits' not in path.stem]
IMAGENET = [path for path in CONFIGS if 'imagenet' in path.stem]
CIFAR = [path for path in CONFIGS if 'cifar' in path.stem]
LAYERS = {20: 6, 50: 16, 56: 18, 101: 33, 110: 36}


def ids(path):
    return path.stem


def depth_of(path) -> int:
    return int(re.search(r'(?:_r|resnet)(\d+)', path.stem).group(1))


def pruning(cfg):
    """The prune hook, first in every config: users override custom_hooks.0."""
    hook, reseeding = cfg.custom_hooks
    assert hook.type == 'ELAPruneHook'
    assert reseeding == dict(type='ReseedHook')
    return hook


@pytest.mark.parametrize('path', map(with_its_host, CONFIGS))
def test_builds(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None  # no download
    model = MODELS.build(cfg.model)
    assert len(model.backbone.attention_layers) == LAYERS[depth_of(path)]
    if 'rcnn' in path.stem:
        assert model.with_mask == ('mask' in path.stem)
    for hook in cfg.custom_hooks:
        HOOKS.build(hook)
    hook = pruning(cfg)
    unit = 'max_epochs' if hook.get('by_epoch', True) else 'max_iters'
    assert hook.windows[-1][-1] <= cfg.train_cfg[unit]


@pytest.mark.parametrize('path', IMAGENET, ids=ids)
def test_imagenet_follows_section_4_1(path):
    cfg = Config.fromfile(path)
    hook = pruning(cfg)
    assert hook.windows == [(1, 3), (51, 53)]
    assert hook.criterion == dict(
        type='EBQM', gamma=0.75, alpha=2.0, beta=5.0, mu=0.25)
    assert cfg.train_cfg.max_epochs == 100
    assert cfg.model.backbone.drop_path_rate == 0.2
    optimizer = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0001)
    for name, value in optimizer.items():
        assert cfg.optim_wrapper.optimizer[name] == value
    assert cfg.auto_scale_lr.base_batch_size == 256
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.end) == ('LinearLR', 3)
    assert steps.milestones == [30, 60, 90]


@pytest.mark.parametrize('path', CIFAR, ids=ids)
def test_cifar_follows_section_4_1(path):
    cfg = Config.fromfile(path)
    hook = pruning(cfg)
    assert hook.windows == [(1, 3), (45, 48), (91, 93)]
    assert hook.criterion == dict(
        type='EBQM', gamma=0.75, alpha=5.0, beta=1.0, mu=0.3)
    assert cfg.train_cfg.max_epochs == 180
    assert cfg.train_dataloader.batch_size == 128
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
    assert cfg.param_scheduler.milestones == [100, 150]
    classes = 100 if path.stem.endswith('100') else 10
    assert cfg.model.head.num_classes == classes
    assert cfg.data_preprocessor.num_classes == classes
    crop = cfg.train_dataloader.dataset.pipeline[-3]
    assert (crop.crop_size, crop.padding) == (32, 4)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        kind = cfg[loader].dataset.type
        assert kind == ('CustomDataset' if 'folder' in path.stem else
                        f'CIFAR{classes}')


@pytest.mark.parametrize('path', COCO, ids=ids)
def test_coco_follows_section_4_2(path):
    cfg = Config.fromfile(path)
    backbone, hook = cfg.model.backbone, pruning(cfg)
    assert backbone.frozen_stages == 1 and backbone.norm_eval
    assert backbone.zero_init_attention
    assert backbone.init_cfg.checkpoint.startswith('torchvision://resnet')
    assert hook.windows == [(1, 1), (7, 7)]
    assert hook.criterion == dict(
        type='EBQM', gamma=0.75, alpha=2.0, beta=5.0, mu=0.2)
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.train_dataloader.dataset.type == 'CocoDataset'
    assert len(path.read_text().splitlines()) < 15


@pytest.mark.parametrize('path', map(with_its_host, SEGMENTATION))
def test_segmentation_prunes_where_coco_does(path):
    """In the first and the seventh twelfth, from plain ImageNet weights."""
    cfg = Config.fromfile(path)
    hook = pruning(cfg)
    total = cfg.train_cfg.max_iters
    assert hook.windows == [(1, round(total / 12)),
                            (total // 2 + 1, round(total * 7 / 12))]
    assert hook.criterion == dict(
        type='EBQM', gamma=0.75, alpha=2.0, beta=5.0, mu=0.2)
    assert cfg.model.pretrained == 'open-mmlab://resnet50_v1c'
    assert cfg.model.backbone.zero_init_attention
    dilated = 'd8' in path.stem
    assert cfg.model.backbone.dilations == ((1, 1, 2, 4) if dilated else
                                            (1, 1, 1, 1))
    assert len(path.read_text().splitlines()) < 30


def test_pretrained_backbone_as_the_comment_shows(tmp_path):
    """The line for ELA-pretrained weights, with weights of a classifier."""
    configs = tmp_path / 'configs'
    shutil.copytree(ROOT / 'configs', configs)
    line = next(
        text.strip()
        for text in (configs / '_base_/ela_coco.py').read_text().splitlines()
        if 'path/to/ela_resnet50.pth' in text)
    checkpoint = tmp_path / 'ela.pth'
    line = line.replace('path/to/ela_resnet50.pth', str(checkpoint))
    config = configs / 'faster_rcnn_ela_r50.py'
    text, count = re.subn(
        '^model = .*$', line, config.read_text(), flags=re.M)
    assert count == 1
    config.write_text(text)
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    source = MODELS.build(
        dict(type='ELAResNet', depth=50, norm_eval=False)).train()
    source(torch.randn(2, 3, 64, 64))  # its norms have seen data
    source.skip_layers(['layer3.2'])
    torch.save(
        dict(state_dict={
            f'backbone.{k}': v for k, v in source.state_dict().items()
        }), checkpoint)
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), name
    assert not backbone.layer3.active[2]
    backbone.train()
    assert not backbone.fresh_norms
