"""Checkpoints under the names of the published MRLA and DLA codes."""
import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner import load_checkpoint
from support.running import tool
from torch import nn

from ela_mm.apis.convert import from_dla, from_mrla, recognise, to_dla, to_mrla
from ela_mm.hosts import mmdet, mmpretrain

BLOCKS = (2, 1, 3, 2)


class Weights(nn.Module):
    """Where that code keeps a layer's projections: ``mrla.mrla.W?``."""

    def __init__(self, channels, light):
        super().__init__()
        size = int(abs((math.log2(channels) + 1) / 2))
        size += 1 - size % 2
        self.mrla = nn.Module()
        for name in 'qk':
            self.mrla.add_module(f'W{name}', nn.Conv1d(
                1, 1, size, padding=size // 2, bias=False))
        self.mrla.Wv = nn.Conv2d(channels, channels, 3, padding=1,
                                 groups=channels, bias=False)
        if light:
            self.lambda_t = nn.Parameter(torch.randn(channels, 1, 1))


class Block(nn.Module):

    def __init__(self, inside, planes, stride, light):
        super().__init__()
        out = 4 * planes
        self.conv1 = nn.Conv2d(inside, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = nn.Sequential(
            nn.Conv2d(inside, out, 1, stride, bias=False),
            nn.BatchNorm2d(out)) if inside != out or stride > 1 else None
        self.mrla = Weights(out, light)
        self.bn_mrla = nn.BatchNorm2d(out)

    def run(self, x, keys, values, light):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        x = (self.bn3(self.conv3(y)) + shortcut).relu()
        batch, channels = x.shape[:2]
        dim = 32 if light else 16
        pooled = F.adaptive_avg_pool2d(x, 1).view(batch, 1, channels)
        query, key = (
            getattr(self.mrla.mrla, f'W{n}')(pooled).view(
                batch, channels // dim, dim) for n in 'qk')
        value = self.mrla.mrla.Wv(x)
        if light:
            gate = ((query * key).sum(-1) / math.sqrt(dim)).sigmoid()
            own = gate.repeat_interleave(dim, 1)[..., None, None] * value
            return x + self.bn_mrla(own + self.mrla.lambda_t * shortcut)
        keys.append(key)
        values.append(value)
        logits = torch.einsum('bhd,nbhd->bhn', query, torch.stack(keys))
        weights = (logits / math.sqrt(dim)).softmax(-1)
        out = sum(w.repeat_interleave(dim, 1)[..., None, None] * v
                  for w, v in zip(weights.unbind(-1), values))
        return x + self.bn_mrla(out).relu()


class Published(nn.Module):
    """MRLA's ResNet, as its names are: three convolutions in the stem."""

    def __init__(self, light=False, layout='stages', deep=True):
        super().__init__()
        self.light, self.layout = light, layout
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32),
            nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1, bias=False),
            nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 1, 1, bias=False)) if deep else nn.Conv2d(
                3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        stages, inside = [], 64
        for i, (count, planes) in enumerate(zip(BLOCKS, (64, 128, 256, 512))):
            blocks = []
            for j in range(count):
                blocks.append(Block(
                    inside, planes, 2 if i and not j else 1, light))
                inside = 4 * planes
            stages.append(nn.ModuleList(blocks))
        if layout == 'stages':
            self.stages = nn.ModuleList(stages)
            self.fc = nn.Linear(2048, 5)
        else:
            for i, stage in enumerate(stages, start=1):
                self.add_module(f'layer{i}', stage)
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, 1. if name.endswith('weight') and
                            parameter.dim() == 1 else 0., .05)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=.1)
                module.running_var.uniform_(.5, 1.5)

    def forward(self, x):
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        outs = []
        for i in range(4):
            stage = (self.stages[i] if self.layout == 'stages' else
                     getattr(self, f'layer{i + 1}'))
            keys, values = [], []
            for block in stage:
                x = block.run(x, keys, values, self.light)
            outs.append(x)
        return outs


def ours(module, name, light):
    attention = 'light' if light else 'base'
    cls = type('Short', (getattr(module, name), ), dict(
        arch_settings={1: (getattr(module, name).arch_settings[50][0],
                           BLOCKS)}))
    return cls(depth=1, attention=attention, out_indices=(0, 1, 2, 3),
               norm_eval=False, **(
                   dict(deep_stem=True) if module is mmdet else {}))


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('light', [False, True])
@pytest.mark.parametrize('host', ['mmpretrain', 'mmdet'])
def test_the_converted_network_computes_the_same(host, light, training):
    torch.manual_seed(0)
    published = Published(light).double().train(training)
    module, name = dict(mmpretrain=(mmpretrain, 'ELAResNetV1c'),
                        mmdet=(mmdet, 'ELAResNet'))[host]
    state = from_mrla(published.state_dict(), host)
    net = ours(module, name, light).double()
    backbone = {k[len('backbone.'):]: v for k, v in state.items()
                if k.startswith('backbone.')}
    missing, unexpected = net.load_state_dict(backbone, strict=False)
    assert not missing and not unexpected
    assert set(state) - {f'backbone.{k}' for k in backbone} == {
        'head.fc.weight', 'head.fc.bias'}
    net.train(training)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(net(x), published(x)):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('light', [False, True])
