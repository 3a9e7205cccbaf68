"""Layer attention in every family of backbones."""
import copy
import warnings
from importlib.util import find_spec

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import ImageClassifier
from support.families import (
    FAMILIES,
    TWINS,
    each_family,
    flat,
    loss_of,
    pictures,
    randomize,
)
from support.layers_seen import as_map, formula, run_and_see

from ela_mm.errors import UsageError
from ela_mm.sparsity.stages import find_stages

each_family = each_family()
_NETWORKS = {}


def network(name):
    """A network in double and eval mode with weights as if it were trained."""
    if name not in _NETWORKS:
        torch.manual_seed(1)
        net = FAMILIES[name].build(zero_init_attention=True)
        _NETWORKS[name] = randomize(net).double().eval()
    return copy.deepcopy(_NETWORKS[name])


def assert_same(outs, others):
    outs, others = flat(outs), flat(others)
    assert len(outs) == len(others)
    for out, other in zip(outs, others):
        assert torch.equal(out, other)


@settings(max_examples=2 * (len(FAMILIES) - len(TWINS)), deadline=None,
          phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.data())
def test_every_layer_adds_what_the_equations_say(data):
    """With any mask, by either way of skipping, on maps of any shape."""
    name = data.draw(st.sampled_from(sorted(set(FAMILIES) - set(TWINS))))
    net, family = network(name), FAMILIES[name]
    names = [layer.name for layer in net.attention_layers]
    net.skip_layers(data.draw(st.sets(st.sampled_from(names))),
                    data.draw(st.sampled_from(['layer', 'retrieval'])))
    size = family.size
    if family.sides:
        size = [data.draw(st.sampled_from(family.sides)) for _ in range(2)]
    with torch.no_grad():
        seen = run_and_see(net, pictures(family, size, 1).double())
    attended = 0
    for stage, layers in zip(net.attention_stages, seen):
        terms = formula(stage, [layer.of_block for layer in layers],
                        [side // family.patch for side in size])
        for i, (layer, term) in enumerate(zip(layers, terms)):
            torch.testing.assert_close(
                layer.after, layer.of_block + term, rtol=1e-9, atol=1e-9,
                msg=lambda m, n=f'{name}, {stage.name}.{i}': f'{n}: {m}')
            attended += bool(term.any())
    assert attended == sum(layer.active for layer in net.attention_layers)


@each_family
def test_plain_weights_load_and_a_zero_start_is_the_plain_network(name):
    family = FAMILIES[name]
    torch.manual_seed(2)
    plain = family.build_plain()
    randomize(plain)
    net = family.build(zero_init_attention=True)
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    lost = [] if family.strict else plain.load_state_dict(
        plain.state_dict(), strict=False).missing_keys
    assert missing and all('.attention.' in key or key in lost
                           for key in missing)
    x = pictures(family)
    for mode in (True, False):
        outs = []
        for model in (plain, net):
            model.train(mode)
            torch.manual_seed(5)  # drop path
            outs.append(model(x))
        assert_same(*outs)


@each_family
def test_gradients_are_the_slopes_of_the_loss(name):
    """Against central differences, along a random direction."""
    if not FAMILIES[name].smooth:
        pytest.skip('central differences see its jumps')
    net = network(name)
    x = pictures(FAMILIES[name], batch=1).double()
    loss_of(net(x)).backward()
    parameters = [p for n, p in net.named_parameters() if '.attention.' in n]
    assert all(p.grad is not None for p in parameters)
    directions = [torch.randn_like(p) for p in parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions))

    def moved(step):
        with torch.no_grad():
            for p, d in zip(parameters, directions):
                p += step * d
            loss = loss_of(net(x))
            for p, d in zip(parameters, directions):
                p -= step * d
        return loss

    step = 1e-6
    expected = (moved(step) - moved(-step)) / (2 * step)
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-6)


