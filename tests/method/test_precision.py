"""Half precision and memory formats, before and after a pruning."""
import copy

import pytest
import torch
from support.toy import small_network
from torch import nn

from ela_mm import LayerAttention, LayerMemory
from ela_mm.models.layers import LightLayerAttention


def has_half_convolutions() -> bool:
    try:
        torch.nn.functional.conv2d(*torch.zeros(2, 1, 1, 1, 1).half())
    except RuntimeError:
        return False
    return True


needs_half = pytest.mark.skipif(
    not has_half_convolutions(),
    reason='this torch has no convolution in half precision on CPUs')

PRUNED = ['layer1.1', 'layer3.0', 'layer4.1']


def network():
    """A small network whose norms have seen data and differ."""
    net = small_network()
    with torch.no_grad():
        net(torch.randn(4, 3, 64, 64))
    return net


def step(net, x, **autocast):
    """Outputs and gradients of a training step."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=bool(autocast)):
        outs = net(x)
    sum(out.float().square().mean() if autocast else out.square().mean()
        for out in outs).backward()
    return outs, dict(x=x.grad, **{
        n: p.grad for n, p in net.named_parameters() if p.grad is not None})


def stages_of_pruning(net):
    """The network before, and after each kind of pruning."""
    yield
    net.skip_layers(PRUNED[:1])
    yield
    net.skip_layers(PRUNED, skip='retrieval')
    yield


@pytest.mark.parametrize('training', [True, False])
def test_channels_last(training):
    net = network().double().train(training)
    x = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    for _ in stages_of_pruning(net):
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        outs, gradients = step(copy.deepcopy(net), x)
        # Pictures alone, weights alone (convolutions follow them), both.
        for model, images in (
                (copy.deepcopy(net), x.to(memory_format=torch.channels_last)),
                (copy.deepcopy(last), x),
                (last, x.to(memory_format=torch.channels_last))):
            ours, found = step(model, images)
            for a, b in zip(ours, outs):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
            assert found.keys() == gradients.keys()
            for name, expected in gradients.items():
                torch.testing.assert_close(
                    found[name], expected, rtol=1e-7, atol=1e-9,
                    msg=lambda m, n=name: f'{n}: {m}')
        # The bank keeps the format, so that no layer converts.
        assert ours[0].is_contiguous(memory_format=torch.channels_last)


def assert_rounds(value, expected, name):
    """Equal but for the rounding of bfloat16 in a few dozen operations."""
    error = (value.float() - expected).norm() / expected.norm()
    assert error < 0.05, f'{name}: {error:.3f}'


def test_autocast_training_step():
    net = network()
    x = torch.randn(4, 3, 64, 64)
    for _ in stages_of_pruning(net):
        outs, expected = step(net, x)
        ours, found = step(net, x, autocast=True)
        for i, (a, b) in enumerate(zip(ours, outs)):
            assert_rounds(a, b, f'out {i}')
        assert found.keys() == expected.keys()
        total = [torch.cat([g[n].flatten() for n in expected])
                 for g in (found, expected)]
        assert torch.cosine_similarity(*total, dim=0) > 0.9
        for name, gradient in expected.items():
            assert found[name].dtype == torch.float32
            # Those of queries and keys are small differences.
            if any(part in name for part in ('value', 'norm.', 'scale')):
                similarity = torch.cosine_similarity(
                    found[name].flatten(), gradient.flatten(), dim=0)
                assert similarity > 0.8, f'{name}: {similarity:.3f}'


@pytest.mark.parametrize('norm', ['BN', 'GN'])
def test_autocast_keeps_its_dtype_without_a_bank(norm):
    """The plain sum, which compilers see, gives what the bank gives."""
    layer = LayerAttention(
        16, norm_cfg=dict(type=norm, **(
            dict(num_groups=2) if norm == 'GN' else {})), zero_init=True)
    nn.init.ones_(layer.scale.weight)
    x = torch.randn(2, 16, 4, 4)
    with torch.autocast('cpu', torch.bfloat16):
        bank, plain = (layer(x, LayerMemory(n)) for n in (1, None))
    assert bank.dtype == plain.dtype
    torch.testing.assert_close(bank, plain, rtol=0.02, atol=0.02)


@pytest.mark.parametrize('dtype', [
    torch.bfloat16, pytest.param(torch.half, marks=needs_half)])
def test_half_precision_modules(dtype):
    """Weights and pictures in half, as inference often has them."""
    net = network().eval()
    x = torch.randn(2, 3, 64, 64)
    for _ in stages_of_pruning(net):
        with torch.no_grad():
            outs = net(x)
            halved = copy.deepcopy(net).to(dtype)
            for ours, expected in zip(halved(x.to(dtype)), outs):
                assert ours.dtype == dtype
                assert_rounds(ours, expected, str(dtype))


def test_statistics_in_half_precision_modules():
    """Attention weights stay in float32, whatever computes the network."""
    net = network().eval()
    x = torch.randn(2, 3, 64, 64)
    seen = {}
    for dtype in (torch.float32, torch.bfloat16):
        net.to(dtype).observe(
            lambda name, prev, curr, d=dtype: seen.setdefault(
                name, {}).update({d: curr}))
        with torch.no_grad():
            net(x.to(dtype))
    assert len(seen) == 4
    for weights in seen.values():
        assert all(w.dtype == torch.float32 for w in weights.values())
        torch.testing.assert_close(
            weights[torch.bfloat16], weights[torch.float32], rtol=0,
            atol=0.05)


@pytest.mark.parametrize('capacity', [2, None])
@pytest.mark.parametrize('dtype', [
    torch.bfloat16, pytest.param(torch.half, marks=needs_half)])
def test_attention_weights_of_half_precision_are_float32_ones(dtype, capacity):
    """Bit for bit: nothing rounds to half between pooling and softmax."""
    half = LayerAttention(64).to(dtype)
    half.norm = nn.Identity()  # which has no half precision everywhere
    wide = copy.deepcopy(half).float()
    xs = torch.randn(2, 2, 64, 4, 4).to(dtype)

    def weights(layer, xs):
        memory = LayerMemory(capacity)
        with torch.no_grad():
            for x in xs:
                _, weights = layer.attend(x, memory)
        return weights

    expected = weights(wide, xs.float())
    assert expected.dtype == torch.float32
    assert expected.std() > 0
    assert torch.equal(weights(half, xs), expected)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(weights(half, xs), expected)


@needs_half
@pytest.mark.parametrize('capacity', [2, None])
def test_means_of_large_values_do_not_overflow_half(capacity):
    """A sum over 64 x 64 positions leaves half's range where a mean does not."""
    layer = LayerAttention(16).half().eval()
    means = torch.stack([torch.linspace(40, 10, 16), torch.linspace(10, 40, 16)
                         ]).half()[:, None, :, None, None]
    weights = []
    for side in (64, 2):
        memory = LayerMemory(capacity)
        with torch.no_grad():
            for x in means.expand(2, 1, 16, side, side):
                layer(x, memory)
        weights.append(memory.weights)
    assert weights[1].isfinite().all()
    torch.testing.assert_close(*weights)


