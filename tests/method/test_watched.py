"""Hooks, parametrizations and exchanged modules of attention are called."""
import copy
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.scale import LayerScale
from support.versions import needs_torch_2_1
from torch import nn
from torch.func import functional_call
from torch.nn.modules import module as globally
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from ela_mm import LayerAttention, LayerMemory
from ela_mm.hosts.mmdet import ELAResNet
from ela_mm.models.backbones.stages import AttentionStage, LightAttentionStage
from ela_mm.models.layers import LightLayerAttention
from ela_mm.models.layers.bank import without_bank
from ela_mm.models.layers.token_attention import TokenLayerAttention

DEPTH, CHANNELS, HEAD_DIM = 3, 8, 4
COMMON = ['query', 'key', 'value', 'norm', 'scale', 'drop_path']
MODULES = {'base': COMMON + ['retrieval', 'act'], 'light': COMMON + ['mixing']}


class Block(nn.Module):
    """A host's block, whose shortcut MRLA-light asks for."""
    with_cp = False

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.downsample = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1))

    def forward(self, x):
        return self.conv(x).tanh() + self.downsample(x)


def stage_of(kind='base', norm_cfg=None, **options):
    """A stage in float64, all of whose parameters differ."""
    options = dict(norm_cfg=norm_cfg, zero_init=True, **options)
    blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
    stages = dict(base=(AttentionStage, LayerAttention),
                  light=(LightAttentionStage, LightLayerAttention))
    stage_type, layer_type = stages[kind]
    stage = stage_type('layer1', blocks, [
        layer_type(CHANNELS, HEAD_DIM, **options) for _ in range(DEPTH)
    ]).double()
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.7)
    return stage


def noise(*shape):
    return torch.randn(*(shape or (2, CHANNELS, 5, 5)), dtype=torch.float64)


def train(stage, steps=2, run=None):
    """Features and gradients of steps of SGD on given pictures."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.05)
    found = []
    for _ in range(steps):
        x = torch.randn(2, CHANNELS, 5, 5, generator=generator,
                        dtype=torch.float64).requires_grad_()
        optimizer.zero_grad()
        out = (run or stage)(x)
        out.square().mean().backward()
        found.append((out.detach(), x.grad, {
            n: p.grad.clone() for n, p in stage.named_parameters()
            if p.grad is not None}))
        optimizer.step()
    return found


def assert_same_training(found, expected):
    for (out, grad_x, gradients), (out2, grad_x2, gradients2) in zip(
            found, expected):
        close = dict(rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(out, out2, **close)
        torch.testing.assert_close(grad_x, grad_x2, **close)
        for name in gradients.keys() | gradients2.keys():
            # A stage's first query has a gradient of 0, or none.
            a, b = (g.get(name, torch.zeros(1).double())
                    for g in (gradients, gradients2))
            torch.testing.assert_close(
                *torch.broadcast_tensors(a, b), **close,
                msg=lambda m, n=name: f'{n}: {m}')


# --- hooks -------------------------------------------------------------------

HOOKS = {
    'forward': nn.Module.register_forward_hook,
    'forward_pre': nn.Module.register_forward_pre_hook,
    'full_backward': nn.Module.register_full_backward_hook,
    'full_backward_pre': nn.Module.register_full_backward_pre_hook,
}


@pytest.mark.parametrize('kind, part', [
    (kind, part) for kind in MODULES for part in MODULES[kind] + ['layer']])
@pytest.mark.parametrize('hook', sorted(HOOKS))
def test_a_hook_is_called_once_a_step(kind, part, hook):
    stage = stage_of(kind)
    expected = train(copy.deepcopy(stage))
    calls = Counter()
    for i, layer in enumerate(stage.attention):
        module = layer if part == 'layer' else getattr(layer, part)
        HOOKS[hook](module, lambda *args, i=i: calls.update([i]))
    assert_same_training(train(stage), expected)
    assert calls == dict.fromkeys(range(DEPTH), 2)


@pytest.mark.parametrize('norm_cfg', [
    dict(type='BN'), dict(type='GN', num_groups=2)], ids=['BN', 'GN'])
@pytest.mark.parametrize('register', [
    globally.register_module_forward_hook,
    globally.register_module_forward_pre_hook,
    globally.register_module_full_backward_hook,
    globally.register_module_full_backward_pre_hook,
], ids=lambda f: f.__name__)
@pytest.mark.parametrize('kind', MODULES)
def test_hooks_of_all_modules(kind, register, norm_cfg):
    stage = stage_of(kind, norm_cfg)
    expected = train(copy.deepcopy(stage))
    calls = Counter()
    handle = register(lambda module, *args: calls.update([module]))
    try:
        found = train(stage)
    finally:
        handle.remove()
    assert_same_training(found, expected)
    for name, module in stage.named_modules():
        assert calls[module] == (0 if type(module) is nn.ModuleList else 2), name


@pytest.mark.parametrize('part', MODULES['base'])
def test_what_a_hook_returns_is_used(part):
    """In the buffers as in plain memory."""
    stage = stage_of().eval()  # a norm in training would take it back
    plain, x = copy.deepcopy(stage), noise()
    unwatched = copy.deepcopy(stage)(x)
    for network in (stage, plain):
        getattr(network.attention[1], part).register_forward_hook(
            lambda module, args, out: out * 0.5 + 0.25)
    with without_bank():
        expected = plain(x)
    found = stage(x)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, unwatched)


@pytest.mark.parametrize('capacity, watched', [
    (None, MODULES['base']), (1, ['norm', 'act', 'scale', 'drop_path'])],
    ids=['plain', 'banked'])
def test_modules_of_tokens_are_called(capacity, watched):
    """Of a plain transformer's attention, the scale of all tokens included."""
    layer = TokenLayerAttention(CHANNELS, HEAD_DIM, zero_init=True).double()
    nn.init.normal_(layer.scale.weight)
    prune.random_unstructured(layer.scale, 'weight', amount=4)
    calls, x = Counter(), noise(2, 1 + 3 * 4, CHANNELS)
    for name in watched:
        getattr(layer, name).register_forward_hook(
            lambda *args, name=name: calls.update([name]))
    for _ in range(2):  # a second backward meets a graph of its own
        memory = LayerMemory(capacity)
        memory.hw_shape = (3, 4)
        term = layer(x, memory)
        term.square().sum().backward()
    assert calls == dict.fromkeys(watched, 2)
    torch.testing.assert_close(term.detach()[:, 0], (
        F.layer_norm(x[:, 0], (CHANNELS, ), eps=1e-6) * layer.scale.weight))


