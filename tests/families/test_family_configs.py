"""The configs of other families than ResNet build and take a step."""
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.structures import InstanceData
from support import ROOT

from ela_mm.models.backbones.layer_attention_mixin import find_backbone

# Attention layers, and those that may be pruned.
CONFIGS = {
    'mask_rcnn_ela_swin-t': (12, 8),
    'faster_rcnn_ela_convnext-t': (18, 14),
    'rtmdet_ela_s': (6, 2),
    'retinanet_ela_regnetx-3.2GF': (25, 21),
    'ela_deit-tiny_imagenet': (12, 9),
    'ela_convnext-tiny_imagenet': (18, 14),
}
each_config = pytest.mark.parametrize('name', CONFIGS)


def load(name):
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None  # no download
    return cfg


@each_config
def test_the_backbone_and_the_hooks_build(name):
    cfg = load(name)
    net = MODELS.build(cfg.model.backbone)
    layers = net.attention_layers
    assert (len(layers), sum(x.index > 0 for x in layers)) == CONFIGS[name]
    hooks = [HOOKS.build(hook) for hook in cfg.custom_hooks]
    assert type(hooks[0]).__name__ == 'ELAPruneHook'
    assert cfg.custom_hooks[0].windows[-1][-1] <= cfg.train_cfg.max_epochs
    pretrained = cfg.default_scope == 'mmdet'
    assert cfg.model.backbone.get('zero_init_attention', False) == pretrained


@pytest.mark.slow
@each_config
def test_a_training_step(name):
    cfg = load(name)
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    # Synchronised norms and AMP are for GPUs.
    cfg = Config.fromstring(cfg.dump().replace('SyncBN', 'BN'), '.py')
    cfg.optim_wrapper.type = 'OptimWrapper'
    model = MODELS.build(cfg.model).train()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    side = 224 if cfg.default_scope == 'mmpretrain' else 64
    batch = dict(inputs=[torch.randint(0, 256, (3, side, side)).byte()
                         for _ in range(2)])
    if cfg.default_scope == 'mmpretrain':
        from mmpretrain.structures import DataSample
        batch['data_samples'] = [DataSample().set_gt_label(i)
                                 for i in range(2)]
        batch['inputs'] = torch.stack(batch['inputs'])
    else:
        batch['data_samples'] = [sample(side, 'mask' in name)
                                 for _ in range(2)]
    backbone = find_backbone(model)
    # A start at zero moves the scales first.
    first = {
        layer.name: layer.module.value.weight if layer.module.scale is None
        else layer.module.scale.weight
        for layer in backbone.attention_layers
        if not backbone.is_frozen(layer)
    }
    before = {name: p.detach().clone() for name, p in first.items()}
    losses = model.train_step(batch, optimizer)
    assert losses['loss'].isfinite()
    assert first and not [name for name, p in first.items()
                          if torch.equal(p, before[name])]


def sample(side, with_mask):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    found = DetDataSample(metainfo=dict(
        img_shape=(side, side), pad_shape=(side, side),
        batch_input_shape=(side, side), scale_factor=(1., 1.)))
    found.gt_instances = InstanceData(
        bboxes=torch.tensor([[8., 8., 40., 48.]]), labels=torch.tensor([3]))
    if with_mask:
        found.gt_instances.masks = BitmapMasks(
            torch.ones(1, side, side).byte().numpy(), side, side)
    return found