@pytest.mark.parametrize('host', ['mmpretrain', 'mmdet'])
def test_there_and_back(host, light):
    state = Published(light).state_dict()
    back = to_mrla(from_mrla(state, host), host)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_the_layout_of_its_detectors():
    """``backbone.layer1...``, a stem of one convolution, and the rest."""
    published = Published(layout='layers', deep=False).double().eval()
    state = {f'backbone.{k}': v for k, v in published.state_dict().items()}
    state['rpn_head.rpn_conv.weight'] = torch.ones(2)
    converted = from_mrla(state)
    assert converted['rpn_head.rpn_conv.weight'] is state[
        'rpn_head.rpn_conv.weight']
    cls = type('Short', (mmdet.ELAResNet, ), dict(
        arch_settings={1: (mmdet.ELAResNet.arch_settings[50][0], BLOCKS)}))
    net = cls(1, norm_eval=False).double().eval()
    net.load_state_dict({k[9:]: v for k, v in converted.items()
                         if k.startswith('backbone.')})
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(net.eval()(x), published(x)):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_what_is_not_theirs_is_refused():
    net = mmpretrain.ELAResNet(18)
    assert not recognise(list(net.state_dict()))
    with pytest.raises(ValueError, match='nothing to convert'):
        from_mrla(net.state_dict())
    net.skip_layers(['layer1.1'])
    with pytest.raises(ValueError, match='skipped'):
        to_mrla(net.state_dict())
    scaled = mmpretrain.ELAResNet(18, zero_init_attention=True)
    with pytest.raises(ValueError, match='without zero_init_attention'):
        to_mrla(scaled.state_dict())
    with pytest.raises(ValueError, match="'dla' goes by --source dla"):
        to_mrla(mmpretrain.ELAResNet_CIFAR(20, attention='dla').state_dict())


def test_the_tool(tmp_path, capsys):
    published = Published().state_dict()
    torch.save(dict(state_dict=published), tmp_path / 'theirs.pth')
    process = tool('convert_weights.py', tmp_path / 'theirs.pth',
                   tmp_path / 'ours.pth')
    assert process.returncode == 0, process.stderr
    assert 'of them of attention' in process.stdout
    net = ours(mmpretrain, 'ELAResNetV1c', False)
    holder = nn.Module()
    holder.backbone = net
    holder.head = nn.Module()
    holder.head.fc = nn.Linear(2048, 5)
    load_checkpoint(holder, str(tmp_path / 'ours.pth'), strict=True)
    process = tool('convert_weights.py', tmp_path / 'ours.pth',
                   tmp_path / 'back.pth', '--reverse')
    assert process.returncode == 0, process.stderr
    back = torch.load(tmp_path / 'back.pth')['state_dict']
    assert back.keys() == published.keys()
    process = tool('convert_weights.py', tmp_path / 'ours.pth',
                   tmp_path / 'ours.pth')
    assert process.returncode == 1 and 'is the checkpoint itself' in (
        process.stderr)


def test_loading_them_as_they_are_names_the_command(monkeypatch):
    """Nothing is loaded in silence."""
    said = []
    monkeypatch.setattr(
        'ela_mm.models.backbones.loaded_state.print_log',
        lambda text, *args, **kwargs: said.append(text))
    mmpretrain.ELAResNet(50).load_state_dict(
        Published().state_dict(), strict=False)
    assert any('tools/convert_weights.py IN OUT' in text
               and 'source' not in text for text in said)
    mmpretrain.ELAResNet_CIFAR(20).load_state_dict(
        PublishedDLA().state_dict(), strict=False)
    assert 'tools/convert_weights.py IN OUT --source dla' in said[-1]


# --- DLA ---------------------------------------------------------------------