def test_a_forward_that_was_exchanged_is_called():
    stage = stage_of()
    expected = train(copy.deepcopy(stage))
    calls = []
    for module in stage.attention[1].modules():
        def forward(*args, own=module.forward):
            calls.append(own)
            return own(*args)
        module.forward = forward
    assert_same_training(train(stage), expected)
    assert len(calls) == 2 * (1 + len(MODULES['base']))


def test_hooks_of_a_layer_whose_key_others_see():
    stage = stage_of()
    stage.active[1] = False  # it stays visible
    expected = train(copy.deepcopy(stage))
    calls = Counter()
    for part in ('key', 'value'):
        getattr(stage.attention[1], part).register_forward_hook(
            lambda *args, part=part: calls.update([part]))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert_same_training(train(stage), expected)
    assert calls == dict(key=2, value=2)


@pytest.mark.parametrize('part', ['norm', 'query', 'layer'])
def test_a_hook_on_a_skipped_layer_is_told_of_once(part):
    stage = stage_of()
    stage.active[1] = stage.visible[1] = False
    layer = stage.attention[1]
    calls = []
    (layer if part == 'layer' else getattr(layer, part)).register_forward_hook(
        lambda *args: calls.append(args))
    name = r'layer1\.attention\.1' + ('' if part == 'layer' else fr'\.{part}')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('default')  # Python's own: once a place
        for _ in range(3):
            stage(noise())
    assert len(caught) == 1 and not calls
    with pytest.warns(UserWarning, match=f'waits for {name}, whose layer is '
                      'skipped: .*those of layer1.1'):
        stage(noise())


def test_grad_cam_explains_an_active_norm():
    """Its last norm, as mmpretrain's tool takes it, is attention's."""
    cam = pytest.importorskip('pytorch_grad_cam')
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class Classifier(nn.Module):

        def __init__(self):
            super().__init__()
            self.backbone = ELAResNet(18, base_channels=16, norm_eval=False)
            self.head = nn.Linear(128, 3)

        def forward(self, x):
            return self.head(self.backbone(x)[-1].mean((2, 3)))

    model = Classifier().eval()
    name, norm = [(n, m) for n, m in model.named_modules()
                  if isinstance(m, nn.BatchNorm2d)][-1]
    assert name == 'backbone.layer4.attention.1.norm'
    with cam.GradCAM(model, [norm]) as explain:
        maps = explain(torch.randn(1, 3, 64, 64), [ClassifierOutputTarget(1)])
        seen = explain.activations_and_grads
        assert len(seen.activations) == len(seen.gradients) == 1
        assert seen.gradients[0].any()
    assert maps.shape == (1, 64, 64)


