"""ELAResNet on mmdet's ResNet family."""
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.backbones import ResNet as PlainResNet
from mmdet.registry import MODELS

from ela_mm import LayerMemory, adjacent_kl
from ela_mm.hosts.mmdet import ELAResNet

SMALL = dict(depth=18, base_channels=16, norm_eval=False)


def image(batch=2, side=64):
    return torch.randn(batch, 3, side, side)


def randomized(net):
    """Give every parameter a value of its own, scales of 0 included."""
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return net


def assert_same(outs, others):
    assert len(outs) == len(others)
    for out, other in zip(outs, others):
        assert torch.equal(out, other)


# --- the architecture --------------------------------------------------------


@pytest.mark.parametrize('depth, layers, values', [(18, 8, 4), (34, 16, 12),
                                                   (50, 16, 12),
                                                   (101, 33, 29),
                                                   (152, 50, 46)])
def test_number_of_layers_and_of_kl_values(depth, layers, values):
    net = MODELS.build(
        dict(type='mmdet.ELAResNet', depth=depth, base_channels=16)).eval()
    seen = []
    net.observe(lambda name, prev, curr: seen.append(
        (name, adjacent_kl(prev, curr))))
    with torch.no_grad():
        net(image(1, 32))
    assert len(net.attention_layers) == len(net.active) == layers
    assert len(seen) == values
    assert not any(name.endswith('.0') for name, _ in seen)
    net.observe(None)
    with torch.no_grad():
        net(image(1, 32))
    assert len(seen) == values


@pytest.mark.parametrize('cls, arguments', [
    ('ELAResNeXt', dict(depth=50, groups=4, base_width=4)),
    ('ELAResNetV1d', dict(depth=50)),
    ('ELAResNet', dict(depth=50, style='caffe', with_cp=True, avg_down=True)),
    ('ELAResNet', dict(depth=18, attention='light', with_cp=True)),
    ('ELAResNet', dict(depth=50, deep_stem=True, strides=(1, 2, 2, 1),
                       dilations=(1, 1, 1, 2), out_indices=(3, ))),
    ('ELAResNet', dict(depth=50, num_stages=3, strides=(1, 2, 2),
                       dilations=(1, 1, 1), out_indices=(2, ), plugins=[
        dict(cfg=dict(type='ContextBlock', ratio=1. / 4),
             stages=(False, True, True), position='after_conv3')])),
])
def test_takes_the_arguments_of_its_host(cls, arguments):
    net = MODELS.build(
        dict(type=f'mmdet.{cls}', base_channels=32, norm_eval=False,
             **arguments))
    net.train()
    loss = sum(out.square().mean() for out in net(image()))
    loss.backward()
    assert loss.isfinite()


def test_parameters_match_the_paper():
    """Table 2's parameters, in millions, with a classifier of 1000 classes."""
    head = 2048 * 1000 + 1000
    for attention, millions in ((None, 25.557), ('base', 25.723), ('light',
                                                                   25.738)):
        net = ELAResNet(50, attention=attention)
        count = sum(p.numel() for p in net.parameters()) + head
        assert round(count / 1e6, 3) == millions


def test_attention_none_is_the_plain_network():
    plain, net = PlainResNet(18), ELAResNet(18, attention=None)
    assert list(plain.state_dict()) == list(net.state_dict())
    assert net.attention_layers == []
    net.load_state_dict(plain.state_dict())
    x = image()
    assert_same(net.eval()(x), _eval(plain)(x))


def _eval(net):
    net.eval()  # returns None in the hosts
    return net


def test_stages_count_and_index_like_the_hosts():
    net = ELAResNet(**SMALL)
    assert len(net.layer1) == len(list(net.layer1)) == 2
    assert net.layer1[-1] is getattr(net.layer1, '1')


# --- loading -----------------------------------------------------------------


@pytest.mark.parametrize('attention', ['base', 'light'])
def test_plain_weights_load_with_only_attention_missing(attention):
    plain = PlainResNet(50, base_channels=16)
    net = ELAResNet(50, base_channels=16, attention=attention)
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing and all('.attention.' in key for key in missing)


def test_zero_init_equals_the_plain_network_bit_for_bit_and_learns():
    """From mmengine's own init, as a config does it."""
    plain = _eval(randomized(PlainResNet(50, base_channels=16)))
    net = ELAResNet(
        50, base_channels=16, norm_eval=False, zero_init_attention=True)
    net.load_state_dict(plain.state_dict(), strict=False)
    x = image()
    assert_same(net.eval()(x), plain(x))

    net.train()
    attention = {
        name: parameter
        for name, parameter in net.named_parameters() if '.attention.' in name
    }
    reached = set()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        sum(out.square().mean() for out in net(image())).backward()
        reached |= {n for n, p in attention.items() if p.grad.any()}
        optimizer.step()
    # A stage's first query weighs one entry, whose softmax is constant.
    first = {f'layer{i}.attention.0.query.weight' for i in (1, 2, 3, 4)}
    # The first layer's key is seen by the later queries of its stage.
    assert set(attention) - reached == first


