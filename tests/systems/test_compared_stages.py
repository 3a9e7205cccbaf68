"""The compared systems across blocks: DIA, RLA and DLA."""
import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner, load_checkpoint
from support import ROOT
from support.detector import small_config
from support.toy import toy_runner
from support.versions import TORCH_2_1
from torch import nn

from ela_mm.apis.onnx import export_onnx
from ela_mm.errors import UsageError
from ela_mm.hosts import mmdet, mmpretrain
from ela_mm.models.backbones.layer_attention_mixin import find_backbone

KINDS = ('dia', 'rla', 'rla-concat', 'dla', 'dla-light')
HOSTS = dict(
    mmdet=lambda **kw: mmdet.ELAResNet(50, base_channels=8, **kw),
    mmpretrain=lambda **kw: mmpretrain.ELAResNet(
        50, base_channels=8, out_indices=(0, 1, 2, 3), **kw))


def small(kind, host='mmpretrain', **kwargs):
    """Depth 50 with 32, 64, 128 and 256 channels."""
    return HOSTS[host](
        attention=kind, stem_channels=8, **dict(dict(norm_eval=False), **kwargs))


@torch.no_grad()
def randomised(net):
    """Weights nowhere zero, features of the size of 1, statistics of data."""
    for name, parameter in net.named_parameters():
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter)
        elif 'weight' in name and parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1)
        else:
            nn.init.normal_(parameter, std=0.3)
    return net


# --- the equations, written once more -----------------------------------------


