"""The option ``plugins`` of the backbones, with and without layer attention."""
import pytest
import torch
from mmdet.models.backbones import ResNet as MMDetResNet
from mmengine.registry import MODELS
from support.families import randomize
from torch import nn

from ela_mm.errors import UsageError
from ela_mm.hosts import mmdet, mmpretrain
from ela_mm.models.compared import SEAttention, plugins

SE = dict(cfg=dict(type='SEAttention'), position='after_conv3')
NL = dict(cfg=dict(type='NonLocal2d'), position='after_conv3',
          stages=(False, False, True, False), blocks=(4, ))
BAM = dict(cfg=dict(type='BAMAttention'), position='after_conv3',
           stages=(False, True, False, False))
BUILD = dict(
    mmdet=lambda **kw: mmdet.ELAResNet(50, base_channels=16, **kw),
    mmpretrain=lambda **kw: mmpretrain.ELAResNet(
        50, stem_channels=16, base_channels=16, **kw))


@pytest.mark.parametrize('attention', [None, 'base', 'light'])
@pytest.mark.parametrize('host', BUILD)
def test_blocks_have_what_the_option_names(host, attention):
    net = BUILD[host](attention=attention, plugins=[SE, NL], norm_eval=False)
    names = {name for name, _ in net.named_modules()}
    assert sum(n.endswith('.se_attention') for n in names) == 16
    assert [n for n in names if n.endswith('nonlocal_block')] == [
        'layer3.4.nonlocal_block']
    plain = BUILD[host](attention=None)
    missing, unexpected = net.load_state_dict(plain.state_dict(),
                                              strict=False)
    assert not unexpected
    assert all('.attention.' in n or 'se_attention' in n
               or 'nonlocal' in n for n in missing)
    # What they compute reaches the output, and learns.
    x = torch.randn(2, 3, 64, 64)
    net.train()
    sum(out.square().mean() for out in net(x)).backward()
    learned = [p.grad is not None for n, p in net.named_parameters()
               if 'se_attention' in n]
    assert len(learned) == 32 and all(learned)


def test_a_class_is_a_type_as_its_name_is(monkeypatch):
    """Also where mmcv takes names alone, as version 2.0 does."""

    def of_names_alone(cfg, *args, build=plugins.build_plugin_layer, **kwargs):
        assert isinstance(cfg['type'], str)
        return build(cfg, *args, **kwargs)

    monkeypatch.setattr(plugins, 'build_plugin_layer', of_names_alone)
    networks = []
    for kind in ('SEAttention', SEAttention):
        option = [dict(cfg=dict(type=kind, reduction=4, postfix='_b'),
                       position='after_conv3')]
        torch.manual_seed(0)
        networks.append(BUILD['mmpretrain'](plugins=option).state_dict())
        assert option[0]['cfg']['postfix'] == '_b'  # as it was given
    named, own = networks
    assert list(named) == list(own)
    assert any(name.startswith('layer1.0.se_attention_b.') for name in own)
    assert all(torch.equal(named[name], own[name]) for name in own)


@pytest.mark.parametrize('host', BUILD)
def test_the_papers_reduction_is_the_default(host):
    """Of every system; mmcv's ContextBlock has none."""
    option = [dict(cfg=dict(type='ContextBlock'), position='after_conv3')]
    named = [dict(option[0], cfg=dict(type='ContextBlock', ratio=1 / 16))]
    default, own = (BUILD[host](plugins=x).state_dict() for x in (option, named))
    assert {n: x.shape for n, x in default.items()} == {
        n: x.shape for n, x in own.items()}
    assert option[0]['cfg'] == dict(type='ContextBlock')  # as it was given


def test_mmdets_own_option_is_left_to_it():
    """The same names, numbers and order, as seeded runs have them."""
    option = [dict(cfg=dict(type='ContextBlock', ratio=1. / 4),
                   stages=(False, True, True, True), position='after_conv3')]
    networks = []
    for cls, kwargs in ((MMDetResNet, {}),
                        (mmdet.ELAResNet, dict(attention=None))):
        torch.manual_seed(0)
        networks.append(cls(50, base_channels=16, plugins=option, **kwargs))
    theirs, ours = (net.state_dict() for net in networks)
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.parametrize('host', BUILD)
def test_a_pruned_network_keeps_its_plugins(host):
    net = BUILD[host](plugins=[SE], norm_eval=False)
    net.eval()
    net.skip_layers([layer.name for layer in net.attention_layers])
    plain = BUILD[host](attention=None, plugins=[SE], norm_eval=False)
    plain.load_state_dict(net.state_dict(), strict=False)
    plain.eval()
    x = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(net(x), plain(x)):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('attention', [None, 'base'])