def test_checkpoint_carries_the_mask(tmp_path):
    net = randomized(ELAResNet(**SMALL)).eval()
    net.skip_layers(['layer1.1', 'layer3.0'])
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    other = ELAResNet(**SMALL).eval()
    other.load_state_dict(
        torch.load(tmp_path / 'net.pth', weights_only=True), strict=True)
    assert other.attention_layers == net.attention_layers
    x = image()
    assert_same(other(x), net(x))


def test_checkpoint_without_a_mask_loads_as_all_active():
    net = ELAResNet(**SMALL)
    state = {k: v for k, v in net.state_dict().items()
             if k not in ('active', 'visible')}
    net.skip_layers(['layer2.1'])
    assert not net.layer2.attention[1].value.weight.requires_grad
    net.load_state_dict(state, strict=True)
    assert all(layer.active for layer in net.attention_layers)
    assert all(p.requires_grad for p in net.parameters())


def test_a_state_dict_of_something_else_leaves_the_mask():
    model = torch.nn.ModuleDict(
        dict(backbone=ELAResNet(**SMALL), head=torch.nn.Linear(2, 2)))
    model.backbone.skip_layers(['layer2.1'])
    model.load_state_dict(
        dict(model.head.state_dict(prefix='head.')), strict=False)
    assert not model.backbone.layer2.active[1]


def test_mask_of_another_depth_is_refused():
    with pytest.raises(ValueError, match='mask of 16 attention.*has 8'):
        ELAResNet(**SMALL).load_state_dict(
            ELAResNet(34, base_channels=16).state_dict(), strict=False)


def test_scaled_attention_and_unscaled_configs():
    """A scale is never dropped, and a missing one is 1."""
    scaled = ELAResNet(**SMALL, zero_init_attention=True).eval()
    plain = randomized(ELAResNet(**SMALL)).eval()
    with pytest.raises(ValueError, match='zero_init_attention=True'):
        plain.load_state_dict(scaled.state_dict(), strict=False)
    scaled.load_state_dict(plain.state_dict())
    x = image()
    assert_same(scaled(x), plain(x))


# --- skipping ----------------------------------------------------------------


def by_hand(net, x, skipped, keep_values):
    """The network without the skipped layers, built from its parts."""
    x = net.maxpool(net.relu(net.norm1(net.conv1(x))))
    outs = []
    for name in net.res_layers:
        stage = getattr(net, name)
        memory = LayerMemory()
        for i, attention in enumerate(stage.attention):
            x = stage._modules[str(i)](x)
            if f'{name}.{i}' not in skipped:
                x = x + attention(x, memory)
            elif keep_values:
                batch, channels = x.shape[:2]
                pooled = x.mean((2, 3)).view(batch, 1, channels)
                memory.keys.append(
                    attention.key(pooled).view(batch, -1, attention.head_dim))
                memory.values.append(attention.value(x))
        outs.append(x)
    return outs


names_34 = [f'layer{s}.{i}' for s, n in enumerate((3, 4, 6, 3), 1)
            for i in range(n)]


@settings(max_examples=12, deadline=None)
@given(st.sets(st.sampled_from(names_34)), st.booleans())
def test_any_mask_equals_the_network_without_those_layers(skipped, retrieval):
    torch.manual_seed(0)
    # Norms over two values, as in the last stage here, magnify rounding.
    net = randomized(
        ELAResNet(34, base_channels=16, norm_eval=False)).double()
    net.skip_layers(skipped, 'retrieval' if retrieval else 'layer')
    reference = copy.deepcopy(net)
    net.train()
    reference.train()
    x = image(2, 32).double()
    outs, expected = net(x), by_hand(reference, x, skipped, retrieval)
    for out, other in zip(outs, expected):
        torch.testing.assert_close(out, other, rtol=1e-6, atol=1e-8)
    for features in (outs, expected):
        sum(out.square().mean() for out in features).backward()
    for ours, other in zip(net.parameters(), reference.parameters()):
        if ours.grad is not None:
            torch.testing.assert_close(
                ours.grad, other.grad, rtol=1e-4, atol=1e-6)
    for layer in net.attention_layers:
        attention = getattr(net, f'layer{layer.stage}').attention[layer.index]
        for name, parameter in attention.named_parameters():
            working = layer.active or (
                retrieval and name.startswith(('key', 'value')) and any(
                    other.active and other.stage == layer.stage
                    and other.index > layer.index
                    for other in net.attention_layers))
            assert parameter.requires_grad == working
            assert (parameter.grad is not None) == working