# --- parametrizations ---------------------------------------------------------


class Doubled(nn.Module):

    def forward(self, weight):
        return 2 * weight


def halves(module, name='weight'):
    """Mask the smaller half, as l1_unstructured does."""
    size = getattr(module, name).abs()
    count = round(0.5 * size.numel())
    return (size > size.flatten().sort().values[count - 1]).double()


def l1(module):
    mask = halves(module)
    prune.l1_unstructured(module, 'weight', 0.5)
    return 'weight_orig', lambda weight: weight * mask


def doubled(module):
    parametrize.register_parametrization(module, 'weight', Doubled())
    return 'parametrizations.weight.original', lambda weight: 2 * weight


PARAMETRIZATIONS = dict(l1=l1, doubled=doubled)


@pytest.mark.parametrize('how', PARAMETRIZATIONS)
@pytest.mark.parametrize('kind', MODULES)
@pytest.mark.parametrize('parts', [
    ('query', ), ('key', ), ('value', ), ('norm', ), ('scale', ),
    ('query', 'key', 'value', 'norm', 'scale')], ids='+'.join)
def test_parametrized_weights(kind, parts, how):
    """Two steps of SGD, against a network that is called with the weights."""
    stage = stage_of(kind)
    plain = copy.deepcopy(stage)
    effective, renamed = {}, {}
    for i, layer in enumerate(stage.attention):
        for part in parts:
            name = f'attention.{i}.{part}.'
            new, function = PARAMETRIZATIONS[how](getattr(layer, part))
            effective[name + 'weight'] = function
            renamed[name + new] = name + 'weight'

    def run(x):
        return functional_call(plain, {
            name: effective.get(name, lambda p: p)(parameter)
            for name, parameter in plain.named_parameters()}, (x, ))

    expected, found = train(plain, run=run), train(stage)
    assert_same_training([(out, grad_x, {
        renamed.get(n, n): g for n, g in gradients.items()})
        for out, grad_x, gradients in found], expected)


WRAPS = {
    'weight_norm': getattr(parametrizations, 'weight_norm', None),  # torch 2.1
    'spectral_norm': parametrizations.spectral_norm,
    'old weight_norm': nn.utils.weight_norm,
    'old spectral_norm': nn.utils.spectral_norm,
}


@pytest.mark.parametrize('wrap', [
    pytest.param(wrap, id=name) for name, wrap in WRAPS.items() if wrap])
@pytest.mark.parametrize('part', ['query', 'key', 'value'])
@pytest.mark.filterwarnings('ignore:.*weight_norm.* is deprecated')
def test_weight_norms(part, wrap):
    """The same in the buffers as in plain memory, and both learn."""
    stage = stage_of()
    for layer in stage.attention:
        wrap(getattr(layer, part))
    plain = copy.deepcopy(stage) if 'parametrizations' in wrap.__module__ else (
        stage_of())
    if 'parametrizations' not in wrap.__module__:  # copies are refused
        for layer in plain.attention:
            wrap(getattr(layer, part))
        plain.load_state_dict(stage.state_dict())
    before = {n: p.clone() for n, p in stage.named_parameters()}
    found = train(stage)
    with without_bank():
        assert_same_training(found, train(plain))
    moved = [n for n, p in stage.named_parameters()
             if f'attention.1.{part}' in n and not torch.equal(p, before[n])]
    assert moved


def test_global_pruning_of_attention():
    stage = stage_of()
    weights = [(getattr(layer, part), 'weight') for layer in stage.attention
               for part in ('query', 'key', 'value')]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=0.5)
    masks = [module.weight_mask for module, _ in weights]
    train(stage, steps=3)
    zeros = total = 0
    for (module, _), mask in zip(weights, masks):
        module(torch.zeros(module.weight.shape[:2]).double()[..., None]
               if isinstance(module, nn.Conv1d) else noise())
        zeros += (module.weight == 0).sum()
        total += module.weight.numel()
        assert not module.weight_orig.grad[mask == 0].any()
    assert zeros == round(0.5 * total)
    # Made permanent, attention takes its fast form again.
    for module, name in weights:
        prune.remove(module, name)
    assert all(layer.can_bank() for layer in stage.attention)


