"""Parameters and multiply-accumulates of the paper's networks."""
import importlib.util
from functools import lru_cache

import pytest
import torch
from mmpretrain.models.backbones import ResNet_CIFAR
from support import ROOT
from support.complexity import needs_counter
from torch import nn

from ela_mm import LayerAttention, LayerMemory
from ela_mm.analysis import count
from ela_mm.experiments.grid import cells, read_grid
from ela_mm.experiments.published import read_table, read_tables
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


# In millions, by network and in the order of the presets, which in table 1 have
# MRLA-B before ELA. Table 5's train with frozen_stages=1, but for NL and GC.
ROWS = {
    'table1_cifar10': {
        20: (.2204, .2419, .2204, .4392, .2425, .2664, .2312, .2303, .2303),
        56: (.5913, .6558, .5914, .8102, .6576, .7293, .6237, .6210, .6210),
        110: (1.1477, 1.2768, 1.1479, 1.3666, 1.2804, 1.4236, 1.2126, 1.2072,
              1.2072),
    },
    'table1_cifar100': {
        20: (.2435, .2650, .2435, .4624, .2656, .2895, .2543, .2534, .2534),
        56: (.6145, .6790, .6145, .8333, .6808, .7524, .6469, .6442, .6442),
        110: (1.1709, 1.2999, 1.1710, 1.3897, 1.3035, 1.4468, 1.2357, 1.2303,
              1.2303),
    },
    'table2': {
        50: (25.557, 28.072, 28.074, 32.911, 25.814, 28.079, 25.557, 25.871,
             25.738, 25.723, 25.723),
        101: (44.549, 49.292, 49.296, 45.391, 44.549, 45.003, 44.940, 44.907),
    },
    'table5': {
        'Faster R-CNN R50': (41.528, 44.018, 41.528, 41.786, 41.700, 41.686),
        'Faster R-CNN R101': (60.520, 65.238, 60.520, 60.918, 60.901, 60.869),
        'Mask R-CNN R50': (44.171, 46.661, 44.171, 46.496, 46.918, 44.429,
                           44.343, 44.329),
        'Mask R-CNN R101': (63.163, 67.882, 63.163, 65.488, 82.350, 63.561,
                            63.544, 63.513),
    },
}
# Those that do not equal the printed number; the data file says why.
UNEQUAL = {
    'table1_cifar100': {('MRLA-L', 56), ('MRLA-L', 110)},
    'table2': {('A2', 50), ('AA', 50), ('GC', 50), ('AA', 101)},
    'table5': {('GC', 'Mask R-CNN R101')},
}
DEEP = (56, 110, 101, 'Faster R-CNN R101', 'Mask R-CNN R101')


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location(
        'complexity_tool', ROOT / 'tools' / 'complexity.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('name, network', [
    pytest.param(name, network,
                 marks=[pytest.mark.slow] if network in DEEP else [])
    for name, networks in ROWS.items() for network in networks
])
def test_parameters_of_every_row(name, network, tool, monkeypatch):
    for kind in (nn.Conv2d, nn.Linear):  # they need no values
        monkeypatch.setattr(kind, 'reset_parameters', lambda self: None)
    table = read_table(name)
    counted = []
    for cell in preset_cells(name):
        if cell.network != network or cell.seed:
            continue
        row = table.rows.get((cell.variant, network))
        model, _ = tool.build(cell)
        millions = tool.parameters(model, row is not None and row.total) / 1e6
        counted.append(round(millions, 4 if 'cifar' in name else 3))
        if row is not None:
            equal = tool.equal(millions, row.numbers['parameters'],
                               table.decimals)
            wrong = (cell.variant, network) in UNEQUAL.get(name, ())
            assert equal == ('no' if wrong else 'yes'), cell.label
            assert row.note or not wrong
    assert tuple(counted) == ROWS[name][network]


@lru_cache(maxsize=None)
def preset_cells(name):
    return cells(
        read_grid(str(ROOT / f'configs/ablations/{name}.yaml')), str(ROOT))


def test_every_published_row_is_counted():
    assert {name: len(table.rows) for name, table in read_tables().items()
            } == dict(table1_cifar10=24, table1_cifar100=24, table2=19,
                      table3=6, table5=28)
    table = read_table('table5')
    assert table.rows['NL', 'Mask R-CNN R50'].numbers['segm_mAP'] == 34.7
    assert table.rows['ELA', 'Faster R-CNN R50'].numbers == dict(
        parameters=41.7, bbox_mAP=40.5, bbox_mAP_50=61.6, bbox_mAP_75=44.2,
        bbox_mAP_s=24.3, bbox_mAP_m=44.3, bbox_mAP_l=52.9)


@needs_counter
def test_the_tool_prints_a_table(tool, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['complexity.py', '--tables', 'table2'])
    grid = read_grid(str(ROOT / 'configs/ablations/table2.yaml'))
    monkeypatch.setattr(tool, 'read_grid', lambda path: dict(
        grid, depths=[50], systems=['ResNet', 'GC', 'RLA', 'ELA']))
    tool.main()
    title, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert title == 'Table 2, ImageNet-1K' and len(lines) == 2 + 4
    assert lines[2] == ('| ResNet-50 | ResNet | 25.5570 | 25.6 | yes | 4.089 | '
                        '0.000 | 4.1 | yes |  |')
    assert lines[3].startswith('| ResNet-50 | GC | 28.0788 | 29.4 | no | 4.098')
    assert 'times 1.0486' in lines[3]
    assert lines[4].startswith('| ResNet-50 | RLA | 25.8707 | 25.9 | yes | 4.45')
    assert '| 4.153 | 0.014 | 4.4 | no |' in lines[5]


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
def test_skipped_layers_cost_nothing(recwarn):
    net = ELAResNet_CIFAR(20)
    whole = count(net, (3, 32, 32))
    net.skip_layers(layer.name for layer in net.attention_layers)
    plain = count(ELAResNet_CIFAR(20, attention=None), (3, 32, 32))
    pruned = count(net, (3, 32, 32))
    assert pruned.macs == plain.macs < whole.macs
    assert pruned.parameters == whole.parameters
    assert net.training, 'count restores the mode'
    assert not [w for w in recwarn if 'a hook waits' in str(w.message)]


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
