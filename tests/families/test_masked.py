"""Layer attention in networks that are trained on masked pictures."""
import copy

import mmpretrain.registry
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from support.families import flat, loss_of, randomize

import ela_mm  # noqa: F401

_VIT = dict(
    arch=dict(embed_dims=32, num_layers=4, num_heads=2,
              feedforward_channels=32),
    img_size=32, patch_size=8, attention_groups=3)
_HIVIT = dict(
    arch=dict(embed_dims=32, depths=[1, 1, 7], num_heads=2), img_size=32,
    patch_size=8, out_indices=[6], attention_groups=4)
_THIRD = torch.arange(16).remainder(3).eq(0).expand(2, 16)

# Network, and what is said beside pictures to mask them; all but the last
# leave patches out.
NETWORKS = {
    'mae': (dict(type='ELAMAEViT', **_VIT), {}),
    'mff': (dict(type='ELAMFFViT', **_VIT, out_indices=[1, 3]), {}),
    'milan': (dict(type='ELAMILANViT', **_VIT),
              dict(importance=torch.arange(1., 33).view(2, 16))),
    'cae': (dict(type='ELACAEPretrainViT', **_VIT, layer_scale_init_value=.1),
            dict(mask=_THIRD)),
    'mae_hivit': (dict(type='ELAMAEHiViT', **_HIVIT), {}),
    'itpn': (dict(type='ELAiTPNHiViT', **_HIVIT), {}),
    'itpn_clip': (dict(type='ELAiTPNHiViT', **_HIVIT,
                       reconstruction_type='clip'), dict(mask=_THIRD)),
    'beit': (dict(type='ELABEiTPretrainViT', **_VIT,
                  layer_scale_init_value=.1), dict(mask=_THIRD)),
    'maskfeat': (dict(type='ELAMaskFeatViT', **_VIT), dict(mask=_THIRD)),
    'simmim': (dict(
        type='ELASimMIMSwinTransformer', img_size=32, pad_small_map=True,
        arch=dict(embed_dims=16, depths=[1, 2, 3, 2], num_heads=[1, 2, 4, 8]),
        stage_cfgs=dict(block_cfgs=dict(window_size=2))),
        dict(mask=_THIRD.repeat_interleave(4, 1))),
}
WHOLE = ('itpn_clip', 'beit', 'maskfeat', 'simmim')
if 'ELAMFFViT' not in mmpretrain.registry.MODELS.module_dict:
    # MMPretrain 1.0: its iTPN takes no out_indices, its CAE no weights.
    for name in ('mff', 'cae', 'itpn', 'itpn_clip'):
        del NETWORKS[name]
each = pytest.mark.parametrize('name', NETWORKS)


def build(name, **options):
    config = copy.deepcopy({**NETWORKS[name][0], **options})
    config['type'] = f'mmpretrain.{config["type"]}'
    return MODELS.build(config)


def build_plain(name):
    config = copy.deepcopy(NETWORKS[name][0])
    config.pop('attention_groups', None)
    config['type'] = f'mmpretrain.{config["type"][3:]}'
    return MODELS.build(config)


def unmasked(name):
    said = NETWORKS[name][1]
    return dict.fromkeys(said or ['mask'])


@each
def test_a_zero_start_is_the_plain_network_masked_and_not(name):
    torch.manual_seed(1)
    plain = randomize(build_plain(name))
    net = build(name, zero_init_attention=True)
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing and all('.attention.' in key for key in missing)
    x = torch.randn(2, 3, 32, 32)
    for said in (NETWORKS[name][1], unmasked(name)):
        for mode in (True, False):
            outs = []
            for model in (plain, net):
                model.train(mode)
                torch.manual_seed(5)  # of masks
                outs.append(flat(model(x, **said)))
            assert all(map(torch.equal, *outs))


@each
def test_every_layer_learns_and_is_seen_by_the_hook(name):
    torch.manual_seed(1)
    net = build(name)
    net.init_weights()
    seen = []
    net.observe(lambda layer, prev, curr: seen.append(
        (layer, prev.shape[-1], curr.shape[-1])))
    loss_of([out for out in flat(net(
        torch.randn(2, 3, 32, 32), **NETWORKS[name][1]))
        if out.is_floating_point() and out.requires_grad]).backward()
    layers = net.attention_layers
    assert seen == [(layer.name, layer.index, layer.index + 1)
                    for layer in layers if layer.index]
    for layer in layers:
        assert layer.module.value.weight.grad.any(), layer.name


