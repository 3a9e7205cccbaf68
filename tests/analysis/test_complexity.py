"""Parameters and multiply-accumulates of the paper's networks."""

import pytest
import torch
from mmpretrain.models.backbones import ResNet_CIFAR
from support.complexity import needs_counter
from torch import nn

from ela_mm import LayerAttention, LayerMemory
from ela_mm.analysis import count
from ela_mm.hosts.mmpretrain import (
    ELAResNet,
    ELAResNet_CIFAR,
    ELAResNetV1d,
    ELAResNeXt,
    ELASEResNet,
    ELASEResNeXt,
)

# Table 1, in millions, for 10 and 100 classes; plain, MRLA-base, MRLA-light.
TABLE_1 = {
    20: [(.2204, .2435), (.2303, .2534), (.2312, .2543)],
    56: [(.5913, .6145), (.6210, .6442), (.6237, .6469)],
    110: [(1.1477, 1.1709), (1.2072, 1.2303), (1.2126, 1.2357)],
}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize('depth', TABLE_1)
def test_cifar_parameters_match_table_1(depth):
    for attention, millions in zip((None, 'base', 'light'), TABLE_1[depth]):
        net = ELAResNet_CIFAR(depth, attention=attention)
        ours = tuple(
            round((parameters(net) + 256 * classes + classes) / 1e6, 4)
            for classes in (10, 100))
        assert ours == millions


def test_imagenet_parameters_match_table_2():
    head = 2048 * 1000 + 1000
    for depth, attention, millions in ((50, None, 25.557), (50, 'base', 25.723),
                                       (50, 'light', 25.738),
                                       (101, None, 44.549),
                                       (101, 'light', 44.940)):
        net = ELAResNet(depth, attention=attention)
        assert round((parameters(net) + head) / 1e6, 3) == millions


class Two(nn.Module):
    """Two attention layers on one map: countable by hand."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(LayerAttention(32) for _ in range(2))

    def forward(self, x):
        memory = LayerMemory()
        for layer in self.layers:
            x = x + layer(x, memory)
        return x


@needs_counter
def test_macs_by_hand():
    cost = count(Two(), (32, 5, 7))
    positions = 5 * 7
    value = 32 * positions * 9  # depthwise 3x3
    pooled = 2 * 32 * 3  # query and key, kernel 3
    retrieval = (1 + 2) * 32 * positions
    assert cost.retrieval_macs == retrieval
    assert cost.macs == 2 * (value + pooled) + retrieval
    assert cost.parameters == 2 * (3 + 3 + 32 * 9 + 2 * 32)


@needs_counter
def test_skipped_layers_cost_nothing():
    net = ELAResNet_CIFAR(20)
    whole = count(net, (3, 32, 32))
    net.skip_layers(layer.name for layer in net.attention_layers)
    plain = count(ELAResNet_CIFAR(20, attention=None), (3, 32, 32))
    pruned = count(net, (3, 32, 32))
    assert pruned.macs == plain.macs < whole.macs
    assert pruned.parameters == whole.parameters
    assert net.training, 'count restores the mode'


@pytest.mark.parametrize('cls, arguments', [
    (ELAResNeXt, dict(groups=4, width_per_group=4)),
    (ELASEResNet, dict(drop_path_rate=0.1)),
    (ELASEResNeXt, dict(groups=4, width_per_group=4)),
    (ELAResNetV1d, dict()),
    (ELAResNet, dict(deep_stem=True, with_cp=True, frozen_stages=1)),
])
@pytest.mark.parametrize('attention', ['base', 'light'])
def test_relatives_train(cls, arguments, attention):
    net = cls(depth=50, base_channels=32, attention=attention, **arguments).train()
    loss = net(torch.randn(2, 3, 64, 64))[-1].square().mean()
    loss.backward()
    assert loss.isfinite()
    layer = net.layer4.attention[1]
    assert layer.value.weight.grad.any()


def test_layerwise_rates_count_attention_with_its_block():
    net = ELAResNet(50)
    for block in range(6):
        assert net.get_layer_depth(
            f'backbone.layer3.attention.{block}.value.weight', 'backbone.') == (
                net.get_layer_depth(f'backbone.layer3.{block}.conv1.weight',
                                    'backbone.'))


def test_cifar_has_the_hosts_depths_too():
    """There it is the host's network, and its weights load."""
    host = ResNet_CIFAR(18)
    ours = ELAResNet_CIFAR(18)
    keys = ours.load_state_dict(host.state_dict(), strict=False)
    assert not keys.unexpected_keys
    assert all('attention' in key for key in keys.missing_keys)
    assert ELAResNet_CIFAR(20, out_indices=(0, 2)).out_indices == (0, 2)


def test_other_depths_are_refused():
    with pytest.raises(KeyError):
        ELAResNet_CIFAR(32)