@each_family
def test_kl_is_seen_within_stages_and_masks_travel_in_checkpoints(name):
    """In whole checkpoints, and in those that lack what nobody reads."""
    net = network(name)
    x = pictures(FAMILIES[name]).double()
    seen = []
    net.observe(lambda layer, prev, curr: seen.append(
        (layer, prev.shape[-1], curr.shape[-1])))
    out = net(x)
    layers = net.attention_layers
    assert seen == [(layer.name, layer.index, layer.index + 1)
                    for layer in layers if layer.index]
    found = find_stages(net)  # for CKA
    assert [len(x) for x in found.values()] == list(
        map(len, net.attention_stages))
    assert all(net.get_submodule(name) is block
               for blocks in found.values() for name, block in blocks.items())
    skipped = [layer.name for layer in layers if layer.index == 1]
    net.skip_layers(skipped)
    other = FAMILIES[name].build(zero_init_attention=True).double().eval()
    other.load_state_dict(net.state_dict(), strict=FAMILIES[name].strict)
    assert other.attention_layers == net.attention_layers
    assert_same(other(x), net(x))
    # What skipped layers keep is used by nobody, and comes back.
    state = other.state_dict()
    unused = {key for names in other.unused_state().values() for key in names}
    assert len(unused) >= len(skipped)
    for key in unused:
        if state[key].is_floating_point():
            state[key].fill_(float('nan'))
    assert_same(other(x), net(x))
    deployed = FAMILIES[name].build(zero_init_attention=True).double().eval()
    deployed.load_state_dict(
        {key: value for key, value in net.state_dict().items()
         if key not in unused}, strict=FAMILIES[name].strict)
    assert_same(deployed(x), net(x))
    net.observe(None)
    net.restore_layers()
    assert_same(net(x), out)


@each_family
def test_frozen_stages_freeze_their_attention_as_the_host_counts(name):
    family = FAMILIES[name]
    plain = family.build_plain()
    if not hasattr(plain, 'frozen_stages') or family.frozen_stages is None:
        pytest.skip('the host freezes no stages')
    try:
        family.build_plain(frozen_stages=family.frozen_stages)
    except AttributeError as error:  # BEiT of MMPretrain 1.0
        pytest.skip(f'the host fails itself: {error}')
    net = family.build(frozen_stages=family.frozen_stages,
                       zero_init_attention=True)
    net.train()
    frozen = {layer.name for layer in net.attention_layers
              if net.is_frozen(layer)}
    assert frozen and len(frozen) < len(net.attention_layers)
    for layer in net.attention_layers:
        block = net.attention_stages[layer.stage - 1].block(layer.index)
        for module in (layer.module, block):
            trained = {p.requires_grad for n, p in module.named_parameters()
                       if not n.endswith('relative_pos')}  # which is fixed
            assert trained == {layer.name not in frozen}, layer.name
        assert layer.module.training == block.training
    assert set(net.inert_layers) == frozen


@each_family
def test_what_makes_no_sense_is_refused_by_name(name):
    family = FAMILIES[name]
    with pytest.raises(UsageError, match="attention='dia'.*'base'"):
        family.build(attention='dia')
    with pytest.raises(UsageError, match='head_dim=7 does not divide'):
        family.build(head_dim=7)
    if 'attention_groups' not in family.config:
        with pytest.raises(UsageError, match='attention_groups=4.*stages'):
            family.build(attention_groups=4)


def test_head_dim_fits_the_channels_of_every_stage():
    net = FAMILIES['regnet'].build()
    assert net.stage_widths[-1] % 16 == 8
    assert {layer.module.head_dim for layer in net.attention_layers} == {8}
    with pytest.raises(UsageError, match='head_dim=16 does not divide the'):
        FAMILIES['regnet'].build(head_dim=16)
    arch = dict(depths=[1, 2], channels=[16, 24])  # the second decides
    net = FAMILIES['convnext'].build(arch=arch, out_indices=(1, ))
    assert {layer.module.head_dim for layer in net.attention_layers} == {8}


@pytest.mark.parametrize('name, config, depths', [
    # Table 1 of EfficientNet's paper.
    ('efficientnet', dict(arch='b0'), [1, 2, 2, 3, 3, 4, 1]),
    ('mobilenet_v3', dict(arch='large'), [1, 2, 3, 4, 2, 3]),
    ('vgg', dict(depth=19, num_stages=5, dilations=[1] * 5), [2, 2, 4, 4, 4]),
])
def test_runs_of_blocks_of_one_width_and_size(name, config, depths):
    net = FAMILIES[name].build(**config, out_indices=[0])
    assert [len(stage) for stage in net.attention_stages] == depths
    blocks = [stage.block_name(i) for stage in net.attention_stages
              for i in range(len(stage))]
    assert blocks == sorted(blocks, key=list(
        dict(net.named_modules())).index)


