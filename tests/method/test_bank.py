"""The bank of values against the equations as they are written, in float64."""
import copy
import gc
import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.versions import needs_torch_2_1
from torch import nn
from torch.utils.checkpoint import checkpoint

from ela_mm import LayerAttention, LayerMemory
from ela_mm.experiments.benchmark import _Storages
from ela_mm.models.backbones.stages import AttentionStage
from ela_mm.models.layers import LightLayerAttention, traced
from ela_mm.models.layers.bank import batch_norm, values, without_bank
from ela_mm.models.layers.bank.values import GROUP


def stage_of(depth=4, heads=2, head_dim=4, active=None, visible=None,
             **options):
    """A stage of small blocks, all of whose parameters differ."""
    channels = heads * head_dim
    blocks = nn.Sequential(
        *(nn.Conv2d(channels, channels, 1) for _ in range(depth)))
    stage = AttentionStage('layer1', blocks, [
        LayerAttention(channels, head_dim, **options) for _ in range(depth)
    ]).double()
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.7)
    for buffer in stage.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5)
    stage.active = active or [True] * depth
    stage.visible = visible or list(stage.active)
    return stage


def noise(stage, batch=2, side=5):
    channels = stage.attention[0].channels
    return torch.randn(batch, channels, side, side, dtype=torch.float64)


