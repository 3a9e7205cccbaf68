"""Checkpoints that lack, rename or exchange attention: nothing without a word."""
import copy
import logging
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from support.toy import toy_runner
from torch.nn.utils import prune

from ela_mm.hosts.mmdet import ELAResNet

SMALL = dict(depth=18, base_channels=32, norm_eval=False)


def network(**options):
    return ELAResNet(**{**SMALL, **options})


@pytest.fixture
def said():
    """What the log says, warnings alone."""

    class Collector(logging.Handler):
        records = []

        def emit(self, record):
            if record.levelno >= logging.WARNING:
                self.records.append(record.getMessage())

    logger = MMLogger.get_current_instance()
    handler = Collector()
    handler.records = []
    logger.addHandler(handler)
    yield handler.records
    logger.removeHandler(handler)


# --- masks ----------------------------------------------------------------------


def partial(net, *prefixes):
    return {k: v for k, v in net.state_dict().items()
            if k.startswith(prefixes)}


def skipped(net):
    return [layer.name for layer in net.attention_layers if not layer.active]


@pytest.mark.parametrize('prefixes, expected', [
    (('layer1.attention', ), ['layer2.1', 'layer4.0']),
    (('layer4.attention.0.norm', ), ['layer1.1', 'layer2.1']),
    (('layer1.1', 'conv1'), ['layer1.1', 'layer2.1', 'layer4.0']),
    (('layer', ), []),
    (('fresh_norm_mask', ), ['layer1.1', 'layer2.1', 'layer4.0']),
], ids='+'.join)
def test_what_a_checkpoint_lacks_is_no_decision(prefixes, expected):
    """Attention without a mask is active, and other layers stay as they are."""
    net = network()
    net.skip_layers(['layer1.1', 'layer2.1', 'layer4.0'])
    state = partial(network(), *prefixes)
    assert 'active' not in state
    net.load_state_dict(state, strict=False)
    assert skipped(net) == expected
    assert net.active.tolist() == net.visible.tolist() == [
        layer.active for layer in net.attention_layers]


def test_half_a_mask():
    """One of the two buffers is taken at its word, or not taken at all."""
    source, net = network(), network()
    source.skip_layers(['layer1.1', 'layer3.0'], 'retrieval')
    state = source.state_dict()
    del state['visible']
    net.load_state_dict(state, strict=True)
    assert skipped(net) == ['layer1.1', 'layer3.0']
    assert not net.visible[1]
    net.load_state_dict(
        {'visible': torch.zeros_like(net.visible)}, strict=False)
    assert skipped(net) == ['layer1.1', 'layer3.0']


def test_loading_changes_no_state_dict_of_the_caller():
    state = partial(network(), 'layer1')
    before = {k: v.clone() for k, v in state.items()}
    net = network()
    net.skip_layers(['layer1.1'])
    net.load_state_dict(state, strict=False)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[k], v) for k, v in before.items())


# --- the authors' names --------------------------------------------------------


def mrla(state):
    """MRLA's names of a backbone, base or light."""
    renamed = {}
    for key, value in state.items():
        match = re.match(r'layer(\d)\.attention\.(\d+)\.(\w+)\.?(.*)', key)
        if match:
            stage, block, part, rest = match.groups()
            part = dict(query='mrla.mrla.Wq', key='mrla.mrla.Wk',
                        value='mrla.mrla.Wv', norm='bn_mrla',
                        mix='mrla.lambda_t')[part]
            key = '.'.join(filter(None, [
                f'stages.{int(stage) - 1}.{block}.{part}', rest]))
        elif key.startswith('layer'):
            key = f'stages.{int(key[5]) - 1}{key[6:]}'
        elif key in ('active', 'visible', 'fresh_norm_mask'):
            continue
        renamed[key] = value
    return renamed


def mrla_detector(state):
    """The same of their detectors, whose stages are layer1 to layer4."""
    return {re.sub(r'^stages\.(\d)', lambda m: f'layer{int(m[1]) + 1}', key):
            value for key, value in mrla(state).items()}


def dla(state):
    """DLA's: attention beside the blocks, as here, with names of its own."""
    renamed = {}
    for key, value in state.items():
        match = re.match(r'(layer\d\.attention\.\d+)\.(\w+)\.?(.*)', key)
        if match:
            start, part, rest = match.groups()
            part = dict(query='layer_attention.layer_attention.Wq',
                        key='layer_attention.layer_attention.Wk',
                        value='layer_attention.layer_attention.Wv',
                        norm='bn_layer_attention',
                        mix='layer_attention.lambda_t')[part]
            key = '.'.join(filter(None, [start, part, rest]))
        elif re.match(r'layer\d\.\d', key):
            key = key.replace('.', '.layers.', 1)
        elif key in ('active', 'visible', 'fresh_norm_mask'):
            continue
        renamed[key] = value
    return renamed


def dla_light(state):
    return {k.replace('layer_attention.W', 'mrla.W'): v
            for k, v in dla(state).items()}


LOADERS = ['torch', 'load_checkpoint', 'Pretrained', 'load_from']