def test_norms_of_plugins_have_the_rule_of_fresh_norms(attention):
    net = BUILD['mmdet'](attention=attention, plugins=[BAM], norm_eval=True)
    net.train()
    norms = [m for n, m in net.named_modules()
             if 'bam' in n and isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(norm.training for norm in norms)
    assert not net.layer2[0].bn1.training
    assert len(net.fresh_norms) == (4 if attention is None else 16)
    net(torch.randn(2, 3, 64, 64))
    other = BUILD['mmdet'](attention=attention, plugins=[BAM], norm_eval=True)
    other.load_state_dict(net.state_dict(), strict=True)
    other.train()
    assert other.fresh_norms == net.fresh_norms


def test_zero_starts_survive_the_hosts_initialisation(caplog):
    caplog.set_level('ERROR')
    net = BUILD['mmpretrain'](attention=None, plugins=[NL])
    net.init_weights()
    assert not net.layer3[4].nonlocal_block.conv_out.conv.weight.any()
    assert net.layer3[4].conv1.weight.any()


@pytest.mark.parametrize('host, depth, plugins, message', [
    ('mmdet', 18, [SE], 'BasicBlock of mmdet takes none'),
    ('mmdet', 50, [dict(SE, position='after_conv4')], "'after_conv4'.*one of"),
    ('mmpretrain', 50, [dict(SE, cfg=dict(type='ela'))], "type 'ela' is not"),
    ('mmpretrain', 50, [dict(SE, blocks=(7, ))], r'blocks=\(7,\).*0 to 2'),
    ('mmpretrain', 50, [dict(SE, stages=(True, ))], 'expected 4 booleans'),
    ('mmpretrain', 50, [dict(SE, where=1)], "key 'where'"),
])
def test_wrong_options_are_explained(host, depth, plugins, message):
    module = dict(mmdet=mmdet, mmpretrain=mmpretrain)[host]
    with pytest.raises(ValueError, match=message):
        module.ELAResNet(depth, plugins=plugins)


REGNET = dict(w0=16, wa=10., wm=1.75, group_w=8, depth=8, bot_mul=1.0)
R50 = dict(depth=50, base_channels=16, stem_channels=16)
ALL = ('after_conv1', 'after_conv2', 'after_conv3')
# Where a plugin may stand in the blocks of other families.
FAMILIES = [
    ('mmdet.ELARegNet', dict(arch=REGNET), ALL),
    ('mmdet.ELARes2Net', R50, ALL),
    ('mmdet.ELAResNeSt', R50, ALL),
    ('mmdet.ELADetectoRS_ResNet', R50, ALL),
    ('mmpretrain.ELARegNet', dict(arch=REGNET), ALL),
    ('mmpretrain.ELARes2Net', R50, ('after_conv2', )),
    ('mmpretrain.ELAResNeSt', R50, ('after_conv1', 'after_conv2')),
]


@pytest.mark.parametrize('kind, options, positions', FAMILIES,
                         ids=[kind for kind, *_ in FAMILIES])
def test_other_families_run_plugins_or_refuse_their_place(
        kind, options, positions):
    x = torch.randn(2, 3, 32, 32)
    for position in ALL:
        config = dict(type=kind, **options, norm_eval=False, plugins=[
            dict(cfg=dict(type='SEAttention', reduction=4),
                 position=position)])
        if position not in positions:
            with pytest.raises(UsageError, match=position):
                MODELS.build(config)
            continue
        net = MODELS.build(config)
        sum(out.square().mean() for out in net(x)).backward()
        learned = [p.grad is not None and bool(p.grad.any())
                   for n, p in net.named_parameters() if 'se_attention' in n]
        assert len(learned) == 2 * len(net.attention_layers), position
        assert all(learned), position


def test_trident_leaves_plugins_to_the_host():
    config = dict(
        type='mmdet.ELATridentResNet', **R50, num_branch=3, num_stages=3,
        test_branch_idx=1, trident_dilations=(1, 2, 3), strides=(1, 2, 2),
        dilations=(1, 1, 1), out_indices=(2, ))
    # The host's own convolutions have no first weights: whatever memory held.
    net = randomize(MODELS.build(dict(config, plugins=[SE])))
    (out, ) = net(torch.randn(2, 3, 32, 32))
    out.square().mean().backward()
    learned = [p.grad.any() for n, p in net.named_parameters()
               if 'se_attention' in n]
    assert len(learned) == 2 * 13 and all(learned)
    for own in (dict(blocks=(0, )), dict(position='conv2')):
        with pytest.raises(UsageError, match='ELATridentResNet takes none'):
            MODELS.build(dict(config, plugins=[{**SE, **own}]))