def expected(stage, tokens, kept, extra):
    """Equations 4 and 5 among the patches at ``kept``, picture by picture."""
    keys, values, terms = [], [], []
    for i, (layer, x) in enumerate(zip(stage.attention, tokens)):
        x = F.layer_norm(x, x.shape[-1:], layer.norm.weight, layer.norm.bias,
                         layer.norm.eps)
        beside, patches = x[:, :extra], x[:, extra:]  # (B, N, C)
        pooled = patches.mean(1, keepdim=True)
        pad = layer.key.weight.shape[-1] // 2
        if stage.visible[i]:
            value = torch.zeros_like(patches)
            for b, places in enumerate(kept):
                whole = x.new_zeros(1, x.shape[2], 4, 4)
                whole[0, :, places // 4, places % 4] = patches[b].T
                whole = F.conv2d(whole, layer.value.weight, padding=1,
                                 groups=x.shape[2])
                value[b] = whole[0, :, places // 4, places % 4].T
            keys.append(F.conv1d(pooled, layer.key.weight, padding=pad))
            values.append(value)
        if not stage.active[i]:
            terms.append(torch.zeros_like(x))
            continue
        query = F.conv1d(pooled, layer.query.weight, padding=pad)
        d = layer.head_dim
        heads = torch.einsum(
            'bhd,nbhd->bhn', query.reshape(len(x), -1, d), torch.stack(
                [key.reshape(len(x), -1, d) for key in keys]))
        weights = (heads / d**.5).softmax(-1)
        term = torch.einsum('bhn,nbphd->bphd', weights, torch.stack(
            values).unflatten(-1, (-1, d))).flatten(2)
        terms.append(torch.cat([beside, term], 1))
    return terms


@pytest.mark.parametrize('name', [n for n in NETWORKS if n not in WHOLE])
@pytest.mark.parametrize('skip', ['layer', 'retrieval'])
def test_few_patches_attend_where_they_lie(name, skip):
    torch.manual_seed(1)
    net = randomize(build(name)).double().eval()
    net.skip_layers([net.attention_layers[1].name], skip)
    # The host's own choice of patches, by the position embedding they get.
    extra = 0 if 'hivit' in name or name == 'itpn' else 1
    with torch.no_grad():
        net.pos_embed.zero_()
        net.pos_embed[0, extra:, 0] = torch.arange(16)
    first = net.blocks[net.first_block] if not extra else net.layers[0]
    places, tokens = [], [[] for _ in net.attention_layers]
    if extra:
        projection = net.patch_embed.projection
        projection.weight.data.zero_(), projection.bias.data.zero_()
    else:
        net.blocks[net.first_block - 1].register_forward_hook(
            lambda module, args, out: torch.zeros_like(out))
    first.register_forward_pre_hook(
        lambda module, args, kwargs: places.append(
            (args or list(kwargs.values()))[0][:, extra:, 0].round().long()),
        with_kwargs=True)
    layers = net.attention_layers
    for seen, layer in zip(tokens, layers):
        block = net.attention_stages[layer.stage - 1].block(layer.index)
        block.register_forward_hook(
            lambda module, args, out, seen=seen: seen.append(out))
    after = []
    for stage in net.attention_stages:
        stage.register_forward_hook(
            lambda module, args, outs: after.append(outs))
    x = torch.randn(2, 3, 32, 32).double()
    with torch.no_grad():
        net(x, **NETWORKS[name][1])
        (kept, ) = places
        assert 0 < kept.shape[1] < 16 and (kept[0] != kept[1]).any() or (
            name == 'cae')  # its mask is the same for both
        of_block = [seen[0] for seen in tokens]
        for stage, outs in zip(net.attention_stages, after):
            mine, of_block = of_block[:len(stage)], of_block[len(stage):]
            for out, block, term in zip(
                    outs, mine, expected(stage, mine, kept, extra)):
                torch.testing.assert_close(out, block + term, rtol=1e-9,
                                           atol=1e-9)


def test_a_mask_that_leaves_all_is_none():
    """The order of patches is all that differs."""
    torch.manual_seed(1)
    net = randomize(build('mae', mask_ratio=0.)).double().eval()
    net.init_weights()
    x = torch.randn(2, 3, 32, 32).double()
    with torch.no_grad():
        shuffled, _, restore = net(x)
        (whole, ) = net(x, mask=None)
    ordered = shuffled[:, 1:].gather(
        1, restore.unsqueeze(-1).expand(-1, -1, 32))
    torch.testing.assert_close(ordered, whole[:, 1:], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shuffled[:, 0], whole[:, 0])


def test_blocks_of_mocov3_stay_frozen_with_their_attention():
    net = MODELS.build(dict(
        type='mmpretrain.ELAMoCoV3ViT', **_VIT, frozen_stages=2))
    net.train()
    for layer in net.attention_layers:
        block = net.attention_stages[layer.stage - 1].block(layer.index)
        frozen = net.is_frozen(layer)
        assert frozen == (layer.stage == 1 and layer.index < 2)
        for module in (layer.module, block):
            assert module.training != frozen
            assert {p.requires_grad for p in module.parameters()} == {
                not frozen}


@pytest.mark.skipif('itpn' not in NETWORKS, reason='MMPretrain 1.0')
def test_first_weights_of_itpn_are_rescaled_by_depth():
    """The host does so for blocks of its own type alone."""
    torch.manual_seed(1)
    net = build('itpn_clip')
    net.init_weights()
    scale = [float(net.blocks[i].mlp.fc2.weight.std())
             for i in (net.first_block, len(net.blocks) - 1)]
    ratio = (len(net.blocks) / (net.first_block + 1))**.5
    assert scale[0] / scale[1] == pytest.approx(ratio, rel=.1)