def load(loader, net, state, tmp_path):
    path = str(tmp_path / 'published.pth')
    if loader == 'torch':
        net.load_state_dict(state, strict=False)
    elif loader == 'load_checkpoint':
        torch.save(dict(state_dict=state), path)
        load_checkpoint(net, path)
    elif loader == 'Pretrained':
        torch.save(state, path)
        net.init_cfg = dict(type='Pretrained', checkpoint=path)
        net.init_weights()
    else:
        torch.save(dict(state_dict={
            f'backbone.{k}': v for k, v in state.items()}), path)
        model = torch.nn.ModuleDict(dict(backbone=net))
        load_checkpoint(model, path)


@pytest.mark.parametrize('loader', LOADERS)
@pytest.mark.parametrize('names', [mrla, mrla_detector, dla, dla_light],
                         ids=lambda f: f.__name__)
@pytest.mark.parametrize('attention', ['base', 'light'])
def test_published_names_are_told_of(attention, names, loader, said, tmp_path):
    source, net = (network(attention=attention) for _ in range(2))
    if attention == 'base':
        net.skip_layers(['layer2.1'])
    before = copy.deepcopy(net.state_dict())
    load(loader, net, names(source.state_dict()), tmp_path)
    sentences = [text for text in said if 'MRLA or DLA' in text]
    assert len(sentences) == 1
    assert re.search(r"\(.*'.*(W[qkv]|mrla|layer_attention).*'\)", sentences[0])
    assert 'none of it is loaded' in sentences[0]
    for name, value in net.state_dict().items():
        if '.attention.' in name or name in ('active', 'visible'):
            assert torch.equal(value, before[name]), name


def test_the_sentence_is_in_the_log_of_a_run(tmp_path):
    """``load_from`` of a Runner, and the training goes on."""
    source = ELAResNet(34, base_channels=16, norm_eval=False)
    torch.save(dict(state_dict={
        f'backbone.{k}': v for k, v in mrla(source.state_dict()).items()}),
        tmp_path / 'published.pth')
    runner = toy_runner(tmp_path / 'run', max_epochs=1, windows=None,
                        load_from=str(tmp_path / 'published.pth'))
    runner.train()
    log, = (tmp_path / 'run').glob('*/*.log')
    assert log.read_text().count('MRLA or DLA') == 1


@pytest.mark.parametrize('attention', [None, 'base', 'light'])
def test_nothing_is_said_of_what_fits(attention, said):
    """Plain weights, own weights, own ones after a pruning, without a mask."""
    net = network(attention=attention)
    for state in (network(attention=None).state_dict(),
                  network(attention=attention).state_dict(),
                  partial(network(attention=attention), 'layer')):
        net.load_state_dict(state, strict=False)
    if attention == 'base':
        source = network()
        source.skip_layers(['layer1.0', 'layer1.1'])
        unused = {n for names in source.unused_state().values() for n in names}
        net.load_state_dict({k: v for k, v in source.state_dict().items()
                             if k not in unused})
        network(zero_init_attention=True).load_state_dict(source.state_dict())
    assert not said


# --- attention of another kind ---------------------------------------------------


@pytest.mark.parametrize('loader', LOADERS)
@pytest.mark.parametrize('theirs, ours, names', [
    ('light', 'base', ["has 'mix' that", 'lacks nothing that']),
    ('base', 'light', ['has nothing that', "lacks 'mix' that"]),
])
def test_attention_of_another_kind_is_told_of(theirs, ours, names, loader,
                                              said, tmp_path):
    """Most keys fit, and the features would be another network's."""
    net = network(attention=ours)
    load(loader, net, network(attention=theirs).state_dict(), tmp_path)
    sentence, = (text for text in said
                 if f"is not that of attention='{ours}'" in text)
    assert all(name in sentence for name in names)


def test_another_norm_is_told_of(said):
    net = network(norm_cfg=dict(type='GN', num_groups=4))
    state = network().state_dict()
    net.load_state_dict(state, strict=False)
    assert len(said) == 1
    assert "has 'norm.running_mean', 'norm.running_var' that" in said[0]


def test_weights_that_were_pruned_or_wrapped_are_told_of(said):
    source, net = network(), network()
    for layer in source.attention_layers:
        prune.l1_unstructured(layer.module.key, 'weight', 0.5)
    net.load_state_dict(source.state_dict(), strict=False)
    assert len(said) == 1
    assert "has 'key.weight_mask', 'key.weight_orig' that" in said[0]
    assert "lacks 'key.weight' that" in said[0]


def test_a_config_that_names_another_attention(said, tmp_path):
    """As users meet it: a config, a checkpoint, the host's registry."""
    torch.save(network(attention='light').state_dict(), tmp_path / 'a.pth')
    cfg = Config(dict(model=dict(
        type='mmdet.ELAResNet', **SMALL, init_cfg=dict(
            type='Pretrained', checkpoint=str(tmp_path / 'a.pth')))))
    MODELS.build(cfg.model).init_weights()
    assert [text for text in said if "attention='base'" in text]