def test_skipping_everything_leaves_the_plain_network():
    net = randomized(ELAResNet(**SMALL)).eval()
    net.skip_layers(layer.name for layer in net.attention_layers)
    plain = PlainResNet(18, base_channels=16)
    plain.load_state_dict({
        k: v
        for k, v in net.state_dict().items() if k in plain.state_dict()
    })
    x = image()
    assert_same(net(x), _eval(plain)(x))


def test_neighbours_are_the_active_ones():
    net = ELAResNet(34, base_channels=16).eval()
    shapes = {}
    net.observe(lambda name, prev, curr: shapes.update(
        {name: (prev.shape[2], curr.shape[2])}))
    net.skip_layers(['layer3.0', 'layer3.2'])
    net(image(1, 32))
    assert [shapes[f'layer3.{i}'] for i in (3, 4, 5)] == [(1, 2), (2, 3),
                                                          (3, 4)]
    assert 'layer3.1' not in shapes  # now the first of its stage
    shapes.clear()
    net = ELAResNet(34, base_channels=16).eval()
    net.observe(lambda name, prev, curr: shapes.update(
        {name: (prev.shape[2], curr.shape[2])}))
    net.skip_layers(['layer3.2'], 'retrieval')
    net(image(1, 32))
    assert shapes['layer3.3'] == (2, 4)  # the skipped layer's key counts


def test_unknown_layers_and_modes_are_named():
    net = ELAResNet(**SMALL)
    with pytest.raises(ValueError, match="'layer9.1'.*layer1.0 to layer4.1"):
        net.skip_layers(['layer1.1', 'layer9.1'])
    assert all(net.active), 'nothing is skipped when one name is wrong'
    with pytest.raises(ValueError, match="skip='some'.*'retrieval'"):
        net.skip_layers(['layer1.1'], 'some')


# --- training modes ----------------------------------------------------------


def test_frozen_stages_freeze_their_attention():
    net = ELAResNet(18, base_channels=16, frozen_stages=1)
    net.train()
    for name, parameter in net.named_parameters():
        frozen = name.startswith(('conv1', 'bn1', 'layer1'))
        assert parameter.requires_grad != frozen
    assert not net.layer1.training and not net.layer1.attention[0].norm.training
    # The mask does not thaw them.
    state = copy.deepcopy(net.state_dict())
    net.skip_layers(['layer1.1', 'layer2.1'])
    net.load_state_dict(state)
    assert not any(p.requires_grad for p in net.layer1.parameters())
    assert all(p.requires_grad for p in net.layer2.parameters())


def test_norm_eval_spares_fresh_attention_alone():
    net = ELAResNet(18, base_channels=16, norm_eval=True, frozen_stages=1)
    assert net.train() is net
    assert not net.layer2[0].bn1.training
    assert net.layer2.attention[0].norm.training
    assert not net.layer1.attention[0].norm.training, 'a frozen stage'
    before = net.layer2.attention[0].norm.running_mean.clone()
    net(image())
    assert not torch.equal(net.layer2.attention[0].norm.running_mean, before)
    # Decided once: now they have seen data, and yet stay.
    net.eval()
    net.train()
    assert net.layer2.attention[0].norm.training
    # Who loads the weights goes on with the decision, with any hook or none.
    other = ELAResNet(18, base_channels=16, norm_eval=True)
    other.train()  # too early: the weights come after
    other.load_state_dict(net.state_dict())
    other.train()
    assert other.fresh_norms == net.fresh_norms and len(net.fresh_norms) == 6
    assert other.layer2.attention[0].norm.training
    assert not other.layer1.attention[0].norm.training
    # Weights of a time before the buffer, or on request: decided anew.
    state = net.state_dict()
    del state['fresh_norm_mask']
    other.load_state_dict(state, strict=True)
    net.fresh_norms = None
    for decided_anew in (other, net):
        decided_anew.train()
        assert not any(x.startswith('layer2') for x in decided_anew.fresh_norms)
        assert not decided_anew.layer2.attention[0].norm.training