class Cell(nn.Module):
    """The part of a stage that DLA's code calls lstm."""

    def __init__(self, channels):
        super().__init__()
        for name in ('w_ih', 'w_hh'):
            gate = nn.Module()
            gate.seq = nn.Sequential(
                nn.Linear(channels, channels // 4), nn.ReLU(),
                nn.Linear(channels // 4, 3 * channels))
            self.add_module(name, nn.ModuleList([gate]))

    def forward(self, y, hidden, cell):
        gates = self.w_ih[0].seq(y) + self.w_hh[0].seq(hidden)
        add, keep, new = gates.chunk(3, 1)
        cell = keep.sigmoid() * cell + add.sigmoid() * new.tanh()
        return cell.sigmoid(), cell


class DLAStage(nn.Module):
    """Blocks, their attention and the cell, under that code's names."""

    def __init__(self, blocks, channels):
        super().__init__()
        self.layers = nn.ModuleList(blocks)
        self.attention = nn.ModuleList()
        for _ in blocks:
            inner = Weights(channels, False)
            outer = nn.Module()
            outer.layer_attention = nn.Module()
            outer.layer_attention.layer_attention = inner.mrla
            outer.bn_layer_attention = nn.BatchNorm2d(channels)
            self.attention.append(outer)
        self.lstm = Cell(channels)

    def forward(self, x):
        keys, values, state = [], [], None
        for block, attention in zip(self.layers, self.attention):
            x = block(x)
            y = x.mean((2, 3))
            state = self.lstm(y, *(state or [torch.zeros_like(y)] * 2))
            keys = [k * self.lstm(k, *state)[0] for k in keys]
            values = [v * self.lstm(v.mean((2, 3)), *state)[0][..., None, None]
                      for v in values]
            own = attention.layer_attention.layer_attention
            query, key = (getattr(own, f'W{n}')(y[:, None])[:, 0] for n in 'qk')
            keys.append(key)
            values.append(own.Wv(x))
            heads = [k.unflatten(1, (-1, 32)) for k in (query, *keys)]
            logits = torch.stack([(heads[0] * k).sum(-1) for k in heads[1:]], -1)
            weights = (logits / math.sqrt(32)).softmax(-1)  # (B, h, n)
            out = sum(w.repeat_interleave(32, 1)[..., None, None] * v
                      for w, v in zip(weights.unbind(-1), values))
            x = x + attention.bn_layer_attention(out).relu()
        return x


class PlainBlock(Block):
    """A bottleneck; attention stands outside of it."""

    def __init__(self, inside, planes, stride):
        super().__init__(inside, planes, stride, False)
        del self.mrla, self.bn_mrla

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.bn3(self.conv3(y)) + shortcut).relu()


class PublishedDLA(nn.Module):
    """DLA-base of 20 layers, as its code for CIFAR names them."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.stages, inside = nn.ModuleList(), 16
        for i, planes in enumerate((16, 32, 64)):
            blocks = [PlainBlock(inside if j == 0 else 4 * planes, planes,
                                 2 if i and not j else 1) for j in range(2)]
            self.stages.append(DLAStage(blocks, 4 * planes))
            inside = 4 * planes
        self.fc = nn.Linear(256, 10)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=.1)
                module.running_var.uniform_(.5, 1.5)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        outs = []
        for stage in self.stages:
            x = stage(x)
            outs.append(x)
        return outs


@pytest.mark.parametrize('training', [False, True])
def test_the_converted_dla_computes_the_same(training):
    published = PublishedDLA().double().train(training)
    theirs = {f'module.{k}': v for k, v in published.state_dict().items()}
    state = from_dla(theirs)  # as nn.DataParallel saves them
    net = mmpretrain.ELAResNet_CIFAR(20, attention='dla',
                                     out_indices=(0, 1, 2)).double()
    backbone = {k[9:]: v for k, v in state.items() if k.startswith('backbone.')}
    missing, unexpected = net.load_state_dict(backbone, strict=False)
    assert not missing and not unexpected
    assert set(state) - {f'backbone.{k}' for k in backbone} == {
        'head.fc.weight', 'head.fc.bias'}
    net.train(training)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(net(x), published(x)):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_dla_there_and_back(tmp_path):
    state = PublishedDLA().state_dict()
    torch.save(state, tmp_path / 'theirs.pth')
    for source, target, options in (('theirs', 'ours', []),
                                    ('ours', 'back', ['--reverse'])):
        process = tool('convert_weights.py', tmp_path / f'{source}.pth',
                       tmp_path / f'{target}.pth', '--source', 'dla', *options)
        assert process.returncode == 0, process.stderr
    back = torch.load(tmp_path / 'back.pth')['state_dict']
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    process = tool('convert_weights.py', tmp_path / 'theirs.pth',
                   tmp_path / 'no.pth')
    assert process.returncode == 1 and '--source dla' in process.stderr
    assert not (tmp_path / 'no.pth').exists()


def test_what_dla_does_not_name_or_has_more():
    state = PublishedDLA().state_dict()
    with pytest.raises(ValueError, match='DLA-light .*excite.*DLA-base can'):
        from_dla({**state, 'stages.0.excite.weight': torch.ones(64, 1, 3, 3)})
    with pytest.raises(ValueError, match='is no name of the published DLA'):
        from_dla({**state, 'stages.0.lstm.w_ih.1.weight': torch.ones(1)})
    with pytest.raises(ValueError, match='--source mrla does it'):
        from_dla(Published().state_dict())
    with pytest.raises(ValueError, match='no such cell'):
        to_dla(mmpretrain.ELAResNet_CIFAR(20).state_dict())
    with pytest.raises(ValueError, match='no such cell'):
        to_dla(mmpretrain.ELAResNet_CIFAR(
            20, attention='dla-light').state_dict())
    net = mmpretrain.ELAResNet_CIFAR(20, attention='dla',
                                     zero_init_attention=True)
    with pytest.raises(ValueError, match='without zero_init_attention'):
        to_dla(net.state_dict())
    net.skip_layers(['layer1.1'])
    with pytest.raises(ValueError, match='skipped'):
        to_dla(net.state_dict())
