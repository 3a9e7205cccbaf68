"""The compared systems that stand inside a block, and how they get there."""
import copy
import math
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import build_plugin_layer, fuse_conv_bn
from mmdet.models import backbones as mmdet_backbones
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.backbones import ResNet
from mmpretrain.models.backbones import resnet as mmpretrain_resnet
from mmpretrain.models.backbones import resnext as mmpretrain_resnext
from mmpretrain.models.backbones import seresnet as mmpretrain_seresnet
from support.versions import TORCH_2_1
from torch import fx, nn

from ela_mm.apis.onnx import export_onnx
from ela_mm.errors import UsageError
from ela_mm.hosts.mmpretrain import ELAResNet_CIFAR
from ela_mm.models.compared import (
    AugmentedConv2d,
    apply_plugins,
    check_plugins,
    init_plugins,
)

# Beside the defaults, what a module needs.
NEEDED = dict(ContextBlock=dict(ratio=1 / 16))
SYSTEMS = ('SEAttention', 'ECAAttention', 'CBAMAttention', 'BAMAttention',
           'ContextBlock', 'NonLocal2d', 'DoubleAttention')


def config(system):
    return dict(type=system, **NEEDED.get(system, {}))


def built(system, channels=64):
    """A module with weights that are nowhere zero."""
    layer = build_plugin_layer(config(system), in_channels=channels)[1]
    return randomised(layer)


def randomised(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


# --- the equations, written once more -----------------------------------------


def normalised(x, weight, bias):
    """Batch norm by the statistics of the batch."""
    dims = [0] + list(range(2, x.dim()))
    shape = [1, -1] + [1] * (x.dim() - 2)
    mean = x.mean(dims, keepdim=True)
    variance = (x - mean).square().mean(dims, keepdim=True)
    return ((x - mean) / (variance + 1e-5).sqrt() * weight.view(shape) +
            bias.view(shape))


def pointwise(x, weight, bias=None):
    """A 1x1 convolution as a sum over channels."""
    out = torch.einsum('bcyx,oc->boyx', x, weight.flatten(1))
    return out if bias is None else out + bias[:, None, None]


def se(x, w1, w2):
    gates = torch.sigmoid(torch.relu(x.mean((2, 3)) @ w1[..., 0, 0].T)
                          @ w2[..., 0, 0].T)
    return torch.einsum('bcyx,bc->bcyx', x, gates)


def eca(x, kernel):
    (weights, ) = kernel[0]
    half = len(weights) // 2
    means = F.pad(x.mean((2, 3)), (half, half))
    gates = sum(w * means[:, i:i + x.shape[1]] for i, w in enumerate(weights))
    return x * torch.sigmoid(gates)[..., None, None]


def cbam(x, w1, w2, kernel, weight, bias):

    def mlp(pooled):
        return torch.relu(pooled @ w1[..., 0, 0].T) @ w2[..., 0, 0].T

    gates = torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.flatten(2).max(2)[0]))
    x = x * gates[..., None, None]
    maps = torch.stack([x.mean(1), x.max(1)[0]], 1)
    spatial = F.conv2d(F.pad(maps, (3, ) * 4), kernel)
    return x * torch.sigmoid(normalised(spatial, weight, bias))


def bam(x, w1, b1, g1, h1, w2, b2, *spatial):
    channel = normalised(x.mean((2, 3)) @ w1.T + b1, g1, h1)
    channel = torch.relu(channel) @ w2.T + b2
    w, b, g, h = spatial[:4]
    y = torch.relu(normalised(pointwise(x, w, b), g, h))
    for w, b, g, h in (spatial[4:8], spatial[8:12]):
        y = F.conv2d(F.pad(y, (4, ) * 4), w, b, dilation=4)
        y = torch.relu(normalised(y, g, h))
    y = pointwise(y, *spatial[12:])
    return x + x * torch.sigmoid(channel[..., None, None] * y)


def gc(x, mask, mask_bias, w1, b1, gain, shift, w2, b2):
    logits = pointwise(x, mask, mask_bias).flatten(1)
    weights = logits.exp() / logits.exp().sum(1, keepdim=True)
    context = torch.einsum('bcp,bp->bc', x.flatten(2), weights)
    y = context @ w1[..., 0, 0].T + b1
    y = y - y.mean(1, keepdim=True)
    y = y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt()
    y = torch.relu(y * gain.flatten() + shift.flatten())
    return x + (y @ w2[..., 0, 0].T + b2)[..., None, None]


