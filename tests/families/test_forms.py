"""Families whose blocks are several modules, or pass on other than maps."""
import pytest
import torch
from support.complexity import needs_counter
from support.families import FAMILIES, flat, pictures, randomize
from support.layers_seen import run_and_see

from ela_mm.analysis.cost import measure_cost
from ela_mm.analysis.features import _tap
from ela_mm.models.backbones.pictures import picture_channels


@needs_counter
@pytest.mark.parametrize('name, beside', [
    ('mobileone', ()), ('pcpvt', ('position_encodings.1.', ))])
def test_what_leads_to_a_block_is_no_cost_of_attention(name, beside):
    """Nor is it a part of the features that leave the block before."""
    net = FAMILIES[name].build().eval()
    cost = measure_cost(net, FAMILIES[name].size, batch=1, rounds=1,
                        training=False)
    stage, layers = cost.stages[1], cost.layers[1:3]
    assert stage.macs_before == sum(layer.macs for layer in layers)
    assert stage.attention_parameters + stage.parameters == sum(
        p.numel() for key, p in net.named_parameters()
        if key.startswith((f'{stage.name}.', *beside)))
    x, seen = pictures(FAMILIES[name]), []
    with _tap(net, f'{stage.name}.0') as tap, torch.no_grad():
        tap.register_forward_hook(lambda module, args, out: seen.append(out))
        steps = run_and_see(net, x)
    assert torch.equal(seen[0], steps[1][0].after)


def test_levit_attends_when_its_norms_are_fused():
    """By the host's switch, and where it is built so."""
    torch.manual_seed(1)
    net = FAMILIES['levit'].build(zero_init_attention=True)
    net = randomize(net).double().eval()
    x = pictures(FAMILIES['levit']).double()
    fused = FAMILIES['levit'].build(
        deploy=True, zero_init_attention=True).double()
    with torch.no_grad():
        expected = net(x)
        net.switch_to_deploy()
        fused.load_state_dict(net.state_dict())
        for model in (net, fused.eval()):
            for out, other in zip(model(x), expected):
                torch.testing.assert_close(out, other, rtol=1e-5, atol=1e-5)


@needs_counter
@pytest.mark.parametrize('name', ['levit', 'densenet', 'mvit', 'conformer'])
def test_costs_and_features_of_blocks_that_pass_on_other_than_maps(name):
    """Lists, tokens, two branches: what leaves a layer is what is tapped."""
    family = FAMILIES[name]
    net = family.build()
    cost = measure_cost(net, family.size, batch=2, rounds=1, training=True)
    assert [len(stage) for stage in net.attention_stages] == [
        len([layer for layer in cost.layers if layer.name.startswith(
            f'{stage.name}.')]) for stage in net.attention_stages]
    net.eval()
    x = pictures(family)
    for layer in net.attention_layers[:4]:
        seen = []
        with _tap(net, layer.name) as tap, torch.no_grad():
            tap.register_forward_hook(
                lambda module, args, out, seen=seen: seen.append(out))
            steps = run_and_see(net, x)
        after = steps[layer.stage - 1][layer.index].after
        assert torch.equal(seen[0], after), layer.name


def test_pictures_that_are_unfolded_first_have_three_channels():
    """No convolution says how many, but that of attention."""
    assert picture_channels(FAMILIES['t2t'].build()) == 3


def test_memory_of_mvit_starts_anew_at_another_width_or_size():
    """Both change at once, or the width a block before the size."""
    for at_once, sizes in ((True, [1, 3, 3]), (False, [1, 2, 1, 3])):
        net = FAMILIES['mvit'].build(dim_mul_in_attention=at_once)
        assert [len(stage) for stage in net.attention_stages] == sizes
        assert all(out.isfinite().all() for out in flat(net(
            pictures(FAMILIES['mvit']))))


def test_attention_of_van_has_the_norm_of_its_blocks():
    """The host's norm_cfg is that of what it returns."""
    for norm_cfg in (dict(type='LN'), dict(type='LN', eps=1e-6)):
        net = FAMILIES['van'].build(norm_cfg=norm_cfg)
        assert {type(layer.module.norm) for layer in net.attention_layers
                } == {torch.nn.BatchNorm2d}