class LoRA(nn.Module):
    """A wrapper that adds a product of small convolutions."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        kind = type(base)
        size = base.kernel_size[0]
        self.down = kind(1, rank, size, padding=size // 2, bias=False).double()
        self.up = kind(rank, 1, 1, bias=False).double()

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class LoRAConv1d(nn.Conv1d):
    """The same as a subclass, whose weight alone would be another network."""

    def __init__(self, base, rank=2):
        size = base.kernel_size[0]
        super().__init__(1, 1, size, padding=size // 2, bias=False)
        self.weight = base.weight
        self.weight.requires_grad_(False)
        self.down = nn.Conv1d(
            1, rank, size, padding=size // 2, bias=False).double()
        self.up = nn.Conv1d(rank, 1, 1, bias=False).double()

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


@pytest.mark.parametrize('wrapper', [LoRA, LoRAConv1d])
@pytest.mark.parametrize('kind', MODULES)
def test_low_rank_adaptation(kind, wrapper):
    stage = stage_of(kind)
    plain = copy.deepcopy(stage)
    for layer in stage.attention:
        layer.query, layer.key = wrapper(layer.query), wrapper(layer.key)
    adapters = {n: p for n, p in stage.named_parameters()
                if '.up.' in n or '.down.' in n}
    assert len(adapters) == 4 * DEPTH

    def merged():
        weights = {}
        for i, layer in enumerate(stage.attention):
            for part in ('query', 'key'):
                adapter, name = getattr(layer, part), f'attention.{i}.{part}'
                weights[f'{name}.weight'] = plain.get_parameter(
                    f'{name}.weight').detach() + torch.einsum(
                        'orx,rik->oik', adapter.up.weight, adapter.down.weight)
        return weights

    optimizer = torch.optim.SGD(adapters.values(), lr=0.1)
    for _ in range(2):
        x = noise()
        outs = stage(x), functional_call(plain, merged(), (x, ))
        torch.testing.assert_close(*outs)
        found, expected = (torch.autograd.grad(
            out.square().mean(), list(adapters.values()), allow_unused=True)
            for out in outs)
        for name, (parameter, a, b) in zip(adapters, zip(
                adapters.values(), found, expected)):
            assert a is not None
            torch.testing.assert_close(
                a, torch.zeros_like(a) if b is None else b,
                rtol=1e-7, atol=1e-10, msg=lambda m, n=name: f'{n}: {m}')
            parameter.grad = a
        optimizer.step()
    # What LoRA froze stays as it was.
    assert torch.equal(plain.attention[1].query.weight, (
        stage.attention[1].query.base.weight if wrapper is LoRA
        else stage.attention[1].query.weight))


# --- exchanged modules --------------------------------------------------------

ACTIVATIONS = {
    'GELU': nn.GELU, 'Identity': nn.Identity, 'PReLU': nn.PReLU,
    'ReLU6': nn.ReLU6, 'hook': nn.ReLU}


def with_act(act):
    stage = stage_of()
    for layer in stage.attention:
        layer.act = ACTIVATIONS[act]().double()
        if act == 'hook':
            layer.act.register_forward_hook(lambda m, args, out: -out)
    return stage


def act_by_hand(act, x):
    return {'GELU': F.gelu, 'Identity': lambda x: x,
            'PReLU': lambda x: torch.where(x > 0, x, 0.25 * x),
            'ReLU6': lambda x: x.clamp(0, 6), 'hook': lambda x: -x.relu()
            }[act](x)


@pytest.mark.parametrize('act', ACTIVATIONS)
def test_an_exchanged_activation_is_used(act):
    stage = with_act(act)
    layer, x = stage.attention[0], noise()
    # Of a stage's first layer, the sum is its own value.
    value = F.conv2d(x, layer.value.weight, padding=1, groups=CHANNELS)
    mean, var = value.mean((0, 2, 3)), value.var((0, 2, 3), unbiased=False)

    def wide(v):
        return v[:, None, None]

    normed = (value - wide(mean)) / wide(var + layer.norm.eps).sqrt()
    normed = normed * wide(layer.norm.weight) + wide(layer.norm.bias)
    expected = act_by_hand(act, normed) * wide(layer.scale.weight)
    for capacity in (1, None):
        torch.testing.assert_close(layer(x, LayerMemory(capacity)), expected)
    plain = copy.deepcopy(stage)
    found = train(stage)
    with without_bank():
        assert_same_training(found, train(plain))


@pytest.mark.skipif(not hasattr(torch, 'compiler'), reason='torch 2.0')
@pytest.mark.parametrize('act', ACTIVATIONS)
def test_an_exchanged_activation_compiles(act):
    stage = with_act(act).eval()
    x = noise()
    torch._dynamo.reset()
    compiled = torch.compile(stage, backend='eager')
    torch.testing.assert_close(compiled(x), stage(x))
    torch._dynamo.reset()


def test_an_activation_with_weights_is_skipped_and_loaded():
    net = ELAResNet(18, base_channels=16, norm_eval=False)
    for layer in net.attention_layers:
        layer.module.act = nn.PReLU()
    net.skip_layers(['layer2.1'])
    act = net.layer2.attention[1].act
    assert not act.weight.requires_grad
    assert 'layer2.attention.1.act.weight' in net.unused_state()['layer2.1']
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    net.restore_layers()
    assert act.weight.requires_grad


class Shifted(LayerScale):

    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize('part, make', [
    ('query', lambda: nn.Conv1d(1, 1, 3, padding=1)),  # with a bias
    ('key', lambda: nn.Conv1d(1, 1, 3, padding=2, dilation=2, bias=False)),
    ('key', lambda: nn.Conv1d(1, 1, 3, padding=1, bias=False,
                              padding_mode='circular')),
    ('value', lambda: nn.Conv2d(CHANNELS, CHANNELS, 5, padding='same',
                                groups=CHANNELS, bias=False)),
    ('scale', lambda: Shifted(CHANNELS, data_format='channels_first')),
    ('retrieval', lambda: Uniform()),
], ids=['bias', 'dilated', 'circular', 'same', 'scale', 'retrieval'])
def test_exchanged_modules_are_called(part, make):
    stage = stage_of()
    calls = []
    for layer in stage.attention:
        setattr(layer, part, make().double())
    plain = copy.deepcopy(stage)
    for layer in plain.attention:  # a hook makes sure of it
        getattr(layer, part).register_forward_hook(
            lambda *args: calls.append(args))
    assert_same_training(train(stage), train(plain))
    assert len(calls) == 2 * DEPTH


class Uniform(nn.Module):

    def forward(self, weights, values):
        return sum(values) / len(values)


def test_a_forward_of_a_subclass_is_called():
    class Negative(LayerAttention):

        def forward(self, x, memory):
            return -super().forward(x, memory)

    stage = stage_of()
    x = noise()
    expected = copy.deepcopy(stage)
    for layer in expected.attention:
        layer.scale.weight.data.neg_()
    for layer in stage.attention:
        layer.__class__ = Negative
    torch.testing.assert_close(stage(x), expected(x))


# --- activation checkpointing of parts --------------------------------------------


def checkpointed(net, name, reentrant):
    net = copy.deepcopy(net)
    module = net.get_submodule(name)
    module.forward = lambda *args, forward=module.forward: checkpoint(
        forward, *args, use_reentrant=reentrant)
    return net


@pytest.mark.parametrize('reentrant', [
    pytest.param(False, marks=needs_torch_2_1), True])
@pytest.mark.parametrize('kind, name, refused', [
    ('base', 'layer2', False), ('base', 'layer2.0', False),
    ('base', 'layer2.attention.1', True), ('base', 'layer2.attention.1.norm', False),
    ('light', 'layer2', False), ('light', 'layer2.0', None),
    ('light', 'layer2.1', False), ('light', 'layer2.attention.1', False),
])
def test_checkpointing_of_a_part_is_right_or_refused(kind, name, refused,
                                                     reentrant):
    """mmengine's option takes any module's name."""
    net = ELAResNet(18, base_channels=32, attention=kind,
                    norm_eval=False).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    other = checkpointed(net, name, reentrant)
    x = torch.randn(2, 3, 64, 64).double()
    gradients = []

    def step(net):
        sum(out.square().mean() for out in net(x)).backward()
        gradients.append({n: p.grad for n, p in net.named_parameters()})

    # Reentrant, a block's shortcut has no gradient.
    if reentrant if refused is None else refused:
        with pytest.raises(ValueError, match="whole stages.*'backbone.layer1'"):
            step(other)
        return
    step(net)
    step(other)
    for part, expected in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][part], expected, rtol=1e-8, atol=1e-12,
            msg=lambda m, n=part: f'{n}: {m}')


def test_a_frozen_shortcut_is_no_checkpointed_one():
    net = ELAResNet(18, base_channels=32, attention='light', norm_eval=False)
    for name in ('conv1', 'bn1', 'layer1'):
        getattr(net, name).requires_grad_(False)
    net.layer2[0].downsample.requires_grad_(False)
    net(torch.randn(2, 3, 64, 64))[-1].mean().backward()
    assert net.layer2.attention[0].mix.grad is not None


def test_an_exchanged_downsample_is_told_of():
    net = ELAResNet(18, base_channels=32, attention='light', norm_eval=False)
    net.layer2[0].downsample = nn.Conv2d(32, 64, 1, stride=2)
    with pytest.raises(ValueError, match='downsample of a block was replaced'):
        net(torch.randn(2, 3, 64, 64))
