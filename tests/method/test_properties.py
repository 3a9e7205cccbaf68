"""Any mask, any depth: what holds of every pruned network."""
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ela_mm import adjacent_kl
from ela_mm.hosts import mmdet, mmpretrain

# Small copies of every arrangement of stages, with both kinds of blocks.
NETWORKS = {
    'R18': lambda: mmdet.ELAResNet(18, base_channels=16, norm_eval=False),
    'R34': lambda: mmdet.ELAResNet(34, base_channels=16, norm_eval=False),
    'R50': lambda: mmpretrain.ELAResNet(50, base_channels=16, stem_channels=8),
    'R50 scaled': lambda: mmdet.ELAResNet(
        50, base_channels=4, head_dim=8, norm_eval=False,
        zero_init_attention=True, act=False),
    'R101': lambda: mmdet.ELAResNet(101, base_channels=4, norm_eval=False),
    'CIFAR R20': lambda: mmpretrain.ELAResNet_CIFAR(20),
    'CIFAR R56': lambda: mmpretrain.ELAResNet_CIFAR(
        56, base_channels=4, stem_channels=4, head_dim=8),
}


def build(name):
    """A network whose every parameter has a value of its own."""
    net = NETWORKS[name]()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def draw_mask(data, net):
    """Skip a subset of the layers, in one or both modes."""
    names = [layer.name for layer in net.attention_layers]
    share = data.draw(st.sampled_from(['none', 'some', 'all but one', 'all']))
    if share == 'all':
        skipped = names
    elif share == 'all but one':
        last = data.draw(st.sampled_from(names))
        skipped = [name for name in names if name != last]
    elif share == 'some':
        skipped = data.draw(st.lists(st.sampled_from(names), unique=True))
    else:
        skipped = []
    cut = data.draw(st.integers(0, len(skipped)))
    net.skip_layers(skipped[:cut], 'layer')
    net.skip_layers(skipped[cut:], 'retrieval')
    return set(skipped[:cut]), set(skipped[cut:])


def working_parts(net, retrieval):
    """Names of attention modules that take part, by the definition.

    An active layer's, and the key and value of a layer skipped by
    'retrieval', where a later layer of the stage is active to read them.
    """
    parts = {}
    for layer in net.attention_layers:
        read = any(
            other.active and other.stage == layer.stage
            and other.index > layer.index for other in net.attention_layers)
        visible = layer.name in retrieval and read
        prefix = f'layer{layer.stage}.attention.{layer.index}.'
        for part in ('query', 'norm', 'scale', 'key', 'value'):
            parts[prefix + part] = layer.active or (
                visible and part in ('key', 'value'))
    return parts


@settings(max_examples=30, deadline=None)
@given(
    data=st.data(), name=st.sampled_from(sorted(NETWORKS)),
    scale=st.sampled_from([0., 1e-3, 1., 1e4]), batch=st.sampled_from([2, 3]))
def test_forward_and_backward_of_any_mask(data, name, scale, batch):
    torch.manual_seed(data.draw(st.integers(0, 3)))
    net = build(name)
    _, retrieval = draw_mask(data, net)
    divergences = {}
    net.observe(lambda layer, prev, curr: divergences.update(
        {layer: adjacent_kl(prev, curr).item()}))
    net.train()
    outs = net(scale * torch.randn(batch, 3, 32, 32))
    loss = sum(out.square().mean() for out in outs)
    loss.backward()

    assert all(out.isfinite().all() for out in outs)
    parts = working_parts(net, retrieval)
    for key, parameter in net.named_parameters():
        working = next(
            (parts[part] for part in parts if key.startswith(part + '.')),
            True)
        assert parameter.requires_grad == working, key
        assert (parameter.grad is not None) == working, key
        if working:
            assert parameter.grad.isfinite().all(), key
    # Measured: the active layers with an active layer before, in their stage.
    active = [layer for layer in net.attention_layers if layer.active]
    assert set(divergences) == {
        layer.name for i, layer in enumerate(active)
        if i and active[i - 1].stage == layer.stage
    }
    assert all(kl >= -1e-6 for kl in divergences.values())


@settings(max_examples=15, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(NETWORKS)))
def test_any_mask_round_trips(data, name):
    """Through a state dict, into a network with any other mask."""
    torch.manual_seed(0)
    net, other = build(name), build(name)
    draw_mask(data, net)
    draw_mask(data, other)
    state = copy.deepcopy(net.state_dict())
    other.load_state_dict(state, strict=True)
    assert other.attention_layers == net.attention_layers
    assert other.state_dict().keys() == state.keys()
    for key, value in other.state_dict().items():
        assert torch.equal(value, state[key]), key
    for (key, ours), theirs in zip(other.named_parameters(),
                                   net.parameters()):
        assert ours.requires_grad == theirs.requires_grad, key
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for ours, theirs in zip(other.eval()(x), net.eval()(x)):
            assert torch.equal(ours, theirs)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(NETWORKS)))
def test_skipping_at_once_or_one_by_one_is_the_same(data, name):
    names = [layer.name for layer in NETWORKS[name]().attention_layers]
    skipped = data.draw(st.lists(st.sampled_from(names), unique=True))
    mode = data.draw(st.sampled_from(['layer', 'retrieval']))
    torch.manual_seed(0)
    at_once = build(name)
    one_by_one = copy.deepcopy(at_once)
    at_once.skip_layers(skipped, mode)
    for layer in reversed(skipped):
        one_by_one.skip_layers([layer], mode)
        one_by_one.skip_layers([layer], 'retrieval')  # changes nothing
    for stage in at_once.res_layers:
        ours, theirs = (getattr(n, stage) for n in (at_once, one_by_one))
        assert (ours.active, ours.visible) == (theirs.active, theirs.visible)
    for (key, ours), theirs in zip(at_once.state_dict().items(),
                                   one_by_one.state_dict().values()):
        assert torch.equal(ours, theirs), key
    assert [p.requires_grad for p in at_once.parameters()
            ] == [p.requires_grad for p in one_by_one.parameters()]


def test_the_networks_are_of_every_size():
    sizes = {name: len(NETWORKS[name]().attention_layers) for name in NETWORKS}
    assert sizes == pytest.approx({
        'R18': 8, 'R34': 16, 'R50': 16, 'R50 scaled': 16, 'R101': 33,
        'CIFAR R20': 6, 'CIFAR R56': 18})