class Reference:
    """A ResNet-50 with each system, in training, from its parameters alone."""

    def __init__(self, net):
        self.p = {
            name: p.detach().clone().requires_grad_()
            for name, p in net.named_parameters()
        }

    def bn(self, x, name):
        weight, bias = (self.p[f'{name}.{part}'][:, None, None]
                        for part in ('weight', 'bias'))
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def conv(self, x, name, stride=1, groups=1):
        weight = self.p[f'{name}.weight']
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)

    def last_norm(self, z, name, stride):
        """What a block's last norm returns for an input z."""
        y = torch.relu(self.bn(self.conv(z, f'{name}.conv1'), f'{name}.bn1'))
        y = self.conv(y, f'{name}.conv2', stride)
        y = torch.relu(self.bn(y, f'{name}.bn2'))
        return self.bn(self.conv(y, f'{name}.conv3'), f'{name}.bn3')

    def shortcut(self, x, name, stride):
        if f'{name}.downsample.0.weight' not in self.p:
            return x
        x = self.conv(x, f'{name}.downsample.0', stride)
        return self.bn(x, f'{name}.downsample.1')

    def mlp(self, y, name):
        hidden = torch.relu(y @ self.p[f'{name}.0.weight'].T +
                            self.p[f'{name}.0.bias'])
        return hidden @ self.p[f'{name}.2.weight'].T + self.p[f'{name}.2.bias']

    def cell(self, y, state, name):
        """DIA's with four gates, DLA's with three: i, f, g (and o)."""
        h, c = state
        i, f, g, *o = (self.mlp(y, f'{name}.input') +
                       self.mlp(h, f'{name}.hidden')).split(y.shape[1], 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = 1 / (1 + torch.exp(-c))
        return (torch.sigmoid(o[0]) * h if o else h), c

    def vector(self, x, name):
        """A convolution over channels of their means."""
        y = x.mean((2, 3))
        (weights, ) = self.p[f'{name}.weight'][0]
        half = len(weights) // 2
        padded = F.pad(y, (half, half))
        return sum(w * padded[:, i:i + y.shape[1]]
                   for i, w in enumerate(weights))

    def forward(self, kind, x, skipped=(), visible=()):
        x = torch.relu(self.bn(self.conv(x, 'conv1', 2), 'bn1'))
        x = F.max_pool2d(x, 3, 2, 1)
        self.carried = x.new_zeros(len(x), 32, *x.shape[2:])
        outs = []
        for s, blocks in enumerate((3, 4, 6, 3), start=1):
            channels = 8 * 4 * 2**(s - 1)
            state = (x.new_zeros(len(x), channels), ) * 2
            keys, values = [], []
            for i in range(blocks):
                name, a = f'layer{s}.{i}', f'layer{s}.attention.{i}'
                first = f'layer{s}.attention.0'
                stride = 2 if s > 1 and i == 0 else 1
                short = self.shortcut(x, name, stride)
                if kind == 'dia':
                    y = self.last_norm(x, name, stride)
                    state = self.cell(y.mean((2, 3)), state, first)
                    x = torch.relu(y * state[0][..., None, None] + short)
                elif kind.startswith('rla'):
                    x = self.rla(x, short, name, a, first, stride)
                elif kind == 'dla':
                    x = torch.relu(self.last_norm(x, name, stride) + short)
                    if (s, i) in skipped and (s, i) not in visible:
                        continue
                    # Literally: every key and value anew at every layer.
                    state = self.cell(x.mean((2, 3)), state, f'{first}.cell')
                    for t in range(len(keys)):
                        keys[t] = keys[t] * self.cell(keys[t], state,
                                                      f'{first}.cell')[0]
                        values[t] = values[t] * self.cell(
                            values[t].mean((2, 3)), state,
                            f'{first}.cell')[0][..., None, None]
                    keys.append(self.vector(x, f'{a}.key'))
                    values.append(self.conv(x, f'{a}.value', groups=channels))
                    if (s, i) not in skipped:
                        x = x + self.retrieved(x, keys, values, a)
                else:
                    x = torch.relu(self.last_norm(x, name, stride) + short)
                    state = self.cell(x.mean((2, 3)), state, f'{first}.cell')
                    short = short * self.cell(
                        short.mean((2, 3)), state,
                        f'{first}.cell')[0][..., None, None]
                    x = x + self.light(x, short, a)
            outs.append(x)
        if kind == 'rla-concat':
            h = torch.relu(self.bn(self.carried,
                                   'layer4.attention.2.final_norm'))
            outs[-1] = torch.cat((x, h), 1)
        return outs

    def rla(self, x, short, name, a, first, stride):
        h = self.carried
        y = self.last_norm(torch.cat((x, h), 1), name, stride)
        if stride > 1:
            h = torch.stack([
                torch.stack([
                    h[:, :, i:i + 2, j:j + 2].mean((2, 3))
                    for j in range(0, h.shape[3], 2)
                ], -1) for i in range(0, h.shape[2], 2)
            ], -2)
        h = self.bn(h + self.conv(y, f'{first}.project'), f'{a}.norm')
        self.carried = self.conv(torch.tanh(h), f'{first}.recur')
        return torch.relu(y + short)

    def retrieved(self, x, keys, values, a):
        query, heads = self.vector(x, f'{a}.query'), []
        for j in range(0, x.shape[1], 32):
            own = slice(j, j + 32)
            logits = torch.stack([(query[:, own] * key[:, own]).sum(1) / 32**0.5
                                  for key in keys], 1).exp()
            weights = logits / logits.sum(1, keepdim=True)
            heads.append(
                sum(weights[:, t, None, None, None] * value[:, own]
                    for t, value in enumerate(values)))
        return torch.relu(self.bn(torch.cat(heads, 1), f'{a}.norm'))

    def light(self, x, short, a):
        query, key = (self.vector(x, f'{a}.{n}') for n in ('query', 'key'))
        logits = (query * key).unflatten(1, (-1, 32)).sum(2) / 32**0.5
        gate = torch.sigmoid(logits).repeat_interleave(32, 1)[..., None, None]
        mixed = (self.conv(x, f'{a}.value', groups=x.shape[1]) * gate +
                 self.p[f'{a}.mix'][:, None, None] * short)
        return self.bn(mixed, f'{a}.norm')


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('kind', KINDS)
def test_equals_its_equations(kind, host):
    """Values and gradients, on maps of odd sizes: 11x9, 6x5, 3x3, 2x2."""
    net = randomised(small(kind, host)).double().train()
    x = torch.randn(3, 3, 41, 33, dtype=torch.float64)
    reference = Reference(net)
    outs, expected = net(x), reference.forward(kind, x)
    assert len(outs) == 4
    for a, b in zip(outs, expected):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    cotangents = [torch.randn_like(out) for out in outs]
    torch.autograd.backward(outs, cotangents)
    gradients = torch.autograd.grad(
        expected, list(reference.p.values()), cotangents, allow_unused=True)
    for (name, parameter), gradient in zip(net.named_parameters(), gradients):
        assert (parameter.grad is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(
                parameter.grad, gradient, rtol=1e-6, atol=1e-7,
                msg=lambda text, n=name: f'{n}: {text}')


# --- parameters ---------------------------------------------------------------


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize('kind, depth, printed', [
    ('dia', 20, (.4392, .4624)), ('dia', 56, (.8102, .8333)),
    ('dia', 110, (1.3666, 1.3897)), ('dla', 20, (.4052, .4284)),
    ('dla', 56, (.7960, .8191)), ('dla', 110, (1.3821, 1.4053)),
    ('dla-light', 20, (.4061, .4293)), ('dla-light', 56, (.7987, .8218)),
    ('dla-light', 110, (1.3875, 1.4106))
])
def test_parameters_of_table_1(kind, depth, printed):
    """With a linear head of 10 and of 100 classes."""
    backbone = millions(mmpretrain.ELAResNet_CIFAR(depth, attention=kind))
    for classes, expected in zip((10, 100), printed):
        assert round(backbone + 257 * classes / 1e6, 4) == expected


@pytest.mark.parametrize('depth, printed', [(50, 25.871), (101, 45.003)])
def test_parameters_of_table_2(depth, printed):
    cfg = get_config(f'mmpretrain::resnet/resnet{depth}_8xb32_in1k.py').model
    cfg.backbone.update(type='mmpretrain.ELAResNet', attention='rla-concat')
    cfg.head.in_channels = 2080
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert round(millions(MODELS.build(cfg)), 3) == printed


@pytest.mark.parametrize('detector, depth, printed', [
    ('faster-rcnn', 50, 41.786), ('faster-rcnn', 101, 60.918),
    ('mask-rcnn', 50, 44.429), ('mask-rcnn', 101, 63.561)
])
def test_parameters_of_table_5(detector, depth, printed):
    """Trainable ones, with the stem and stage 1 frozen."""
    folder = detector.replace('-', '_')
    cfg = get_config(f'mmdet::{folder}/{detector}_r50_fpn_1x_coco.py').model
    cfg.backbone.update(
        type='ELAResNet', attention='rla', depth=depth, init_cfg=None)
    assert cfg.backbone.frozen_stages == 1
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(trained / 1e6, 3) == printed


# --- weights ------------------------------------------------------------------


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('kind', KINDS)
def test_plain_weights_load(kind, host):
    plain = randomised(small(None, host))
    net = small(kind, host)
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    widened = {n for n in missing if '.attention.' not in n}
    blocks = [f'layer{s}.{i}' for s, t in enumerate((3, 4, 6, 3), 1)
              for i in range(t)]
    assert widened == ({f'{block}.conv1.weight' for block in blocks}
                       if kind.startswith('rla') else set())
    state = net.state_dict()
    for name, value in plain.state_dict().items():
        if name not in widened:
            assert torch.equal(state[name], value), name
    assert net.load_state_dict(net.state_dict())  # its own are whole


@pytest.fixture
def log():
    """Lines of mmengine's log."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_instance('compared_stages')
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_the_log_says_what_of_plain_weights_does_not_load(tmp_path, log):
    plain = randomised(small(None))
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    net = small('rla')
    before = net.layer2[1].conv1.weight.clone()
    load_checkpoint(net, str(tmp_path / 'plain.pth'), logger='current')
    assert torch.equal(net.layer2[1].conv1.weight, before)
    assert torch.equal(net.layer2[1].conv2.weight, plain.layer2[1].conv2.weight)
    said = [x for x in log if "32 channels of RLA's state" in x]
    assert [x.split(':')[0] for x in said] == [
        'layer1', 'layer2', 'layer3', 'layer4']
    assert 'first convolutions of 6 blocks' in said[2]
    assert 'these convolutions stay as they are' in said[2]
    assert not any('size mismatch' in x for x in log)


def test_zero_init_starts_as_the_plain_network(log):
    """Also after the host's own start, and it learns from there."""
    plain = randomised(small(None)).eval()
    net = small('rla', zero_init_attention=True)
    net.init_weights()
    assert not any(block.conv1.weight[:, -32:].any()
                   for stage in net.attention_stages for block in stage)
    net.load_state_dict(plain.state_dict(), strict=False)
    assert any('They start with its weights, and 0' in x for x in log)
    net.eval()
    x = torch.randn(2, 3, 64, 64)
    for a, b in zip(net(x), plain(x)):
        torch.testing.assert_close(a, b)
    net.train()
    sum(out.square().mean() for out in net(x)).backward()
    for stage in net.attention_stages:
        for i, block in enumerate(stage):
            columns = block.conv1.weight[:, -32:]
            assert not columns.any()
            # The very first state is 0.
            learns = block.conv1.weight.grad[:, -32:].any()
            assert learns or (stage.name, i) == ('layer1', 0)
    trained = net.state_dict()
    trained['layer1.1.conv1.weight'][:, -32:] = 1
    net.load_state_dict(trained)
    assert net.layer1[1].conv1.weight[:, -32:].all()


# --- how they run -------------------------------------------------------------


def step(net, x, dtype=None):
    """Outputs and gradients of a step."""
    net.zero_grad()
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        outs = net(x)
    sum(out.float().square().mean() for out in outs).backward()
    return outs, {n: p.grad.clone() for n, p in net.named_parameters()
                  if p.grad is not None}


@pytest.mark.parametrize('kind', KINDS)
def test_bfloat16_autocast_is_near_and_learns(kind):
    net = randomised(small(kind)).train()
    x = torch.randn(4, 3, 64, 64)
    outs, gradients = step(net, x, torch.bfloat16)
    expected, all_gradients = step(net, x)
    # What comes after is as far off in a plain network.
    assert (outs[0] - expected[0]).norm() < 0.05 * expected[0].norm()
    assert all(out.isfinite().all() for out in outs)
    assert gradients.keys() == all_gradients.keys()
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('kind', KINDS)
def test_with_cp_changes_nothing(kind, host):
    net = randomised(small(kind, host)).train()
    saving = small(kind, host, with_cp=True).train()
    saving.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 64, 64)
    outs, gradients = step(net, x)
    ours, found = step(saving, x)
    for a, b in zip(ours, outs):
        torch.testing.assert_close(a, b)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize('kind', ['dia', 'rla'])
def test_with_cp_keeps_less(kind):
    """What only a block needs inside is computed again."""

    def kept(with_cp):
        net, total = small(kind, 'mmdet', with_cp=with_cp).train(), []
        with torch.autograd.graph.saved_tensors_hooks(
                lambda t: total.append(t.numel()) or t, lambda t: t):
            net(torch.randn(2, 3, 64, 64, requires_grad=True))
        return sum(total)

    assert kept(True) < kept(False) / 2


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('kind', KINDS)
def test_frozen_stages_are_frozen_with_their_attention(kind, host):
    net = randomised(small(kind, host, frozen_stages=1)).train()
    assert not any(m.training for m in net.layer1.modules())
    _, gradients = step(net, torch.randn(2, 3, 64, 64))
    assert not any(n.startswith(('conv1', 'layer1')) for n in gradients)
    # All others get one, as DistributedDataParallel expects.
    assert set(gradients) == {
        n for n, p in net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('kind, fresh', [('dia', 0), ('rla', 15),
                                         ('rla-concat', 16), ('dla', 16),
                                         ('dla-light', 16)])
def test_norm_eval_leaves_fresh_norms_in_training(kind, fresh):
    """Also on one picture whose last map is one pixel."""
    net = randomised(small(kind, norm_eval=True))
    net.train()
    training = {n for n, m in net.named_modules()
                if isinstance(m, nn.BatchNorm2d) and m.training}
    assert len(net.fresh_norms) == fresh
    assert len(training) == fresh + (kind == 'rla-concat')  # one for the end
    assert all('.attention.' in name for name in training)
    _, gradients = step(net, torch.randn(1, 3, 32, 32))
    assert all(g.isfinite().all() for g in gradients.values())
    assert net.layer1[0].bn1.num_batches_tracked == 0


@pytest.mark.parametrize('kind', KINDS)
def test_one_picture_trains(kind):
    net = randomised(small(kind)).train()
    _, gradients = step(net, torch.randn(1, 3, 49, 65))
    assert all(g.isfinite().all() for g in gradients.values())


@torch.no_grad()
def with_statistics(net):
    """In evaluation, with running statistics of data."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.
    net.train()
    net(torch.randn(8, 3, 64, 64, dtype=next(net.parameters()).dtype))
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('kind', KINDS)
def test_survives_fusing_copies_files_and_synchronised_norms(kind, host):
    net = with_statistics(randomised(small(kind, host)).double())
    x = torch.randn(2, 3, 49, 65, dtype=torch.float64)
    expected = net(x)
    copied = copy.deepcopy(net)
    loaded = pickle.loads(pickle.dumps(net))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    for other in (copied, loaded):
        for a, b in zip(other(x), expected):
            assert torch.equal(a, b)
    # Fused: no norm of a block is left, and no hook was.
    fused = fuse_conv_bn(loaded)
    assert isinstance(fused.layer1[0].bn3, nn.Identity)
    for a, b in zip(fused(x), expected):
        torch.testing.assert_close(a, b)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copied)
    if TORCH_2_1:  # before, what is converted is in training mode
        for a, b in zip(synchronised(x), expected):
            torch.testing.assert_close(a, b)


@torch.no_grad()
@pytest.mark.parametrize('kind', ['dia', 'rla', 'dla-light'])
def test_threads_and_passes_do_not_meet(kind):
    """The same network in several threads; and nothing outlives a pass."""
    net = with_statistics(randomised(small(kind)))
    pictures = [torch.randn(1, 3, 32 + 16 * i, 48) for i in range(4)] * 3
    expected = [net(x)[-1] for x in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: net(x)[-1], pictures))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)

    def fail(module, args):
        raise InterruptedError

    handle = net.layer3.register_forward_pre_hook(fail)
    with pytest.raises(InterruptedError):
        net(pictures[1])
    handle.remove()
    torch.testing.assert_close(net(pictures[0])[-1], expected[0])
    stage = net.layer2  # by itself it starts with a state of 0
    x = torch.rand(1, 32, 5, 7)
    assert torch.equal(stage(x), stage(x))
    if kind == 'dia':  # and its block is the host's
        plain = small(None)
        plain.load_state_dict(net.state_dict(), strict=False)
        assert torch.equal(stage[0](x), plain.eval().layer2[0](x))


@pytest.mark.parametrize('kind', ['dia', 'rla-concat', 'dla', 'dla-light'])
def test_onnx_export_agrees(kind, tmp_path):
    """Two stages of two blocks, of any batch."""
    pytest.importorskip('onnxruntime')
    net = mmpretrain.ELAResNet_CIFAR(
        20,
        attention=kind,
        base_channels=8,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(0, 1))
    net = with_statistics(randomised(net))
    path = tmp_path / 'net.onnx'
    export_onnx(net, ['feature_1', 'feature_2'], str(path), (9, 7))
    assert path.exists()  # for they agree to 1e-4


def test_stochastic_depth_drops_what_the_cell_has_weighed():
    """mmpretrain's: the gate is in the dropped branch."""
    net = randomised(small('dia', drop_path_rate=0.999)).train()
    x = torch.randn(1, 256, 3, 3).relu()
    stage = net.layer4
    with torch.no_grad():
        out, _ = stage.step(2, x, stage.new_memory(x))
    assert torch.equal(out, x)


def test_a_block_that_hides_its_last_norm_is_named():
    for kind in ('dia', 'rla'):
        with pytest.raises(UsageError, match='BasicBlock of mmdet.*depth of 50'):
            mmdet.ELAResNet(18, attention=kind)
    out = mmpretrain.ELAResNet(18, attention='dia')(torch.randn(2, 3, 32, 32))
    assert out[0].shape == (2, 512, 1, 1)


@pytest.mark.parametrize('kind, option', [
    ('dia', dict(head_dim=16)), ('dia', dict(zero_init_attention=True)),
    ('rla', dict(act=False)), ('dla-light', dict(act=False))])
def test_options_that_a_kind_lacks(kind, option):
    with pytest.raises(UsageError, match=f'attention={kind!r} knows no'):
        small(kind, **option)


def test_layer_decay_knows_the_depth_of_their_parameters():
    for kind in KINDS:
        net = small(kind)
        for name, _ in net.named_parameters():
            depth, _ = net.get_layer_depth(f'backbone.{name}', 'backbone.')
            if name.startswith('layer1.attention'):
                assert depth == 1


# --- pruning ------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['dia', 'rla', 'rla-concat', 'dla-light'])
def test_the_hook_says_what_is_not_pruned(kind):
    net = small(kind)
    assert net.attention_layers == [] and 'active' not in net.state_dict()
    with pytest.raises(UsageError, match='no layer attention to prune: '
                       f'attention={kind!r} is not pruned'):
        find_backbone(nn.Sequential(net))


@pytest.mark.parametrize('mode', ['layer', 'retrieval'])
def test_dla_skips_layers(mode):
    net = randomised(small('dla')).double().train()
    names = ['layer1.0', 'layer2.1', 'layer3.4', 'layer3.5', 'layer4.2']
    skipped = {tuple(map(int, n[len('layer'):].split('.'))) for n in names}
    # The last of a stage is read by none, whatever the mode.
    visible = set() if mode == 'layer' else skipped - {(3, 4), (3, 5), (4, 2)}
    net.skip_layers(names, skip=mode)
    x = torch.randn(2, 3, 49, 33, dtype=torch.float64)
    reference = Reference(net)
    outs = net(x)
    for a, b in zip(outs, reference.forward('dla', x, skipped, visible)):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    sum(out.square().mean() for out in outs).backward()
    assert {n for n, p in net.named_parameters() if p.grad is not None} == {
        n for n, p in net.named_parameters() if p.requires_grad}
    # The stage's cell outlives the layer that holds it.
    assert net.layer1.attention[0].cell.input[0].weight.grad.any()
    assert not any('cell' in n for names in net.unused_state().values()
                   for n in names)
    net.skip_layers(x.name for x in net.attention_layers)
    assert not net.layer1.attention[0].cell.input[0].weight.requires_grad


def test_dla_is_measured_and_pruned_by_the_hook(tmp_path):
    runner = toy_runner(
        tmp_path,
        **{
            'model.backbone.attention': 'dla-base',
            'model.backbone.head_dim': 16
        })
    runner.train()
    (hook, ) = [h for h in runner.hooks if hasattr(h, 'decisions')]
    (decision, ) = hook.decisions
    assert len(decision.skipped) > 0
    active = {layer.name: layer.active
              for layer in runner.model.backbone.attention_layers}
    assert not any(active[name] for name in decision.skipped)


@torch.no_grad()
def test_dla_shows_weights_over_layers():
    net, seen = randomised(small('dla')), []
    net.observe(lambda name, prev, curr: seen.append((name, prev, curr)))
    net(torch.randn(2, 3, 64, 64))
    assert len(seen) == 12
    name, prev, curr = seen[-1]
    assert name == 'layer4.2'
    assert prev.shape == (2, 8, 2) and curr.shape == (2, 8, 3)
    torch.testing.assert_close(curr.sum(-1), torch.ones(2, 8))


# --- in the hosts' Runners ----------------------------------------------------


def trained(cfg: Config, work_dir, **options):
    """A backbone after two steps on a few pictures, and what it was before."""
    cfg.merge_from_dict({
        'work_dir': str(work_dir),
        'train_cfg': dict(max_epochs=1, val_interval=2),
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.indices': 4,
        'custom_hooks': [],
        **options
    })
    runner = Runner.from_cfg(cfg)
    before = copy.deepcopy(runner.model.backbone.state_dict())
    runner.train()
    assert runner.iter == 2
    return runner.model.backbone.state_dict(), before


def test_mmpretrain_trains_rla_with_its_state(tmp_path):
    """The head takes the state's 32 channels."""
    cfg = Config.fromfile(ROOT / 'configs' / 'ela_resnet20_digits.py')
    after, before = trained(
        cfg, tmp_path, **{
            'model.backbone.attention': 'rla-concat',
            'model.head.in_channels': 256 + 32
        })
    for name in ('0.project.weight', '1.final_norm.weight'):
        name = f'layer3.attention.{name}'
        assert not torch.equal(after[name], before[name])


def test_mmdet_trains_dia(digits_root, tmp_path):
    after, before = trained(
        small_config(digits_root), tmp_path, **{
            'model.backbone.depth': 50,
            'model.backbone.attention': 'dia',
            'model.neck.in_channels': [64, 128, 256, 512]
        })
    name = 'layer4.attention.0.input.2.bias'
    assert not torch.equal(after[name], before[name])
