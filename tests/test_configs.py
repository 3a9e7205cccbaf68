"""Every config builds, and says what the paper says."""
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import HOOKS, init_default_scope

CONFIGS = sorted((Path(__file__).parent.parent / 'configs').glob('*.py'))
COCO = [path for path in CONFIGS if 'digits' not in path.stem]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_builds(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None  # no download
    model = MODELS.build(cfg.model)
    depth = 101 if 'r101' in path.stem else 50
    assert len(model.backbone.attention_layers) == {50: 16, 101: 33}[depth]
    assert model.with_mask == ('mask' in path.stem)
    for hook in cfg.custom_hooks:
        HOOKS.build(hook)
    assert len(path.read_text().splitlines()) <= 110


@pytest.mark.parametrize('path', COCO, ids=lambda path: path.stem)
def test_coco_follows_section_4_2(path):
    cfg = Config.fromfile(path)
    backbone, (hook, ) = cfg.model.backbone, cfg.custom_hooks
    assert backbone.frozen_stages == 1 and backbone.norm_eval
    assert backbone.zero_init_attention
    assert backbone.init_cfg.checkpoint.startswith('torchvision://resnet')
    assert hook.windows == [(1, 1), (7, 7)]
    assert hook.criterion == dict(
        type='EBQM', gamma=0.75, alpha=2.0, beta=5.0, mu=0.2)
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.train_dataloader.dataset.type == 'CocoDataset'
    assert len(path.read_text().splitlines()) < 40


def test_pretrained_backbone_as_the_comment_shows(tmp_path):
    """The one line for ELA-pretrained weights, with weights of a classifier."""
    path = next(p for p in COCO if p.stem == 'faster_rcnn_ela_r50')
    line = next(text for text in path.read_text().splitlines()
                if text.startswith('# model = '))
    checkpoint = tmp_path / 'ela.pth'
    line = line.lstrip('# ').replace('path/to/ela_resnet50.pth',
                                     str(checkpoint))
    config = tmp_path / 'config.py'
    config.write_text(''.join(
        line + '\n' if text.startswith('model = ') else text + '\n'
        for text in path.read_text().splitlines()))
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