def test_an_output_within_a_run_has_attention():
    """And freezing takes a part of a run."""
    net = network('mobilenet_v3')
    with torch.no_grad():
        x = pictures(FAMILIES['mobilenet_v3'], batch=1).double()
        steps = run_and_see(net, x)
        assert torch.equal(net(x)[0], steps[2][0].after)  # layer4
    net = FAMILIES['mobilenet_v3'].build(frozen_stages=5)
    assert [layer.index for layer in net.attention_layers
            if layer.stage == 3 and net.is_frozen(layer)] == [0, 1]


def test_the_recursive_pass_of_detectors_attends():
    """Block by block as the host walks them, with attention by hand."""
    torch.manual_seed(1)
    net = randomize(FAMILIES['detectors'].build(rfp_inplanes=8))
    net.double().eval()
    net.skip_layers(['layer2.1', 'layer3.4'])
    x = pictures(FAMILIES['detectors'], (32, 48), 1).double()
    features = [None] + [torch.randn(1, 8, 32 // s, 48 // s).double()
                         for s in (8, 16, 32)]
    with torch.no_grad():
        outs = net.rfp_forward(x, features)
        y = net.maxpool(net.relu(net.norm1(net.conv1(x))))
        for stage, feature, out in zip(net.attention_stages, features, outs):
            maps = []
            for i in range(len(stage)):
                maps.append(stage.block(i).rfp_forward(y, feature))
                y = maps[-1] + formula(stage, maps)[-1]
            torch.testing.assert_close(out, y, rtol=1e-9, atol=1e-9)


def test_branches_of_trident_attend_each_for_itself():
    """In eval mode, where norms do not mix them."""
    net = network('trident')
    for block in net.layer3:
        block.test_branch_idx = block.conv2.test_branch_idx = -1
    x = pictures(FAMILIES['trident'], (32, 32), 1).double()
    with torch.no_grad():
        (joined, ) = net(x)
        for branch, expected in enumerate(joined):
            for block in net.layer3:
                block.test_branch_idx = branch
                block.conv2.test_branch_idx = branch
            torch.testing.assert_close(as_map(net(x))[0], expected,
                                       rtol=1e-9, atol=1e-9)


def test_parameters_of_deit_tiny_are_those_of_mrla():
    """11 C + 2 k a layer: value 9 C, norm 2 C, query and key of k = 5."""
    net = MODELS.build(dict(type='mmpretrain.ELAVisionTransformer',
                            arch='deit-tiny'))
    count = sum(p.numel() for n, p in net.named_parameters()
                if '.attention.' in n)
    assert count == 12 * (11 * 192 + 2 * 5) == 25464
    assert [layer.name for layer in net.attention_layers[3:5]] == [
        'layers.group1.3', 'layers.group2.0']


def test_groups_of_a_plain_transformer():
    family = FAMILIES['vit']
    net = family.build(attention_groups=None)
    assert [len(stage) for stage in net.attention_stages] == [7]
    assert [len(s) for s in family.build().attention_stages] == [3, 3, 1]
    for wrong in (1, 0, 2.5, 'all'):
        with pytest.raises(UsageError, match='attention_groups=.*2 or more'):
            family.build(attention_groups=wrong)


BY_NAME = 'LearningRateDecayOptimizerConstructor'
# Host, family, constructor and its options.
RATES = [
    ('mmdet', 'convnext', BY_NAME, dict(decay_rate=.5, num_layers=6)),
    ('mmseg', 'convnext', BY_NAME, dict(decay_rate=.5, num_layers=6)),
    ('mmseg', 'convnext', BY_NAME, dict(
        decay_rate=.5, num_layers=6, decay_type='stage_wise')),
    ('mmseg', 'beit_seg', BY_NAME, dict(
        decay_rate=.5, num_layers=7, decay_type='layer_wise_vit')),
    ('mmseg', 'mae_seg', 'LayerDecayOptimizerConstructor', dict(
        layer_decay_rate=.5, num_layers=7)),
    *(('mmpretrain', name, 'LearningRateDecayOptimWrapperConstructor',
       dict(layer_decay_rate=.5)) for name in (
        'convnext', 'swin', 'vit', 'distilled', 'beit', 'vit_sam', 'res2net',
        'mixmim')),
]


@pytest.mark.parametrize('host, name, constructor, options', [
    rate for rate in RATES if find_spec(rate[0])])
def test_attention_learns_at_the_rate_of_its_block(
        host, name, constructor, options):
    """By the hosts' constructors, under the names that configs give."""
    if host == 'mmpretrain':
        with DefaultScope.overwrite_default_scope(host):
            model = ImageClassifier(FAMILIES[name].config)
    else:
        model = torch.nn.Module()
        model.backbone = FAMILIES[name].build()
    config = dict(constructor=constructor, paramwise_cfg=dict(options),
                  optimizer=dict(type='AdamW', lr=1., weight_decay=.05))
    with DefaultScope.overwrite_default_scope(host), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that mmseg will rename its own
        optimizer = build_optim_wrapper(model, config).optimizer
    rate = {id(p): group['lr'] for group in optimizer.param_groups
            for p in group['params']}
    assert all(id(p) in rate for p in model.parameters() if p.requires_grad)
    rates = set()
    for layer in model.backbone.attention_layers:
        stage = model.backbone.attention_stages[layer.stage - 1]
        own, block = ({rate[id(p)] for p in module.parameters()}
                      for module in (layer.module, stage.block(layer.index)))
        assert own == block and len(own) == 1, layer.name
        rates |= own
    assert len(rates) > 2


def test_weights_of_earlier_versions_of_swin_load():
    """The host renames their keys for its own class alone."""
    net = FAMILIES['swin'].build(out_indices=(3, ))
    plain = randomize(FAMILIES['swin'].build(attention=None,
                                             out_indices=(3, )))
    old = {key.replace('norm3.', 'norm.', 1) if key.startswith('norm3.')
           else key: value for key, value in plain.state_dict().items()}
    old['stages.0.blocks.1.attn.attn_mask'] = torch.zeros(1)
    missing, unexpected = net.load_state_dict(old, strict=False)
    assert not unexpected
    assert missing and all('.attention.' in key for key in missing)
    assert torch.equal(net.norm3.weight, plain.norm3.weight)


@pytest.mark.parametrize('name, option', [
    ('convnext', 'with_cp'), ('swin_det', 'with_cp'), ('hornet', 'with_cp'),
    ('tinyvit', 'use_checkpoint'), ('replknet', 'with_cp')])
def test_checkpointed_blocks_give_the_same_gradients(name, option):
    torch.manual_seed(1)
    nets = [FAMILIES[name].build(**{option: on}).double()
            for on in (False, True)]
    nets[1].load_state_dict(randomize(nets[0]).state_dict())
    for net in nets:
        net.eval()
    x = pictures(FAMILIES[name]).double().requires_grad_()
    seen = [[], []]  # which weights, once each
    for net, names in zip(nets, seen):
        net.observe(lambda layer, *weights, names=names: names.append(layer))
        loss_of(net(x)).backward()
    assert seen[0] == seen[1]
    for ours, other in zip(*(net.parameters() for net in nets)):
        torch.testing.assert_close(ours.grad, other.grad)


def test_another_norm_of_attention():
    """Batch norm in a network that has none, spared by norm_eval while fresh."""
    net = FAMILIES['swin'].build(
        attention_norm_cfg=dict(type='BN'), norm_eval=True)
    net.train()
    norms = [layer.module.norm for layer in net.attention_layers]
    assert all(type(norm) is torch.nn.BatchNorm2d for norm in norms)
    assert all(norm.training for norm in norms)
    with pytest.raises(UsageError, match='knows no attention_norm_cfg'):
        FAMILIES['swin'].build(
            attention=None, attention_norm_cfg=dict(type='BN'))


def test_another_norm_of_tokens():
    """A layer norm alone, which has no places to go by."""
    net = FAMILIES['vit'].build(attention_norm_cfg=dict(type='LN', eps=1e-3))
    assert {layer.module.norm.eps for layer in net.attention_layers} == {1e-3}
    with pytest.raises(UsageError, match="'BN'.*behind a layer norm"):
        FAMILIES['vit'].build(attention_norm_cfg=dict(type='BN'))


def test_a_skipped_retrieval_of_tokens_keeps_its_norm():
    """Keys and values come from normed tokens there."""
    net = FAMILIES['vit'].build()
    net.skip_layers(['layers.group1.1'], 'retrieval')
    used = {name for name, p in net.layers.group1.attention[1]
            .named_parameters() if p.requires_grad}
    assert used == {'norm.weight', 'norm.bias', 'key.weight', 'value.weight'}
    assert net.unused_state() == {
        'layers.group1.1': ['layers.group1.attention.1.query.weight']}