def nl(x, g, g_bias, out, out_bias, theta, theta_bias, phi, phi_bias):
    values = pointwise(x, g, g_bias).flatten(2)
    queries = pointwise(x, theta, theta_bias).flatten(2)
    keys = pointwise(x, phi, phi_bias).flatten(2)
    logits = torch.einsum('bcp,bcq->bpq', queries, keys)
    logits = (logits / math.sqrt(len(g))).exp()
    mixed = torch.einsum('bpq,bcq->bcp', logits / logits.sum(2, keepdim=True),
                         values)
    mixed = mixed.reshape(len(x), -1, *x.shape[2:])
    return x + pointwise(mixed, out, out_bias)


def a2(x, a, a_bias, b, b_bias, v, v_bias, out, out_bias):
    """Equation 6, one pixel's attention at a time."""
    features = pointwise(x, a, a_bias).flatten(2)
    gather = pointwise(x, b, b_bias).flatten(2).exp()
    distribute = pointwise(x, v, v_bias).flatten(2).exp()
    gathered = torch.einsum('bmp,bnp->bmn', features,
                            gather / gather.sum(2, keepdim=True))
    z = torch.stack([
        torch.einsum('bmn,bn->bm', gathered, p / p.sum(1, keepdim=True))
        for p in distribute.unbind(2)
    ], 2)
    z = z.reshape(len(x), -1, *x.shape[2:])
    return x + pointwise(z, out, out_bias)


REFERENCES = dict(zip(SYSTEMS, (se, eca, cbam, bam, gc, nl, a2)))


@pytest.mark.parametrize('system', SYSTEMS)
@pytest.mark.parametrize('channels, batch, height, width', [(64, 3, 5, 7),
                                                            (128, 2, 1, 3)])
def test_equals_its_equations(system, channels, batch, height, width):
    layer = built(system, channels).double()
    x = torch.randn(
        batch, channels, height, width, dtype=torch.float64, requires_grad=True)
    parameters = list(layer.parameters())
    cotangent = torch.randn_like(x)
    result, expected = layer(x), REFERENCES[system](x, *parameters)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
    for a, b in zip(
            torch.autograd.grad(result, [x] + parameters, cotangent),
            torch.autograd.grad(expected, [x] + parameters, cotangent)):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def augmented(x, layer, stride=1):
    """AA with loops over the pairs of positions."""
    conv = F.conv2d(
        F.pad(x, (1, ) * 4), layer.conv.weight, layer.conv.bias, stride)
    if stride > 1:
        ones = torch.ones_like(x[:1, :1])
        kernel = torch.ones(3, 3, dtype=x.dtype)

        def window_sums(maps):
            return F.conv2d(
                F.pad(maps, (1, ) * 4),
                kernel.expand(maps.shape[1], 1, 3, 3),
                stride=stride,
                groups=maps.shape[1])

        x = window_sums(x) / window_sums(ones)
    height, width = x.shape[2:]
    widths = [layer.num_heads * layer.relative_rows.shape[1]] * 2
    projected = pointwise(x, layer.qkv.weight, layer.qkv.bias).flatten(2)
    parts = projected.split(widths + [layer.project.out_channels], 1)
    heads = []
    for q, k, v in zip(*(part.chunk(layer.num_heads, 1) for part in parts)):
        logits = []
        for i in range(height * width):
            for j in range(height * width):
                row = layer.relative_rows[j // width - i // width +
                                          len(layer.relative_rows) // 2]
                column = layer.relative_columns[
                    j % width - i % width + len(layer.relative_columns) // 2]
                key = k[:, :, j] + row + column
                logits.append((q[:, :, i] * key).sum(1) / math.sqrt(len(row)))
        logits = torch.stack(logits, 1).view(len(x), height * width, -1).exp()
        heads.append(
            torch.einsum('bij,bcj->bci', logits / logits.sum(2, keepdim=True),
                         v))
    attended = torch.cat(heads, 1).view(len(x), -1, height, width)
    attended = pointwise(attended, layer.project.weight, layer.project.bias)
    return torch.cat([conv, attended], 1)


def small_augmented(map_size, stride=1):
    return AugmentedConv2d(
        6,
        12,
        3,
        stride=stride,
        padding=1,
        map_size=map_size,
        num_heads=2,
        key_ratio=0.5,
        value_ratio=0.34,
        min_key_dim=2).double()


@pytest.mark.parametrize('stride, map_size, x_size', [(1, (3, 5), (3, 5)),
                                                      (2, (3, 4), (5, 7)),
                                                      (2, 3, (6, 6))])
def test_augmented_convolution_equals_its_equations(stride, map_size, x_size):
    layer = small_augmented(map_size, stride)
    assert layer.relative_rows.shape[1] == 3  # 0.5 of 12 channels, two heads
    assert layer.project.out_channels == 4  # 0.34 of 12
    x = torch.randn(2, 6, *x_size, dtype=torch.float64, requires_grad=True)
    inputs = [x] + list(layer.parameters())
    result, expected = layer(x), augmented(x, layer, stride)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
    cotangent = torch.randn_like(result)
    for a, b in zip(
            torch.autograd.grad(result, inputs, cotangent),
            torch.autograd.grad(expected, inputs, cotangent)):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_relative_positions_are_interpolated_on_another_map():
    """Twice the map: the offset 2 o has the embedding that o had."""
    layer = small_augmented((3, 3))
    larger = small_augmented((5, 5))
    larger.load_state_dict({
        **layer.state_dict(),
        **{
            name: torch.stack([
                (old[math.floor(o / 2)] + old[math.ceil(o / 2)]) / 2
                for o in range(9)
            ])
            for name, old in layer.named_parameters()
            if name.startswith('relative')
        }
    })
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), larger(x))
    layer(torch.randn(1, 6, 1, 1, dtype=torch.float64))  # the smallest map


