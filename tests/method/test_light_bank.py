"""MRLA-light as one function against its equation, in float64."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ela_mm.models.layers import LightLayerAttention
from ela_mm.models.layers.bank import without_bank


def layer_of(heads=2, head_dim=4, **options):
    layer = LightLayerAttention(heads * head_dim, head_dim, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.7)
    for buffer in layer.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5)
    return layer


def noise(layer, batch=2, side=5):
    return torch.randn(2, batch, len(layer.mix), side, side,
                       dtype=torch.float64).unbind()


def equation(layer, x, identity):
    """x + scale * norm(gate v + mix identity), statistics left alone."""
    batch, channels = x.shape[:2]
    size = layer.key.weight.shape[-1]
    heads = (batch, layer.num_heads, layer.head_dim)
    pooled = F.adaptive_avg_pool2d(x, 1).view(batch, 1, channels)
    query, key = (
        F.conv1d(pooled, conv.weight, padding=size // 2).view(heads)
        for conv in (layer.query, layer.key))
    gate = 1 / (1 + (-torch.einsum('bhd,bhd->bh', query, key) /
                     math.sqrt(layer.head_dim)).exp())
    value = F.conv2d(x, layer.value.weight, padding=1, groups=channels)
    out = torch.einsum('bh,bhdyx->bhdyx', gate,
                       value.view(*heads, *x.shape[2:])).reshape(x.shape)
    out = out + torch.einsum('c,bcyx->bcyx', layer.mix, identity)
    norm = layer.norm
    mean, var = (
        (out.mean((0, 2, 3)), out.var((0, 2, 3), correction=0))
        if norm.training else (norm.running_mean, norm.running_var))

    def wide(v):
        return v.view(1, -1, 1, 1)

    out = (out - wide(mean)) / (wide(var) + norm.eps).sqrt()
    out = out * wide(norm.weight) + wide(norm.bias)
    if layer.scale is not None:
        out = out * wide(layer.scale.weight)
    return x + out


def gradients(run, tensors, cotangent, **options):
    out = run()
    return out, torch.autograd.grad(
        out, [t for t in tensors if t.requires_grad], cotangent, **options)


def assert_like_equation(layer, x, identity):
    tensors = [x, identity, *layer.parameters()]
    cotangent = torch.randn_like(x)
    expected, wanted = gradients(
        lambda: equation(layer, x, identity), tensors, cotangent)
    out, found = gradients(
        lambda: layer.add_to(x, identity), tensors, cotangent)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 3),
       heads=st.sampled_from([1, 3]),
       head_dim=st.sampled_from([1, 4]),
       side=st.integers(2, 6),
       zero_init=st.booleans(),
       training=st.booleans(),
       channels_last=st.booleans())
def test_a_layer_matches_the_equation(batch, heads, head_dim, side, zero_init,
                                      training, channels_last):
    torch.manual_seed(0)
    layer = layer_of(heads, head_dim, zero_init=zero_init).train(training)
    x, identity = noise(layer, batch, side)
    if channels_last:
        layer = layer.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    assert layer.can_bank()
    before = copy.deepcopy(layer)
    assert_like_equation(layer, x.requires_grad_(), identity.requires_grad_())
    with without_bank():
        before.add_to(x, identity)
    for ours, theirs in zip(layer.buffers(), before.buffers()):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('part', ['query', 'key', 'value', 'norm', 'scale',
                                  'mix', 'x', 'identity', 'both'])
def test_parts_without_gradients(part):
    layer = layer_of(zero_init=True)
    x, identity = noise(layer)
    x.requires_grad_(part not in ('x', 'both'))
    identity.requires_grad_(part not in ('identity', 'both'))
    if hasattr(layer, part):
        getattr(layer, part).requires_grad_(False)
    assert_like_equation(layer, x, identity)


def test_backward_twice():
    layer = layer_of()
    x, identity = (t.requires_grad_() for t in noise(layer))
    out = layer.add_to(x, identity)
    first, second = (
        torch.autograd.grad(out.square().sum(), [x, identity, layer.mix],
                            retain_graph=True) for _ in range(2))
    for a, b in zip(first, second):
        assert torch.equal(a, b)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_half_precision(dtype, autocast):
    """As close to float64 as the modules, in the same dtypes."""
    torch.manual_seed(0)
    exact = LightLayerAttention(32).double()
    nn.init.normal_(exact.key.weight)
    x, identity = noise(exact, 4, 8)
    layers = [copy.deepcopy(exact).to(dtype) for _ in range(2)]
    cotangent = torch.randn_like(x)
    results = []
    for layer, plain in zip((exact, *layers), (False, False, True)):
        own = layer.mix.dtype
        pair = [t.detach().to(own, copy=True).requires_grad_()
                for t in (x, identity)]
        with torch.autocast('cpu', torch.bfloat16, enabled=(
                autocast and own != torch.float64)):
            if plain:
                with without_bank():
                    out = layer.add_to(*pair)
            else:
                out = layer.add_to(*pair)
        out.backward(cotangent.to(out.dtype))
        results.append([out, *(t.grad for t in pair),
                        *(p.grad for p in layer.parameters())])
    for wide, ours, theirs in zip(*results):
        assert ours.dtype == theirs.dtype
        errors = [(t.double() - wide).norm() / wide.norm()
                  for t in (ours, theirs)]
        assert errors[0] < 1.5 * errors[1] + 1e-5


def test_a_watched_or_other_part_is_called():
    for exchange in (
            lambda layer: layer.mixing.register_forward_hook(lambda *a: None),
            lambda layer: setattr(layer, 'norm', nn.GroupNorm(2, 8).double()),
            lambda layer: setattr(layer, 'drop_path', nn.Dropout(0.))):
        layer = layer_of()
        exchange(layer)
        assert not layer.can_bank()
        x, identity = noise(layer)
        assert torch.equal(layer.add_to(x, identity),
                           x + layer(x, identity))