# --- half precision modules in training ---------------------------------------


def trained_in(kind, dtype, std, seed, capacity=3):
    """Relative errors of one step in half against the same in float64."""
    torch.manual_seed(seed)
    options = dict(zero_init=True)
    layers = nn.ModuleList(
        LayerAttention(32, **options) if kind == 'base' else
        LightLayerAttention(32, **options) for _ in range(3))
    for name, parameter in layers.named_parameters():
        nn.init.normal_(parameter, std=0.001 if 'query' in name else 0.5)
    layers.to(dtype)
    wide = copy.deepcopy(layers).double()
    shape = (3, 4, 32, 14, 14)
    xs = (std * torch.randn(shape)).to(dtype)
    shortcuts, cotangents = (torch.randn(shape).to(dtype) for _ in range(2))
    results = []
    for net in (layers, wide):
        own = next(net.parameters()).dtype
        memory = LayerMemory(capacity)
        terms = [
            layer(x.to(own), memory if kind == 'base' else std *
                  shortcut.to(own))
            for layer, x, shortcut in zip(net, xs, shortcuts)]
        torch.autograd.backward(terms, list(cotangents.to(own)))
        results.append(dict(
            {n: p.grad for n, p in net.named_parameters()
             if p.grad is not None},
            **{n: b for n, b in net.named_buffers() if 'running' in n},
            term=torch.stack(terms).detach()))
    ours, expected = results
    return {name: ((ours[name].double() - exact).norm() / exact.norm()).item()
            for name, exact in expected.items() if exact.norm()}


@pytest.mark.parametrize('capacity', [3, None])
@pytest.mark.parametrize('kind', ['base', 'light'])
@pytest.mark.parametrize('std', [1, 100, 300])
@needs_half
def test_half_modules_train_on_large_features(kind, std, capacity):
    """The square of a number above 255 is infinite in half precision."""
    errors = trained_in(kind, torch.half, std, 0, capacity)
    assert errors['term'] < 0.001
    for name, error in errors.items():
        # Those of queries and keys are small differences.
        if not any(part in name for part in ('query', 'key')):
            assert error < 0.1, f'{name}: {error}'  # relus that flip


@pytest.mark.parametrize('std', [1, 300])
def test_norms_in_bfloat16_are_as_good_as_the_modules(std):
    """Their gradients, statistics and terms, in the buffers."""
    ours, modules = (
        [trained_in('base', torch.bfloat16, std, seed, capacity)
         for seed in range(6)] for capacity in (3, None))
    for name in ours[0]:
        if 'norm' in name or name in ('term', ) or 'scale' in name:
            a, b = (sum(errors[name] for errors in run) / 6
                    for run in (ours, modules))
            assert a < 1.3 * b + 1e-4, f'{name}: {a}, module {b}'


@pytest.mark.parametrize('dtype', [
    torch.bfloat16, pytest.param(torch.half, marks=needs_half)])
def test_the_gate_of_light_attention_is_that_of_float32(dtype):
    """Bit for bit, also where the product of query and key leaves half's range."""
    half = LightLayerAttention(64).to(dtype)
    wide = copy.deepcopy(half).float()
    for mean in (0, 1, 1000):
        x = (mean + 2 * torch.randn(2, 64, 4, 4)).to(dtype)
        expected = wide._gate(x.float())
        assert expected.dtype == torch.float32
        assert expected.std() > 0 or mean == 1000
        assert torch.equal(half._gate(x), expected)
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(half._gate(x), expected)
            assert torch.equal(wide._gate(x.float()), expected)
        assert half(x, x).dtype == dtype and half(x, x).isfinite().all()
