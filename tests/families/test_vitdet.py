"""ViTDet, whose class is in a checkout of MMDetection and in no package.

Its stand-in walks as the project's class does, over mmpretrain's blocks.
"""
import importlib
import sys
import warnings

import pytest
import torch
from mmdet.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.model import BaseModule
from mmengine.optim import DefaultOptimWrapperConstructor, build_optim_wrapper
from mmpretrain.models.backbones.vit_sam import TransformerEncoderLayer
from support.families import randomize
from support.layers_seen import formula, run_and_see
from torch import nn

NAME = 'ela_mm.hosts.mmdet_vitdet'


class PatchEmbed(nn.Module):

    def __init__(self, channels):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 8, 8)

    def forward(self, x):
        return self.proj(x).permute(0, 2, 3, 1)


class ViT(BaseModule):

    def __init__(self, embed_dim=32, depth=5):
        super().__init__()
        self.patch_embed = PatchEmbed(embed_dim)
        self.blocks = nn.ModuleList(
            TransformerEncoderLayer(
                embed_dim, 2, 32, window_size=3 * (i % 2), use_rel_pos=True,
                input_size=(4, 4)) for i in range(depth))

    def forward(self, x):
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 3, 1, 2)


class LayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Finds a layer where the project's does."""

    def add_params(self, params, module, **kwargs):
        for name, parameter in module.named_parameters():
            layer = 0
            if name.startswith('backbone.blocks'):
                layer = int(name.split('.')[2]) + 1
            params.append(dict(
                params=[parameter],
                lr=self.paramwise_cfg['decay_rate']**layer))


@pytest.fixture
def registries(monkeypatch):
    for registry in (MODELS, OPTIM_WRAPPER_CONSTRUCTORS):
        monkeypatch.setattr(
            registry, '_module_dict', dict(registry.module_dict))
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield
    sys.modules.pop(NAME, None)


def test_attends_in_groups_of_blocks(registries):
    MODELS.register_module(module=ViT)
    OPTIM_WRAPPER_CONSTRUCTORS.register_module(
        module=LayerDecayOptimizerConstructor)
    importlib.import_module(NAME)
    net = MODELS.build(dict(type='mmdet.ELAViT', attention_groups=3,
                            zero_init_attention=True))
    assert [layer.name for layer in net.attention_layers] == [
        'blocks.group1.0', 'blocks.group1.1', 'blocks.group1.2',
        'blocks.group2.0', 'blocks.group2.1']
    plain = randomize(ViT())
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing and all('.attention.' in key for key in missing)
    x = torch.randn(2, 3, 32, 48)
    assert torch.equal(net(x), plain(x))

    randomize(net).double()
    net.skip_layers(['blocks.group1.1'])
    with torch.no_grad():
        seen = run_and_see(net, x.double())
    for stage, layers in zip(net.attention_stages, seen):
        terms = formula(stage, [layer.of_block for layer in layers], (4, 6))
        for layer, term in zip(layers, terms):
            torch.testing.assert_close(layer.after, layer.of_block + term,
                                       rtol=1e-9, atol=1e-9)

    model = nn.Module()
    model.backbone = net
    optimizer = build_optim_wrapper(model, dict(
        constructor='mmdet.LayerDecayOptimizerConstructor',
        paramwise_cfg=dict(decay_rate=.5),
        optimizer=dict(type='SGD', lr=1.))).optimizer
    rate = {id(p): group['lr'] for group in optimizer.param_groups
            for p in group['params']}
    for number, layer in enumerate(net.attention_layers, start=1):
        assert {rate[id(p)] for p in layer.module.parameters()} == {
            .5**number}


def test_it_says_what_is_missing(registries):
    with pytest.warns(UserWarning, match="'projects.ViTDet.vitdet'.*before"):
        importlib.import_module(NAME)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert 'ELAViT' not in MODELS.module_dict
