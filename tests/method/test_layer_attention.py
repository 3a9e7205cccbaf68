"""Layer attention against an independent formulation of equations 4 and 5."""
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.versions import needs_torch_2_1
from torch import nn

from ela_mm import LayerAttention, LayerMemory
from ela_mm.models.layers import LightLayerAttention, retrieve


def concatenating_mrla(layers, xs):
    """MRLA-base as its equations are written: concatenate, then einsum."""
    terms, keys, values = [], [], []
    for layer, x in zip(layers, xs):
        batch, channels = x.shape[:2]
        heads, dim = channels // layer.head_dim, layer.head_dim
        pooled = F.adaptive_avg_pool2d(x, 1).view(batch, 1, channels)
        size = layer.query.weight.shape[-1]
        query = F.conv1d(pooled, layer.query.weight, padding=size // 2)
        key = F.conv1d(pooled, layer.key.weight, padding=size // 2)
        value = F.conv2d(x, layer.value.weight, padding=1, groups=channels)
        keys.append(key.reshape(batch, heads, 1, dim))
        values.append(value.reshape(batch, heads, 1, dim, *x.shape[2:]))
        logits = torch.einsum('bhd,bhnd->bhn',
                              query.reshape(batch, heads, dim),
                              torch.cat(keys, dim=2)) / math.sqrt(dim)
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        out = torch.einsum('bhn,bhndyx->bhdyx', weights,
                           torch.cat(values, dim=2)).reshape(x.shape)
        mean = out.mean((0, 2, 3), keepdim=True)
        var = out.var((0, 2, 3), unbiased=False, keepdim=True)
        out = (out - mean) / torch.sqrt(var + layer.norm.eps)
        out = out * layer.norm.weight.view(1, -1, 1, 1)
        terms.append(torch.relu(out + layer.norm.bias.view(1, -1, 1, 1)))
    return terms


@settings(max_examples=15, deadline=None)
@given(
    depth=st.integers(1, 5),
    batch=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([4, 16]),
    side=st.integers(2, 6))
def test_matches_einsum_in_value_and_gradient(depth, batch, heads, head_dim,
                                              side):
    channels = heads * head_dim
    layers = nn.ModuleList(
        LayerAttention(channels, head_dim) for _ in range(depth)).double()
    for parameter in layers.parameters():
        nn.init.normal_(parameter)
    xs = [
        torch.randn(batch, channels, side, side, dtype=torch.float64)
        for _ in range(depth)
    ]
    cotangents = [torch.randn_like(x) for x in xs]

    def gradients(terms, inputs):
        loss = sum((t * c).sum() for t, c in zip(terms, cotangents))
        # The first query of a stage weighs a single entry: no gradient.
        return torch.autograd.grad(
            loss, inputs + list(layers.parameters()), allow_unused=True)

    memory = LayerMemory()
    ours = [x.clone().requires_grad_() for x in xs]
    theirs = [x.clone().requires_grad_() for x in xs]
    terms = [layer(x, memory) for layer, x in zip(layers, ours)]
    expected = concatenating_mrla(layers, theirs)
    for term, reference in zip(terms, expected):
        torch.testing.assert_close(term, reference, rtol=1e-9, atol=1e-9)
    for a, b in zip(gradients(terms, ours), gradients(expected, theirs)):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


def test_memory_holds_what_later_layers_need():
    memory = LayerMemory()
    layer = LayerAttention(32)
    for n in (1, 2, 3):
        layer(torch.randn(2, 32, 5, 5), memory)
        assert len(memory.keys) == len(memory.values) == n
        assert memory.weights.shape == (2, 2, n)
        torch.testing.assert_close(memory.weights.sum(-1), torch.ones(2, 2))


def test_values_are_shared_not_copied():
    memory = LayerMemory()
    layer = LayerAttention(16)
    layer(torch.randn(1, 16, 4, 4), memory)
    first = memory.values[0]
    layer(torch.randn(1, 16, 4, 4), memory)
    assert memory.values[0] is first


def test_backward_keeps_values_once():
    """Bytes kept for backward grow with T, not with T^2."""

    def bytes_kept(depth):
        weights = torch.rand(1, 1, depth).softmax(-1).requires_grad_()
        values = [
            torch.randn(1, 16, 32, 32, requires_grad=True)
            for _ in range(depth)
        ]
        storages = {}

        def pack(tensor):
            storages[tensor.data_ptr()] = (
                tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            for n in range(1, depth + 1):
                retrieve(weights[..., :n], values[:n])
        return sum(storages.values())

    assert bytes_kept(16) < 2.5 * bytes_kept(8)


def test_weights_stay_float32_under_autocast():
    memory = LayerMemory()
    layer = LayerAttention(16)
    with torch.autocast('cpu', torch.bfloat16):
        for _ in range(2):
            term = layer(torch.randn(1, 16, 4, 4), memory)
    assert memory.values[0].dtype == torch.bfloat16
    assert memory.weights.dtype == torch.float32
    assert term.isfinite().all()


@pytest.mark.parametrize('channels, size', [(64, 3), (128, 5), (256, 5),
                                            (512, 5), (1024, 5), (2048, 7)])
def test_kernel_size_follows_the_channels(channels, size):
    layer = LayerAttention(channels)
    assert layer.query.weight.shape == layer.key.weight.shape == (1, 1, size)


def test_act_false_leaves_the_relu_out():
    x = torch.randn(2, 16, 4, 4)
    assert LayerAttention(16)(x, LayerMemory()).min() == 0
    assert LayerAttention(16, act=False)(x, LayerMemory()).min() < 0


def test_zero_init_is_exactly_zero_and_learns():
    layer = LayerAttention(16, zero_init=True)
    term = layer(torch.randn(2, 16, 4, 4), LayerMemory())
    assert not term.any()
    term.sum().backward()
    assert layer.scale.weight.grad.abs().sum() > 0


def test_drop_path_drops_whole_samples():
    layer = LayerAttention(16, drop_path_rate=0.5).train()
    term = layer(torch.randn(64, 16, 4, 4), LayerMemory())
    dropped = (term.flatten(1) == 0).all(1)
    assert 0 < dropped.sum() < 64
    layer.eval()
    assert not (layer(torch.randn(64, 16, 4, 4), LayerMemory()).flatten(1)
                == 0).all(1).any()


def test_light_attention_matches_its_equation():
    layer = LightLayerAttention(64).double().eval()
    x, identity = torch.randn(2, 2, 64, 5, 5, dtype=torch.float64)
    pooled = x.mean((2, 3))[:, None]
    query = F.conv1d(pooled, layer.query.weight, padding=1).view(2, 2, 32)
    key = F.conv1d(pooled, layer.key.weight, padding=1).view(2, 2, 32)
    gate = torch.sigmoid(
        torch.einsum('bhd,bhd->bh', query, key) / math.sqrt(32))
    value = F.conv2d(x, layer.value.weight, padding=1, groups=64)
    own = (gate[:, :, None, None, None] *
           value.view(2, 2, 32, 5, 5)).view(2, 64, 5, 5)
    expected = layer.norm(own + layer.mix.view(1, 64, 1, 1) * identity)
    torch.testing.assert_close(layer(x, identity), expected)


@pytest.mark.parametrize('cls', [LayerAttention, LightLayerAttention])
@pytest.mark.parametrize('head_dim', [0, 7, 24])
def test_head_dim_must_divide_the_channels(cls, head_dim):
    with pytest.raises(ValueError, match=f'head_dim={head_dim}.*64 channels'):
        cls(64, head_dim)


@needs_torch_2_1
@pytest.mark.parametrize('zero_init', [False, True])
def test_with_cp_checkpoints_norms_that_the_bank_leaves(zero_init):
    """The same values and gradients, and less kept."""

    def run(with_cp):
        torch.manual_seed(0)
        layers = nn.ModuleList(
            LayerAttention(
                32,
                norm_cfg=dict(type='GN', num_groups=4),
                zero_init=zero_init,
                with_cp=with_cp) for _ in range(3)).double()
        for layer in layers if zero_init else ():
            nn.init.normal_(layer.scale.weight)
        x = torch.randn(2, 32, 6, 6, dtype=torch.float64, requires_grad=True)
        memory, out, kept = LayerMemory(capacity=3), x, []

        def pack(tensor):
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            for layer in layers:
                out = out + layer(out, memory)
        storages = {t.untyped_storage().data_ptr(): t for t in kept}
        grads = torch.autograd.grad(
            out.square().sum(), [x, *layers.parameters()], allow_unused=True)
        return out, grads, sum(
            t.untyped_storage().nbytes() for t in storages.values())

    out, grads, kept = run(True)
    expected, references, more = run(False)
    assert torch.equal(out, expected)
    for ours, other in zip(grads, references):
        torch.testing.assert_close(ours, other)
    assert kept < more