class Naive:
    """One layer after the other, all earlier values concatenated for each.

    Keeps the running statistics of its norms itself.
    """

    def __init__(self, layers):
        self.layers = layers
        self.statistics = [
            (x.norm.running_mean.clone(), x.norm.running_var.clone())
            if isinstance(x.norm, nn.BatchNorm2d) and
            x.norm.track_running_stats else None for x in layers
        ]
        self.keys, self.values = [], []

    def see(self, i, x):
        layer = self.layers[i]
        size, channels = layer.key.weight.shape[-1], layer.channels
        self.pooled = F.adaptive_avg_pool2d(x, 1).view(len(x), 1, channels)
        key = F.conv1d(self.pooled, layer.key.weight, padding=size // 2)
        value = F.conv2d(x, layer.value.weight, padding=1, groups=channels)
        self.shape = (len(x), layer.num_heads, 1, layer.head_dim)
        self.keys.append(key.reshape(self.shape))
        self.values.append(value.reshape(*self.shape, *x.shape[2:]))

    def term(self, i, x):
        layer = self.layers[i]
        query = F.conv1d(self.pooled, layer.query.weight,
                         padding=layer.query.weight.shape[-1] // 2)
        logits = torch.einsum('bhqd,bhnd->bhn', query.reshape(self.shape),
                              torch.cat(self.keys, 2))
        logits = logits / math.sqrt(layer.head_dim)
        # Large ones would overflow.
        weights = (logits - logits.amax(-1, keepdim=True)).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.einsum('bhn,bhndyx->bhdyx', weights,
                           torch.cat(self.values, 2)).reshape(x.shape)
        out = self.normalised(i, out)
        if isinstance(layer.act, nn.ReLU):
            out = out.clamp(min=0)
        if layer.scale is not None:
            out = out * layer.scale.weight.view(1, -1, 1, 1)
        return out

    def normalised(self, i, out):
        norm = self.layers[i].norm
        if self.statistics[i] is None or norm.momentum is None:
            return norm(out)
        mean, var = self.statistics[i]
        if norm.training:
            axes, count = (0, 2, 3), out.numel() / out.shape[1]
            m = norm.momentum
            self.statistics[i] = tuple(
                (1 - m) * old + m * new.detach() for old, new in (
                    (mean, out.mean(axes)),
                    (var, out.var(axes, unbiased=False) * count /
                     (count - 1))))
            mean, var = out.mean(axes), out.var(axes, unbiased=False)

        def wide(v):
            return v.view(1, -1, 1, 1)

        out = (out - wide(mean)) / (wide(var) + norm.eps).sqrt()
        return out * wide(norm.weight) + wide(norm.bias)


def naive(stage, x):
    """The stage's output, and the naive formulation with its statistics."""
    reference = Naive(stage.attention)
    for i, block in enumerate(stage):
        x = block(x)
        if stage.visible[i]:
            reference.see(i, x)
        if stage.active[i]:
            x = x + reference.term(i, x)
    return x, reference


def gradients(stage, run, x, cotangent):
    x = x.clone().requires_grad_()
    out = run(x)
    # What a layer does not use, or weighs with a constant, has no gradient.
    found = torch.autograd.grad(
        out, [x, *stage.parameters()], cotangent, allow_unused=True)
    return out, [
        torch.zeros_like(p) if g is None else g
        for g, p in zip(found, [x, *stage.parameters()])
    ]


def assert_like_naive(stage, x, run=None):
    cotangent = torch.randn_like(x)
    references = []

    def reference(x):
        out, formulation = naive(stage, x)
        references.append(formulation)
        return out

    expected, expected_gradients = gradients(stage, reference, x, cotangent)
    statistics = references[0].statistics
    out, found = gradients(stage, run or stage, x, cotangent)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    names = ['x', *(n for n, _ in stage.named_parameters())]
    for name, a, b in zip(names, found, expected_gradients):
        torch.testing.assert_close(
            a, b, rtol=1e-7, atol=1e-7, msg=lambda m, n=name: f'{n}: {m}')
    return statistics


@settings(max_examples=60, deadline=None)
@given(data=st.data(),
       depth=st.integers(1, 5),
       batch=st.integers(1, 3),
       heads=st.sampled_from([1, 2, 3]),
       head_dim=st.sampled_from([1, 4]),
       side=st.integers(2, 6),
       act=st.booleans(),
       zero_init=st.booleans(),
       training=st.booleans(),
       channels_last=st.booleans(),
       short=st.booleans())
def test_stage_matches_the_equations(data, depth, batch, heads, head_dim, side,
                                     act, zero_init, training, channels_last,
                                     short):
    """Any mask: skipped whole, or visible to later layers still."""
    torch.manual_seed(0)
    active = data.draw(st.lists(st.booleans(), min_size=depth,
                                max_size=depth))
    visible = [data.draw(st.booleans()) or on for on in active]
    stage = stage_of(depth, heads, head_dim, active, visible, act=act,
                     zero_init=zero_init).train(training)
    x = noise(stage, batch, side)
    if channels_last:
        stage = stage.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    with mock.patch.object(values, 'SHORT', 5 if short else 1):
        statistics = assert_like_naive(stage, x)
    for layer, on, (mean, var) in zip(stage.attention, active, statistics):
        torch.testing.assert_close(layer.norm.running_mean, mean)
        torch.testing.assert_close(layer.norm.running_var, var)
        # The naive formulation does not count.
        assert layer.norm.num_batches_tracked in (
            [2, 1] if on and training else [1, 0])


@pytest.mark.parametrize('channels_last', [False, True])
def test_stages_longer_than_a_group(channels_last):
    """Sums formed again in several groups, layers of all kinds in each."""
    depth = 2 * GROUP + 3
    active = [i % 5 != 2 for i in range(depth)]
    visible = [on or i % 2 == 0 for i, on in enumerate(active)]
    assert [on for on, seen in zip(active, visible) if seen].count(False)
    stage = stage_of(depth, active=active, visible=visible)
    x = noise(stage)
    if channels_last:
        stage = stage.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    assert_like_naive(stage, x)


@pytest.mark.parametrize('mean', [0, 10, 100])
def test_statistics_in_float32(mean):
    """As good as a float32 can be, also far from 0."""
    torch.manual_seed(0)
    x = torch.randn(3, 8, 7, 9) + mean
    norm, expected = nn.BatchNorm2d(8), nn.BatchNorm2d(8).double()
    out, found = batch_norm.normalize_batch(norm, x, norm.weight, norm.bias)
    torch.testing.assert_close(out, expected(x.double()), rtol=1e-5,
                               atol=1e-5 * max(mean, 1), check_dtype=False)
    wide = x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(found.mean, x.double().mean((0, 2, 3)),
                               rtol=1e-6, atol=1e-6, check_dtype=False)
    torch.testing.assert_close(found.spread, wide + norm.eps, rtol=1e-5,
                               atol=0, check_dtype=False)
    for ours, theirs in zip(norm.buffers(), expected.buffers()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6,
                                   check_dtype=False)


@pytest.mark.parametrize('banked', [True, False])
def test_one_number_per_channel_takes_running_statistics(banked):
    """The plain network takes it, where norm_eval=True spares its own norms."""
    stage = stage_of(depth=3, zero_init=True)
    x = noise(stage, batch=1, side=1)
    run = stage
    if not banked:
        def run(x):
            with without_bank():
                return stage(x)
    cotangent = torch.randn_like(x)
    before = copy.deepcopy(stage.state_dict())
    out, found = gradients(stage, run, x, cotangent)
    for name, value in stage.state_dict().items():
        assert torch.equal(value, before[name]), name
    stage.eval()
    expected, wanted = gradients(
        stage, lambda x: naive(stage, x)[0], x, cotangent)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


# --- gradients of a part, again, and with company ----------------------------


def terms_of(layers, xs):
    memory = LayerMemory(capacity=len(layers))
    return [layer(x, memory) for layer, x in zip(layers, xs)]


def naive_terms(layers, xs):
    reference = Naive(layers)
    terms = []
    for i, x in enumerate(xs):
        reference.see(i, x)
        terms.append(reference.term(i, x))
    return terms


@pytest.fixture(params=[1, 6], ids=['long', 'short'])
def layers(request, monkeypatch):
    """Those of stages that collect gradients, and that add them up at once."""
    monkeypatch.setattr(values, 'SHORT', request.param)
    return stage_of(4, zero_init=True).attention


def compared(layers, wanted, detached=()):
    """Gradients of some terms, ours and the equations'."""
    xs = [torch.randn(2, 8, 4, 4, dtype=torch.float64) for _ in layers]
    cotangents = [torch.randn_like(xs[i]) for i in wanted]
    results = []
    for compute in (terms_of, naive_terms):
        inputs = [x.clone().requires_grad_(i not in detached)
                  for i, x in enumerate(xs)]
        leaves = [t for t in (*inputs, *layers.parameters())
                  if t.requires_grad]
        terms = compute(layers, inputs)
        results.append(
            torch.autograd.grad([terms[i] for i in wanted], leaves,
                                cotangents, allow_unused=True))
    for ours, theirs in zip(*results):
        a, b = (torch.zeros(()) if g is None else g for g in (ours, theirs))
        torch.testing.assert_close(
            a.double() + torch.zeros_like(b), b + torch.zeros_like(a),
            rtol=1e-7, atol=1e-7, check_dtype=False)
    return results[0]


@pytest.mark.parametrize('wanted', [(0, ), (1, ), (3, ), (0, 3), (1, 2),
                                    (2, 0), (0, 1, 2, 3)])
def test_gradients_of_some_terms(layers, wanted):
    """Later or earlier retrievals may have none."""
    compared(layers, wanted)


@pytest.mark.parametrize('frozen', [(0, ), (0, 1), (1, 3), (0, 1, 2, 3)])
def test_layers_without_gradients(layers, frozen):
    """Frozen layers on inputs without gradients, between others."""
    for i in frozen:
        layers[i].requires_grad_(False)
    if len(frozen) < len(layers):
        compared(layers, (0, 1, 2, 3) if 0 not in frozen else (2, 3),
                 detached=frozen)
    else:
        assert not any(t.requires_grad for t in terms_of(
            layers, torch.randn(4, 2, 8, 4, 4, dtype=torch.float64)))


@pytest.mark.parametrize('part', ['query', 'key', 'value', 'norm', 'scale'])
def test_frozen_parts(layers, part):
    for layer in layers:
        getattr(layer, part).requires_grad_(False)
    compared(layers, (0, 1, 2, 3))
    compared(layers, (1, 3), detached=(0, 1, 2, 3))


def test_gradients_of_one_input_alone(layers):
    """autograd leaves out what one value's gradient does not need."""
    xs = [torch.randn(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
          for _ in layers]
    for x in xs:
        ours, theirs = (
            torch.autograd.grad(
                sum((t * (i + 1)).square().sum()
                    for i, t in enumerate(compute(layers, xs))), x)[0]
            for compute in (terms_of, naive_terms))
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


def test_backward_twice():
    stage = stage_of()
    x = noise(stage).requires_grad_()
    out = stage(x)
    wanted = [x, *(p for n, p in stage.named_parameters()
                   if '.0.query' not in n)]
    first, second = (
        torch.autograd.grad(out.square().sum(), wanted, retain_graph=True)
        for _ in range(2))
    for a, b in zip(first, second):
        assert torch.equal(a, b)
    # And added up by backward().
    for _ in range(2):
        out.square().sum().backward(retain_graph=True)
    torch.testing.assert_close(x.grad, 2 * first[0])


def test_two_forward_passes_before_backward():
    """Each has a bank of its own, as siamese networks need."""
    stage = stage_of().eval()
    xs = noise(stage).requires_grad_(), noise(stage).requires_grad_()
    outs = [stage(x) for x in xs]
    together = torch.autograd.grad(sum(out.square().sum() for out in outs), xs)
    for x, gradient in zip(xs, together):
        alone, = torch.autograd.grad(stage(x).square().sum(), x)
        torch.testing.assert_close(gradient, alone)


@pytest.mark.parametrize('wanted', [(0, ), (1, 3), (0, 1, 2, 3)])
def test_anomaly_detection_finds_nothing(layers, wanted, monkeypatch):
    """Buffers are made full of NaN here, as memory may be."""

    def poisoned(x, *shape, dtype=torch.float64):
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        return torch.full(shape, math.nan, dtype=dtype)

    monkeypatch.setattr(torch, 'empty_like', lambda x: torch.full_like(
        x, math.nan))
    monkeypatch.setattr(torch.Tensor, 'new_empty', poisoned)
    compared(layers, wanted)  # nothing of it is read
    with torch.autograd.detect_anomaly(check_nan=True):
        compared(layers, wanted)


def test_anomaly_detection_still_finds_nan(layers):
    xs = [torch.randn(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
          for _ in layers]
    with torch.autograd.detect_anomaly(check_nan=True):
        terms = terms_of(layers, xs)
        with pytest.raises(RuntimeError, match='returned nan'):
            (terms[-1] * math.nan).sum().backward()


@pytest.mark.parametrize('reentrant', [
    pytest.param(False, marks=needs_torch_2_1), True])
@pytest.mark.parametrize('training', [False, True])
def test_inside_activation_checkpointing(reentrant, training):
    """A stage, and a region with two."""
    stage = stage_of(zero_init=True).train(training)
    for region in (stage, lambda x: stage(stage(x))):
        x, cotangent = noise(stage).requires_grad_(), noise(stage)
        results = []
        for compute in (region, lambda x, region=region: checkpoint(
                region, x, use_reentrant=reentrant)):
            x.grad = None
            stage.zero_grad()
            compute(x).backward(cotangent)
            results.append([x.grad, *(
                torch.zeros_like(p) if p.grad is None else p.grad
                for p in stage.parameters())])
        for a, b in zip(*results):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        assert all(g.any() for g in results[0][:2])


# --- memory ------------------------------------------------------------------


def kept(depth, training=True, **options):
    """Bytes of what a stage leaves for backward, in values (B, C, H, W)."""
    stage = stage_of(depth, heads=1, head_dim=8, **options).train(training)
    for i in range(depth):
        setattr(stage, str(i), nn.Identity())
    x = noise(stage, batch=1, side=64).requires_grad_()
    with _Storages() as storages:
        out = stage(x)
    bytes_alive = storages.bytes_alive()
    del out
    return bytes_alive / (x.numel() * x.element_size())


@pytest.mark.parametrize('training', [True, False])
def test_memory_grows_with_the_number_of_layers(training):
    at = {depth: kept(depth, training) for depth in (4, 8, 16, 32)}
    # A layer keeps its input, the value and nothing else of that size.
    assert at[32] - at[16] == pytest.approx(2 * (at[16] - at[8]), rel=0.02)
    assert at[16] - at[8] == pytest.approx(2 * (at[8] - at[4]), rel=0.02)
    assert at[32] / 32 < 2.1


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('training', [True, False])
def test_nothing_is_kept_without_gradients(mode, training):
    stage = stage_of(zero_init=True).train(training)
    x = noise(stage)
    expected = stage(x)
    packed = []
    with mode(), torch.autograd.graph.saved_tensors_hooks(
            packed.append, lambda x: x), _Storages() as storages:
        out = stage(x)
        assert not packed and not out.requires_grad
        assert storages.bytes_alive() == out.numel() * out.element_size()
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('depth', [1, 3])
def test_a_term_is_the_callers_to_change(depth):
    """Also a sum that nothing follows, which is the bank's first value."""
    stage = stage_of(depth, act=False)
    for layer in stage.attention:
        layer.norm = nn.Identity()
    xs = [noise(stage) for _ in range(depth)]
    expected = [term.clone() for term in naive_terms_of_sums(stage, xs)]
    memory, found = LayerMemory(capacity=depth), []
    with torch.no_grad():
        for layer, x in zip(stage.attention, xs):
            term = layer(x, memory)
            found.append(term.clone())
            term.zero_()
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs)


def naive_terms_of_sums(stage, xs):
    with torch.no_grad(), without_bank():
        memory = LayerMemory()
        return [layer(x, memory) for layer, x in zip(stage.attention, xs)]


@pytest.mark.parametrize('kind', ['base', 'light'])
def test_autocast_keeps_no_cast_without_history(kind):
    """A plain pass after a banked one, both within one context, learns."""
    layer = (LayerAttention if kind == 'base' else LightLayerAttention)(32)
    x = torch.randn(2, 32, 4, 4, requires_grad=True)  # a leaf may be cached too
    with torch.autocast('cpu', torch.bfloat16):
        if kind == 'base':
            layer.add_to(x, LayerMemory(capacity=1))
            out = layer(x, LayerMemory())
        else:
            layer.add_to(x, x)
            out = layer(x, x)
    out.float().square().mean().backward()
    assert layer.value.weight.grad is not None and x.grad.any()


@pytest.mark.parametrize('backward', [False, True])
@pytest.mark.parametrize('short', [1, 6])
def test_nothing_outlives_a_step(short, backward, monkeypatch):
    """Without Python's collector, which would find cycles in its own time."""
    monkeypatch.setattr(values, 'SHORT', short)
    stage = stage_of(zero_init=True)
    x = noise(stage).requires_grad_()
    gc.collect()
    gc.disable()
    try:
        with _Storages() as storages:
            out = stage(x)
            if backward:
                out.sum().backward()
            del out
            x.grad = None
            stage.zero_grad()
        assert storages.bytes_alive() == 0
    finally:
        gc.enable()


# --- other norms -------------------------------------------------------------


def with_norm(make, training):
    stage = stage_of(zero_init=True)
    for layer in stage.attention:
        layer.norm = make(layer.channels).double()
        for parameter in layer.norm.parameters():
            nn.init.normal_(parameter)
    return stage.train(training)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('make', [
    lambda c: nn.GroupNorm(2, c),
    lambda c: nn.InstanceNorm2d(c, affine=True),
    lambda c: nn.BatchNorm2d(c, affine=False, momentum=None),
    lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    lambda c: nn.BatchNorm2d(c, momentum=None),
], ids=['GN', 'IN', 'no affine', 'no statistics', 'cumulative'])
def test_norms_that_run_as_modules(make, training):
    stage = with_norm(make, training)
    assert not batch_norm.can_be_recomputed(stage.attention[0].norm)
    assert_like_naive(stage, noise(stage))


def test_synchronised_batch_norm():
    """Converted, it leaves the fused path and computes the same."""
    stage = stage_of().eval()
    x, cotangent = noise(stage), noise(stage)
    assert batch_norm.can_be_recomputed(stage.attention[0].norm)
    expected = gradients(stage, stage, x, cotangent)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(stage)
    converted.eval()  # which torch 2.0 does not take over
    assert type(converted.attention[0].norm) is nn.SyncBatchNorm
    assert not batch_norm.can_be_recomputed(converted.attention[0].norm)
    out, found = gradients(converted, converted, x, cotangent)
    torch.testing.assert_close(out, expected[0])
    for a, b in zip(found, expected[1]):
        torch.testing.assert_close(a, b)


def test_hooks_of_a_norm_are_called():
    stage = stage_of()
    seen = []
    stage.attention[1].norm.register_forward_hook(
        lambda module, args, out: seen.append(out))
    assert_like_naive(stage, noise(stage))
    assert len(seen) == 1


# --- what compilers see ------------------------------------------------------


@pytest.mark.skipif(not traced.CAN_TRACE, reason='torch < 2.4 has no operators')
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('operator', [False, True])
def test_the_traced_sum_is_the_plain_one(operator, channels_last, monkeypatch):
    """Values, gradients and what torch asks of an operator."""
    monkeypatch.setattr(traced, '_wants_operator', lambda grad: operator)
    weights = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    maps = [torch.randn(2, 6, 5, 4, dtype=torch.float64) for _ in range(5)]
    if channels_last:
        maps = [x.to(memory_format=torch.channels_last) for x in maps]
    cotangent, *maps = (x.requires_grad_() for x in maps)
    expected = torch.einsum(
        'bhn,nbhdyx->bhdyx', weights,
        torch.stack(maps).unflatten(2, (3, 2))).flatten(1, 2)
    found = traced.TracedSum.apply(weights, *maps)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(
            torch.autograd.grad(out, [weights, *maps], cotangent.detach())
            for out in (found, expected))):
        torch.testing.assert_close(ours, theirs)
    torch.library.opcheck(traced.head_products, (
        cotangent.detach(), [x.detach() for x in maps], 3))


@pytest.mark.skipif(not traced.CAN_TRACE, reason='torch < 2.4 has no operators')
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('groups', [6, 2])
def test_the_traced_value_is_the_plain_convolution(channels_last, groups):
    """Also of a gradient in another order of dimensions than the map."""
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=groups, bias=False).double()
    x, grad = torch.randn(2, 2, 6, 5, 4, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    results = [[out, *torch.autograd.grad(out, [x, conv.weight], grad)]
               for out in (traced.traced_value(conv, x), conv(x))]
    torch.testing.assert_close(*results)
    torch.library.opcheck(traced.depthwise_backward, (
        grad, x.detach(), conv.weight.detach(), [1] * 6 + [groups]))


def test_factors_lie_channel_by_channel():
    """Or compilers write loops that are not vectorised."""
    weights = torch.rand(2, 3, 4)
    for i, factor in enumerate(traced.per_channel(
            weights, torch.empty(2, 6, 5, 5, dtype=torch.float64))):
        assert factor.shape == (2, 6, 1, 1) and factor.stride(1) == 1
        expected = weights[:, [0, 0, 1, 1, 2, 2], i].double()
        assert torch.equal(factor[..., 0, 0], expected)