# --- how they run -------------------------------------------------------------


def layers():
    for system in SYSTEMS:
        yield system, built(system)
    yield 'AugmentedConv2d', randomised(
        AugmentedConv2d(64, 64, 3, padding=1, map_size=7))


@pytest.mark.parametrize('system, layer', layers())
def test_bfloat16_autocast_is_near_and_learns(system, layer):
    layer = copy.deepcopy(layer)
    for parameter in layer.parameters():
        parameter.data /= 4
    x = torch.randn(4, 64, 5, 7)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = layer(x)
        result.float().square().mean().backward()
    expected = layer(x)
    assert (result - expected).norm() < 0.03 * expected.norm()
    assert all(p.grad is not None and p.grad.isfinite().all()
               for p in layer.parameters())


@pytest.mark.parametrize('system, layer', layers())
def test_one_sample_trains(system, layer):
    layer = copy.deepcopy(layer).train()
    x = torch.randn(1, 64, 3, 5, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()


@pytest.mark.parametrize('system, layer', layers())
@pytest.mark.parametrize('shape', [(0, 64, 3, 5), (1, 64, 1, 1)])
def test_no_picture_and_one_number_per_channel(system, layer, shape):
    """A network with frozen norms trains on both."""
    if type(layer).__module__.startswith('mmcv.') and not shape[0]:
        pytest.skip("mmcv's modules take no batch without a picture")
    layer = copy.deepcopy(layer).train()
    before = {n: b.clone() for n, b in layer.named_buffers()
              if b.is_floating_point()}
    x = torch.randn(shape, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape and x.grad.isfinite().all()
    for name, buffer in layer.named_buffers():
        if name in before:
            torch.testing.assert_close(buffer, before[name])


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('system', ['BAMAttention', 'CBAMAttention',
                                    'ECAAttention'])
def test_systems_are_traced(system, train):
    layer, x = built(system).train(train), torch.randn(2, 64, 3, 5)
    graph = fx.symbolic_trace(copy.deepcopy(layer))
    torch.testing.assert_close(graph(x), layer(x))


def test_bam_normalises_one_sample_by_the_running_statistics():
    layer = built('BAMAttention').train()
    norm = layer.channel[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    before = copy.deepcopy(norm.state_dict())
    pooled = torch.randn(1, 4)
    expected = copy.deepcopy(norm).eval()(pooled)
    torch.testing.assert_close(norm(pooled), expected)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name
    norm(torch.randn(2, 4))  # two samples have statistics
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
def test_both_hosts_find_them(scope):
    with DefaultScope.overwrite_default_scope(scope), \
            MODELS.switch_scope_and_registry(None) as registry:
        for system in (*SYSTEMS, 'AugmentedConv2d'):
            assert registry.get(system) is not None, system


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm.layers', None)
    with pytest.raises(UsageError, match='pip install timm'):
        built('SEAttention')


@pytest.mark.parametrize(
    'system', ['SEAttention', 'CBAMAttention', 'BAMAttention',
               'DoubleAttention'])
def test_a_reduction_that_leaves_no_channel(system):
    with pytest.raises(UsageError, match='reduction=65 leaves no channel of 64'):
        build_plugin_layer(dict(type=system, reduction=65), in_channels=64)


def test_augmented_convolution_must_leave_channels_and_has_no_groups():
    with pytest.raises(UsageError, match='leaves none to the convolution'):
        AugmentedConv2d(8, 8, 3, padding=1, map_size=7)
    with pytest.raises(UsageError, match='32 groups'):
        AugmentedConv2d(64, 64, 3, padding=1, groups=32, map_size=7)


# --- in the blocks of a host --------------------------------------------------


def plugged(net, *plugins, reader='drop_path'):
    """Put plugins into all stages of a host's network."""
    check_plugins(plugins, len(net.res_layers))
    for i, name in enumerate(net.res_layers):
        apply_plugins(getattr(net, name), plugins, i, reader)
    return net


def plugin(system, position='after_conv3', **where):
    return dict(cfg=config(system), position=position, **where)


BLOCKS = dict(
    basic=(mmpretrain_resnet.BasicBlock, dict(expansion=1), 'drop_path'),
    bottleneck=(mmpretrain_resnet.Bottleneck, {}, 'drop_path'),
    resnext=(mmpretrain_resnext.Bottleneck,
             dict(groups=4, width_per_group=16), 'drop_path'),
    se=(mmpretrain_seresnet.SEBottleneck, {}, 'se_layer'))


def block_of(kind, with_cp=False):
    """A block of mmpretrain, in a stage of one, and who reads its last norm."""
    block_type, arguments, reader = BLOCKS[kind]
    block = block_type(256, 256, with_cp=with_cp, **arguments)
    return nn.Sequential(randomised(block)), reader


def written_out(block, x, plugins):
    """A block's forward with plugins by position, without any hook."""
    out, last = x, 3 if hasattr(block, 'conv3') else 2
    for i in range(1, last + 1):
        conv, norm = getattr(block, f'conv{i}'), getattr(block, f'norm{i}')
        out = F.conv2d(out, conv.weight, None, conv.stride, conv.padding,
                       conv.dilation, conv.groups)
        out = normalised(out, norm.weight, norm.bias)
        if i < last:
            out = torch.relu(out)
        for layer in plugins.get(f'after_conv{i}', ()):
            out = layer(out)
    if hasattr(block, 'se_layer'):
        out = block.se_layer.forward(out)  # without its hooks
    return torch.relu(out + x)


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('kind', BLOCKS)
def test_runs_where_the_position_says(kind, with_cp):
    stage, reader = block_of(kind, with_cp)
    names = [name for name, _ in stage.named_parameters()]
    positions = ['after_conv1', 'after_conv2', 'after_conv3']
    if kind == 'basic':
        positions.pop()
    plugins = [plugin('SEAttention', p) for p in positions]
    for i, entry in enumerate(plugins):
        entry['cfg']['postfix'] = i + 1
    # Two at one position run in the order of the list.
    plugins.append(plugin('BAMAttention', positions[-1]))
    apply_plugins(stage, plugins, 0, reader)
    (block, ) = randomised(stage)
    expected = {
        p: [getattr(block, f'se_attention{i + 1}')]
        for i, p in enumerate(positions)
    }
    expected[positions[-1]].append(block.bam_attention)
    assert [n for n, _ in stage.named_parameters()][:len(names)] == names

    x = torch.randn(2, 256, 5, 7, requires_grad=True)
    inputs = [x] + list(stage.parameters())
    result = stage(x)
    reference = written_out(block, x, expected)
    torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(reference.square().mean(), inputs)
    result.square().mean().backward()
    for tensor, gradient in zip(inputs, gradients):
        torch.testing.assert_close(
            tensor.grad, gradient, rtol=1e-3, atol=1e-4)


def small(net=ResNet, **kwargs):
    return net(
        depth=50,
        base_channels=16,
        stem_channels=16,
        out_indices=(3, ),
        **kwargs)


NL_IN_ONE_BLOCK = plugin(
    'NonLocal2d', stages=(False, False, True, False), blocks=(4, ))
ALL = [plugin('SEAttention', stages=(False, True, True, True)), NL_IN_ONE_BLOCK]


def test_stages_and_blocks_choose():
    names = [n for n, _ in plugged(small(), *ALL).named_modules()]
    found = {n.rpartition('.')[0] for n in names if n.endswith('se_attention')}
    assert found == {
        f'layer{s + 2}.{b}' for s, n in enumerate((4, 6, 3)) for b in range(n)
    }
    assert [n for n in names if n.endswith('nonlocal_block')] == [
        'layer3.4.nonlocal_block'
    ]


def test_plain_weights_load():
    plain, net = small(), plugged(small(), *ALL)
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing and all('se_attention' in name or 'nonlocal_block' in name
                           for name in missing)


@torch.no_grad()
def trained_looking(net):
    """In evaluation, with weights nowhere zero and statistics of data."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1)
            module.momentum = 1.
    net.train()
    net(torch.randn(8, 3, 32, 32))
    net.eval()
    return net


@torch.no_grad()
def outputs(net, x):
    return net(x)[-1]


@pytest.fixture
def net():
    """Six blocks of a ResNet, with all systems among them."""
    per_stage = (SYSTEMS[:2], SYSTEMS[2:5], SYSTEMS[5:])
    plugins = [
        plugin(system, stages=[i == stage for i in range(3)])
        for stage, systems in enumerate(per_stage) for system in systems
    ]
    augmented = dict(
        cfg=dict(type='AugmentedConv2d', map_size=8, num_heads=4),
        position='conv2',
        stages=(False, False, True),
        blocks=(1, ))
    return trained_looking(
        plugged(ELAResNet_CIFAR(20, attention=None), *plugins, augmented))


def test_survives_exchanged_norms(net):
    """Fused into convolutions, or synchronised: the plugins still run."""
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = outputs(net.double(), x)
    fused = fuse_conv_bn(copy.deepcopy(net))
    assert isinstance(fused.layer1[0].bn3, nn.Identity)
    torch.testing.assert_close(outputs(fused, x), expected)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    assert isinstance(synchronised.layer1[0].bn3, nn.SyncBatchNorm)
    if TORCH_2_1:  # before, what is converted is in training mode
        torch.testing.assert_close(outputs(synchronised, x), expected)


def test_copies_run_their_own_plugins(net):
    x = torch.randn(2, 3, 32, 32)
    expected = outputs(net, x)
    for clone in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(outputs(clone, x), expected)
        for module in clone.modules():
            if hasattr(module, 'se_attention'):
                nn.init.ones_(module.se_attention.timm.fc2.weight)
        assert not torch.allclose(outputs(clone, x), expected)
    assert torch.equal(outputs(net, x), expected)


def test_threads_do_not_disturb_each_other(net):
    batches = torch.randn(8, 1, 3, 32, 32)
    expected = [outputs(net, x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: outputs(net, x), batches))
    for result, reference in zip(results, expected):
        torch.testing.assert_close(result, reference)


def test_onnx_equals(net, tmp_path):
    pytest.importorskip('onnxruntime')
    file = tmp_path / 'net.onnx'
    assert export_onnx(net, ['feature_3'], str(file), (32, 32)) <= 1e-4
    assert file.exists()


# --- MMDetection's own plugins --------------------------------------------------


@pytest.mark.parametrize('net_type', ['ResNet', 'ResNeXt', 'ResNeSt'])
def test_mmdet_runs_them_as_its_own(net_type):
    """The same network as from the host's option, and blocks besides."""
    net_type = getattr(mmdet_backbones, net_type)
    plugins = [
        plugin('SEAttention', 'after_conv1'),
        plugin('CBAMAttention', 'after_conv2'),
        plugin('BAMAttention', stages=(False, True, True, True)),
        plugin('DoubleAttention')
    ]
    own = trained_looking(
        small(net_type, plugins=plugins, norm_eval=False))
    net = plugged(small(net_type), *plugins, reader=None)
    assert list(net.state_dict()) == list(own.state_dict())
    net.load_state_dict(own.state_dict())
    net.eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(outputs(net, x), outputs(own, x))
    plugged(net, NL_IN_ONE_BLOCK, reader=None)
    assert [n for n, _ in net.named_modules() if n.endswith('nonlocal_block')
            ] == ['layer3.4.nonlocal_block']
    nn.init.ones_(net.layer3[4].nonlocal_block.conv_out.conv.bias)
    assert not torch.equal(outputs(net, x), outputs(own, x))


def test_zeros_that_a_plugin_starts_with_stay():
    """The host fills every convolution, ContextBlock's last one too."""
    context, nonlocal_ = plugin('ContextBlock'), plugin('NonLocal2d')
    for net in (plugged(small(), context, nonlocal_),
                plugged(small(mmdet_backbones.ResNet), context, nonlocal_,
                        reader=None)):
        net.init_weights()
        for name in net.res_layers:
            init_plugins(getattr(net, name))
        for stage in (net.layer1, net.layer4):
            block = stage[-1]
            assert not block.context_block.channel_add_conv[-1].weight.any()
            assert not block.nonlocal_block.conv_out.conv.weight.any()
            assert block.conv1.weight.any()


# --- what users get wrong -------------------------------------------------------


@pytest.mark.parametrize('wrong, message', [
    (dict(cfg=dict(type='SEAttention'), position='after_norm3'),
     "position 'after_norm3': expected one of .*after_conv3"),
    (dict(cfg=dict(type='SEAttention')), 'position None'),
    (plugin('SEAttention', block=(1, )), "key 'block': .*blocks"),
    (plugin('SEAttention', stages=(True, )), 'stages=.* expected 4'),
    (plugin('SqueezeAttention'), "type 'SqueezeAttention' .*SEAttention.*Non"),
    (plugin('AAConv', 'conv2'), "type 'AAConv' .*AugmentedConv2d"),
    (dict(position='after_conv3'), 'type None'),
])
def test_malformed_plugins(wrong, message):
    with pytest.raises(UsageError, match=message):
        check_plugins([wrong], 4)


@pytest.mark.parametrize('net, wrong, reader, message', [
    ('cls50', plugin('SEAttention', blocks=(5, )), 'drop_path',
     'blocks=.*stage 1 has blocks 0 to 2'),
    ('cls18', plugin('SEAttention'), 'drop_path',
     "after_conv3.* BasicBlock .*'after_conv1', 'after_conv2'"),
    ('det18', plugin('SEAttention', 'after_conv2'), None,
     r"after_conv2.* BasicBlock .*\('after_conv1',\)"),
    ('cls50', dict(cfg=dict(type='ContextBlock', ratio=1 / 128),
                   position='after_conv3'), 'drop_path',
     'leaves no channel of 64'),
    ('cls50', plugin('AugmentedConv2d', 'conv2'), 'drop_path', 'map_size'),
])
def test_plugins_that_a_stage_cannot_have(net, wrong, reader, message):
    family = ResNet if net.startswith('cls') else mmdet_backbones.ResNet
    backbone = family(int(net[3:]), base_channels=16, stem_channels=16)
    error = TypeError if message == 'map_size' else UsageError
    with pytest.raises(error, match=message):
        plugged(backbone, wrong, reader=reader)


def test_one_name_twice():
    with pytest.raises(UsageError, match='postfix'):
        plugged(small(), plugin('ECAAttention'), plugin('ECAAttention'))


def test_conv2_is_exchanged_only_where_there_is_one():
    augmented = dict(
        cfg=dict(type='AugmentedConv2d', map_size=7), position='conv2')
    net = plugged(small(mmdet_backbones.ResNet), plugin(
        'SEAttention', 'after_conv1'), augmented, reader=None)
    assert isinstance(net.layer2[0].conv2, AugmentedConv2d)
    assert net.layer2[0].conv2.conv.bias is None
    # A plugin before it, named first, still runs where hooks run it.
    net = plugged(small(), plugin('SEAttention', 'after_conv1'), augmented)
    block, x = net.layer2[1], torch.randn(2, 128, 4, 4)
    before = block(x)
    block.se_attention = nn.Identity()
    assert not torch.equal(block(x), before)
    with pytest.raises(UsageError, match='no plain second convolution'):
        plugged(small(mmdet_backbones.ResNeSt), augmented, reader=None)


# --- parameters -----------------------------------------------------------------


def millions(module, trainable=False):
    return sum(p.numel() for p in module.parameters()
               if p.requires_grad or not trainable) / 1e6


# ResNet-20, -56 and -110 with a classifier of 10 classes, and what table 1 of
# the ELA paper prints for it.
CIFAR = {
    None: ((0.2204, 0.5913, 1.1477), ('0.22', '0.59', '1.15')),
    'SEAttention': ((0.2419, 0.6558, 1.2768), ('0.24', '0.66', '1.28')),
    'ECAAttention': ((0.2204, 0.5914, 1.1479), ('0.22', '0.59', '1.15')),
    'CBAMAttention': ((0.2425, 0.6576, 1.2803), ('0.24', '0.66', '1.28')),
    'BAMAttention': ((0.2664, 0.7293, 1.4236), ('0.27', '0.73', '1.42')),
}


@pytest.mark.parametrize('system', CIFAR)
@pytest.mark.parametrize('column, depth', enumerate((20, 56, 110)))
def test_parameters_of_table_1(system, column, depth):
    counted, printed = (values[column] for values in CIFAR[system])
    net = ELAResNet_CIFAR(depth, attention=None)
    if system:
        plugged(net, plugin(system))
    total = millions(net) + millions(nn.Linear(256, 10))
    assert total == pytest.approx(counted, abs=1e-4)
    assert f'{total:.2f}' == printed


LATER = (False, True, True, True)
NL_IN_STAGE_3 = dict(NL_IN_ONE_BLOCK)
AA = [
    dict(
        cfg=dict(type='AugmentedConv2d', map_size=size),
        position='conv2',
        stages=[i == stage for i in range(4)])
    for stage, size in ((1, 28), (2, 14), (3, 7))
]
# ResNet-50 and -101 with a classifier of 1000 classes. DoubleAttention's paper
# prints 33.0, AugmentedConv2d's 25.8 and 45.4.
IMAGENET = dict(
    plain=([], 25.557, 44.549),
    SEAttention=([plugin('SEAttention')], 28.072, 49.292),
    ECAAttention=([plugin('ECAAttention')], 25.557, 44.549),
    CBAMAttention=([plugin('CBAMAttention')], 28.074, 49.296),
    ContextBlock=([plugin('ContextBlock', stages=LATER)], 28.079, 49.337),
    DoubleAttention=([
        plugin('DoubleAttention', stages=(False, True, True, False))
    ], 32.911, 69.8),
    AugmentedConv2d=(AA, 25.814, 45.391))


@pytest.mark.parametrize('name', IMAGENET)
def test_parameters_of_table_2(name):
    plugins, *expected = IMAGENET[name]
    head = millions(nn.Linear(2048, 1000))
    for depth, millions_expected in zip((50, 101), expected):
        net = plugged(ResNet(depth), *plugins)
        assert millions(net) + head == pytest.approx(
            millions_expected, abs=6e-4 if name != 'DoubleAttention' else 0.06)


# What Faster and Mask R-CNN have beside the backbone, whatever its depth.
FASTER, MASK = 18.245, 20.888
# Trainable parameters with frozen_stages=1; of the last two, all parameters.
COCO = dict(
    plain=([], [], (41.528, 60.520, 44.171, 63.163)),
    SEAttention=([plugin('SEAttention')], [plugin('SEAttention')],
                 (44.018, 65.238, 46.661, 67.882)),
    ECAAttention=([plugin('ECAAttention')], [plugin('ECAAttention')],
                  (41.528, 60.520, 44.171, 63.163)),
    NonLocal2d=([NL_IN_STAGE_3], [
        plugin('NonLocal2d', stages=(False, False, True, False), blocks=(21, ))
    ], (None, None, 46.496, 65.488)),
    ContextBlock=([plugin('ContextBlock', stages=LATER)], [
        dict(
            cfg=dict(type='ContextBlock', ratio=1 / 4),
            position='after_conv3',
            stages=LATER)
    ], (None, None, 46.918, 82.350)))


@pytest.mark.parametrize('name', COCO)
def test_parameters_of_table_5(name):
    *plugins, expected = COCO[name]
    trainable = name not in ('NonLocal2d', 'ContextBlock')
    for i, (depth, chosen) in enumerate(zip((50, 101), plugins)):
        net = mmdet_backbones.ResNet(depth)
        plugged(net, *chosen, reader=None)
        net.frozen_stages = 1
        net.train()
        backbone = millions(net, trainable)
        for rest, value in ((FASTER, expected[i]), (MASK, expected[2 + i])):
            if value is not None:
                assert backbone + rest == pytest.approx(value, abs=1e-3)
