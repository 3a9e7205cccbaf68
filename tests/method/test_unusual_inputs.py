"""Batches, transforms and devices that a plain network takes."""
import copy
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from support.toy import small_network
from support.versions import needs_torch_2_1
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ela_mm import LayerAttention, LayerMemory
from ela_mm.hosts.mmdet import ELAResNet
from ela_mm.models.backbones.stages import ATTENTION, AttentionStage
from ela_mm.models.layers.bank import batch_norm, without_bank
from ela_mm.pruning import KLStatistics, layer_kl

KINDS = [*ATTENTION, None]


def network(attention='base', **options):
    options = {'base_channels': 16, 'norm_eval': False, **options}
    if attention is not None and 'head_dim' in ATTENTION[attention].options:
        options.setdefault('head_dim', 16)
    depth = 50 if attention in ('dia', 'rla', 'rla-concat') else 18
    net = ELAResNet(depth, attention=attention, **options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


def loss_of(outs):
    return sum(out.square().mean() for out in outs)


@pytest.mark.parametrize('attention', ['base', 'light', 'rla'])
def test_norms_that_divide_by_the_bare_deviation(attention):
    """NAS-FCOS's eps=0 is of pretrained norms; attention's own are fresh."""
    net = network(attention, norm_cfg=dict(type='BN', eps=0), norm_eval=True)
    net.train()
    outs = net(torch.zeros(2, 3, 32, 32))  # of one value, so without deviation
    assert all(out.isfinite().all() for out in outs)
    assert net.bn1.eps == 0


# --- no picture, one number -----------------------------------------------------


@pytest.mark.parametrize('norm_cfg', [
    dict(type='BN'), dict(type='GN', num_groups=4)], ids=['BN', 'GN'])
@pytest.mark.parametrize('norm_eval', [False, True])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('attention', KINDS)
def test_a_batch_of_no_picture(attention, training, norm_eval, norm_cfg):
    """As a detector's step has without a picture of its kind."""
    net = network(attention, norm_eval=norm_eval, norm_cfg=norm_cfg)
    net.train(training)
    if attention == 'base':
        net.skip_layers(['layer2.0'], 'retrieval')
        net.observe(lambda name, prev, curr: None)
    before = copy.deepcopy(net.state_dict())
    outs = net(torch.zeros(0, 3, 64, 64))
    sum(out.sum() for out in outs).backward()
    assert [len(out) for out in outs] == [0, 0, 0, 0]
    for name, value in net.state_dict().items():
        if 'num_batches_tracked' not in name:
            assert torch.equal(value, before[name]), name
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())
    # Pictures come again.
    loss_of(net(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters()
               if p.grad is not None)


@pytest.fixture
def said():
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    batch_norm._say_single.cache_clear()
    yield records
    logger.removeHandler(handler)


@pytest.mark.parametrize('attention', ['base', 'light'])
def test_one_number_per_channel_is_said_once(attention, said):
    """One small picture under norm_eval=True, where attention is fresh."""
    net = network(attention, norm_eval=True)
    net.train()
    norms = [m for n, m in net.named_modules() if n.endswith('.norm')]
    before = [norm.running_var.clone() for norm in norms]
    assert all(norm.training for norm in norms)
    for _ in range(3):
        loss_of(net(torch.randn(1, 3, 32, 32))).backward()
    assert all(norm.training for norm in norms)
    text, = said
    assert '(1, 128, 1, 1) has one number per channel' in text
    # Those of stages with larger maps have learned.
    changed = [not torch.equal(norm.running_var, old)
               for norm, old in zip(norms, before)]
    assert changed == [True] * 6 + [False] * 2


@pytest.mark.parametrize('watched', [False, True])
@pytest.mark.parametrize('attention', ['base', 'light'])
def test_one_number_per_channel_is_normalised_as_in_evaluation(
        attention, watched):
    net = network(attention, norm_eval=True).double()
    norm = net.layer4.attention[1].norm
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    nn.init.normal_(norm.running_mean)
    x = torch.randn(1, 3, 32, 32).double()
    net.train()
    net.layer4.eval()
    with torch.no_grad():
        expected = net.layer4(torch.ones(1, 64, 2, 2).double())
    net.train()
    calls = []
    if watched:
        norm.register_forward_hook(lambda *args: calls.append(args))
    out = net.layer4(torch.ones(1, 64, 2, 2).double())
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert norm.weight.grad.any() and norm.training
    assert len(calls) == watched
    assert net(x)[-1].isfinite().all()


@pytest.mark.skipif(not hasattr(torch, 'compiler'), reason='torch 2.0')
def test_one_number_per_channel_compiles(said):
    net = network('base', norm_eval=True).train()
    expected = copy.deepcopy(net)
    x = torch.ones(1, 64, 2, 2)
    torch._dynamo.reset()
    compiled = torch.compile(net.layer4, backend='aot_eager')
    torch.testing.assert_close(compiled(x), expected.layer4(x))
    torch._dynamo.reset()


# --- function transforms ----------------------------------------------------------


def functional(net):
    parameters = {n: p.detach() for n, p in net.named_parameters()
                  if p.requires_grad}

    def run(parameters, x):
        return torch.func.functional_call(net, parameters, (x, ))[-1]

    return run, parameters


def evaluated(attention):
    net = network(attention).double()
    if attention == 'base':
        net.skip_layers(['layer2.0'], 'retrieval')
        net.skip_layers(['layer3.0'])
    net.eval()
    return net


@pytest.mark.parametrize('attention', KINDS)
def test_functional_call_and_grad(attention):
    net = evaluated(attention)
    run, parameters = functional(net)
    x = torch.randn(2, 3, 64, 64).double()

    def loss(parameters):
        return run(parameters, x).square().mean()

    found = torch.func.grad(loss)(parameters)
    net(x)[-1].square().mean().backward()
    for name, parameter in net.named_parameters():
        if name in parameters:
            expected = parameter.grad
            torch.testing.assert_close(
                found[name], torch.zeros_like(parameter)
                if expected is None else expected,
                msg=lambda m, n=name: f'{n}: {m}')
    assert not any(parameters[n].requires_grad for n in parameters)


@pytest.mark.parametrize('attention', KINDS)
def test_vmap_over_pictures_and_networks(attention):
    net = evaluated(attention)
    run, parameters = functional(net)
    xs = torch.randn(3, 1, 3, 64, 64).double()
    found = torch.vmap(run, in_dims=(None, 0))(parameters, xs)
    for out, x in zip(found, xs):
        torch.testing.assert_close(out, net(x)[-1])
    # Per-sample gradients, as differential privacy needs them.
    gradients = torch.vmap(torch.func.grad(
        lambda p, x: run(p, x).square().mean()), in_dims=(None, 0))(
            parameters, xs)
    for i, x in enumerate(xs):
        net.zero_grad()
        net(x)[-1].square().mean().backward()
        for name in ('layer1.0.conv1.weight', 'layer4.1.conv2.weight'):
            torch.testing.assert_close(
                gradients[name][i], net.get_parameter(name).grad)
    # And an ensemble.
    others = [copy.deepcopy(net) for _ in range(2)]
    for other in others:
        for parameter in other.parameters():
            nn.init.normal_(parameter, std=0.1)
    stacked, _ = torch.func.stack_module_state(others)
    stacked = {n: p.detach() for n, p in stacked.items()}
    outs = torch.vmap(run, in_dims=(0, None))(stacked, xs[0])
    for out, other in zip(outs, others):
        torch.testing.assert_close(out, other(xs[0])[-1])


@pytest.mark.parametrize('attention', KINDS)
def test_forward_mode_and_second_derivatives(attention):
    net = evaluated(attention)
    x, v = torch.randn(2, 1, 3, 64, 64).double()

    def f(x):
        return net(x)[-1]

    _, tangent = torch.func.jvp(f, (x, ), (v, ))
    step = 1e-6
    difference = (f(x + step * v) - f(x - step * v)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-3, atol=1e-6)
    with torch.autograd.forward_ad.dual_level():
        dual = f(torch.autograd.forward_ad.make_dual(x, v))
        torch.testing.assert_close(
            torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)

    def directional(x):
        return torch.func.jvp(lambda x: f(x).square().sum(), (x, ), (v, ))[1]

    slope = torch.func.grad(directional)(x)  # of the Hessian
    gradient = torch.func.grad(lambda x: f(x).square().sum())
    difference = (gradient(x + step * v) - gradient(x - step * v)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-3, atol=1e-5)


def test_second_derivatives_in_eager_mode_are_refused_not_wrong():
    net = evaluated('base')
    x = torch.randn(1, 3, 64, 64).double().requires_grad_()
    gradient, = torch.autograd.grad(
        net(x)[-1].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.square().sum().backward()
    with without_bank():
        gradient, = torch.autograd.grad(
            net(x)[-1].sum(), x, create_graph=True)
        gradient.square().sum().backward()
    assert x.grad.any()


# --- devices -------------------------------------------------------------------------


@needs_torch_2_1
@pytest.mark.parametrize('norm_eval', [False, True])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('attention', KINDS)
def test_the_meta_device(attention, training, norm_eval):
    """Shapes of a network without its numbers, and loaded afterwards."""
    options = dict(norm_eval=norm_eval)
    with torch.device('meta'):
        net = network(attention, **options)
    net.train(training)
    outs = net(torch.empty(2, 3, 64, 64, device='meta'))
    loss_of(outs).backward()
    assert [out.shape[2] for out in outs] == [16, 8, 4, 2]
    source = network(attention, **options)
    if attention == 'base':
        source.skip_layers(['layer3.0'])
    net.load_state_dict(source.state_dict(), assign=True)
    if attention == 'base':
        assert not net.layer3.active[0]
    net.train()
    net.eval()
    source.eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(net(x), source(x)):
            assert torch.equal(a, b)


class WithoutFloat64(TorchDispatchMode):
    """A device, such as Apple's MPS, that has no float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        leaves = out if isinstance(out, (tuple, list)) else [out]
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64
               for leaf in leaves):
            raise TypeError(f'{func} made a float64 tensor')
        return out


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('plain', [False, True])
@pytest.mark.parametrize('attention', ['base', 'light'])
def test_a_device_without_float64(attention, plain, dtype):
    """Nothing of attention asks for it, forward or backward."""
    net = network(attention, norm_eval=True, with_cp=attention == 'base')
    net.to(dtype).train()
    seen = []
    net.observe(lambda name, prev, curr: seen.append((prev, curr)))
    x = torch.randn(2, 3, 64, 64).to(dtype)
    with WithoutFloat64():
        if plain:
            with without_bank():
                loss_of(net(x)).backward()
        else:
            loss_of(net(x)).backward()
    assert len(seen) == (4 if attention == 'base' else 0)
    with pytest.raises(TypeError, match='float64'), WithoutFloat64():
        x.double()  # the device is one


def test_a_window_on_a_device_without_float64(monkeypatch):
    """KLStatistics falls back to float32 there, and finds the same."""
    net = small_network()
    xs = torch.randn(3, 2, 3, 64, 64)
    expected, found = KLStatistics(), KLStatistics()
    net.observe(expected.update)
    for x in xs:
        net(x)
    monkeypatch.setattr(layer_kl, '_widest', lambda device: torch.float32)
    net.observe(found.update)
    with WithoutFloat64():
        for x in xs:
            net(x)
    names = [f'layer{i}.1' for i in (1, 2, 3, 4)]
    ours, theirs = found.reduce(names), expected.reduce(names)
    for name in names:
        assert ours[name].samples == theirs[name].samples == 6
        assert ours[name].series == pytest.approx(
            theirs[name].series, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize('options', [
    dict(), dict(attention='light'), dict(with_cp=True),
    dict(norm_cfg=dict(type='GN', num_groups=4), with_cp=True)],
    ids=['base', 'light', 'with_cp', 'GN'])
@pytest.mark.parametrize('training', [False, True])
@needs_torch_2_1
def test_a_pretended_cuda_device(options, training):
    """No tensor of attention is on the CPU, and none is read back, nor by the
    statistics of a window."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    net = network(**options)
    net.train(training)
    if options.get('attention') != 'light':
        net.skip_layers(['layer2.0'], 'retrieval')
        net.skip_layers(['layer3.0'])
    seen, statistics = [], KLStatistics()

    def observe(name, prev, curr):
        seen.append((prev, curr))
        statistics.update(name, prev, curr)

    net.observe(observe)
    net.to('meta')
    with FakeTensorMode(allow_non_fake_inputs=True):
        net.to_empty(device='cuda')
        x = torch.empty(2, 3, 64, 64, device='cuda')
        for mode in (torch.enable_grad, torch.no_grad):
            with mode():
                outs = net(x)
            assert all(out.device.type == 'cuda' for out in outs)
    assert all(w.device.type == 'cuda' for pair in seen for w in pair)


@needs_torch_2_1
def test_an_attention_layer_alone_on_the_meta_device():
    layer = LayerAttention(32).to('meta')
    for capacity in (2, None):
        memory = LayerMemory(capacity)
        for _ in range(2):
            term = layer(torch.empty(2, 32, 4, 4, device='meta'), memory)
        assert term.shape == (2, 32, 4, 4)
        assert memory.weights.shape == (2, 2, 2)


def test_a_stage_of_one_layer():
    stage = AttentionStage('layer1', nn.Sequential(nn.Identity()),
                           [LayerAttention(16, zero_init=True)])
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(stage(x), x)