def test_light_attention_has_the_rule_of_fresh_norms():
    options = dict(depth=18, base_channels=32, norm_eval=True,
                   attention='light')
    net = ELAResNet(**options, frozen_stages=1)
    net.train()
    assert net.layer2.attention[0].norm.training
    assert not net.layer1.attention[0].norm.training, 'a frozen stage'
    net(image())
    assert net.layer2.attention[0].norm.running_mean.any()
    assert not net.layer2[0].bn1.training
    # Decided once, and the weights carry the decision.
    other = ELAResNet(**options)
    other.load_state_dict(net.state_dict())
    other.train()
    assert other.fresh_norms == net.fresh_norms and len(net.fresh_norms) == 6
    assert other.layer2.attention[0].norm.training
    # Attention that was trained under norm_eval=False has seen data.
    trained = ELAResNet(**{**options, 'norm_eval': False})
    trained.train()
    trained(image())
    state = trained.state_dict()
    other.load_state_dict(state)
    other.train()
    assert not other.fresh_norms
    assert not any(layer.norm.training for layer in other.layer2.attention)


@pytest.mark.parametrize('attention', ['base', 'light'])
def test_a_zero_start_is_plain_also_in_training_and_in_half(attention):
    """The same features and gradients of the blocks, bit for bit."""
    plain = randomized(PlainResNet(18, base_channels=32, norm_eval=False))
    net = ELAResNet(18, base_channels=32, norm_eval=False,
                    attention=attention, zero_init_attention=True)
    net.load_state_dict(plain.state_dict(), strict=False)
    for dtype in (torch.float32, torch.bfloat16):
        x = image().to(dtype)
        outs = []
        for model in (plain, net):
            model.to(dtype).train()
            outs.append(model(x))
            model.zero_grad()
            sum(out.square().mean() for out in outs[-1]).backward()
        assert_same(*outs)
        for name, parameter in plain.named_parameters():
            assert torch.equal(net.get_parameter(name).grad, parameter.grad)
        scales = [p.grad for n, p in net.named_parameters()
                  if n.endswith('scale.weight')]
        assert len(scales) == 8 and all(grad.any() for grad in scales)


def test_light_attention_starts_from_the_plain_network():
    plain = _eval(randomized(PlainResNet(18, base_channels=32)))
    net = ELAResNet(18, base_channels=32, norm_eval=False, attention='light',
                    zero_init_attention=True)
    net.load_state_dict(plain.state_dict(), strict=False)
    x = image()
    assert_same(net.eval()(x), plain(x))
    net.train()
    sum(out.square().mean() for out in net(x)).backward()
    assert net.layer2.attention[1].scale.weight.grad.any()


def test_fresh_norms_are_trained_whatever_the_pretrained_ones_are():
    net = ELAResNet(
        18, base_channels=16, norm_cfg=dict(type='BN', requires_grad=False))
    assert net.layer1.attention[0].norm.weight.requires_grad
    assert not net.layer1[0].bn1.weight.requires_grad


class FiveStages(ELAResNet):
    """As users extend a backbone, before its layers are counted, or after."""

    def __init__(self, before: bool) -> None:
        self.before = before
        super().__init__(18, base_channels=16, norm_eval=False)
        if not before:
            self.add_fifth()

    def add_attention(self) -> None:
        super().add_attention()
        if self.before:
            self.add_fifth()

    def add_fifth(self) -> None:
        self.layer5 = self.make_res_layer(
            block=self.block, inplanes=self.inplanes, planes=128, num_blocks=2,
            stride=2, norm_cfg=self.norm_cfg)
        self.res_layers.append('layer5')
        self.out_indices = range(5)


def test_a_subclass_may_add_stages():
    net = FiveStages(before=True).eval()
    net.skip_layers(['layer5.1'])
    loaded = FiveStages(before=True).eval()
    loaded.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert len(net(x)) == 5 and net.layer5.active == [True, False]
    assert all(map(torch.equal, net(x), loaded(x)))
    late = FiveStages(before=False)
    for use in (late.eval, late.train, lambda: late.attention_layers):
        with pytest.raises(ValueError, match='10 attention layers and a mask '
                                             r'for 8.*in add_attention\(\)'):
            use()


def test_inert_layers_are_those_that_cannot_learn():
    net = ELAResNet(
        18, base_channels=16, frozen_stages=1, zero_init_attention=True)
    assert net.inert_layers == ['layer1.0', 'layer1.1']
    with torch.no_grad():
        net.layer1.attention[0].scale.weight[3] = 1
    assert net.inert_layers == ['layer1.1']
    assert ELAResNet(18, base_channels=16, frozen_stages=1).inert_layers == []


@pytest.mark.parametrize('arguments, message', [
    (dict(attention='mrla'), "attention='mrla'.*'base'"),
    (dict(head_dim=48), 'head_dim=48.*16 channels'),
    (dict(attention='light', act=False), "knows no act.*of 'base', 'dla-base'"),
    (dict(attention=None, act=False), "'base'"),
])
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ELAResNet(18, base_channels=16, **arguments)
