"""Tools that fold a norm into the convolution before it leave features equal."""
import copy
import importlib.util

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.model.efficient_conv_bn_eval import (
    turn_on_efficient_conv_bn_eval,
)
from torch import fx, nn
from torch.ao.quantization import fuse_modules
from torchvision.models.feature_extraction import create_feature_extractor

from ela_mm.hosts import mmdet, mmpretrain
from ela_mm.models.backbones.stages import ATTENTION

HOSTS = dict(
    mmdet=(mmdet, dict(base_channels=16)),
    mmpretrain=(mmpretrain, dict(base_channels=16, stem_channels=8)))
# Of the host's blocks, stem and shortcuts at depth 50: all of them are folded.
PAIRS = 53
PRUNED = ['layer1.1', 'layer3.0', 'layer3.4', 'layer4.2']


def network(host='mmdet', attention='base', **options):
    """A ResNet-50 in float64 whose every parameter and statistic differs."""
    module, small = HOSTS[host]
    if attention is not None and 'head_dim' in ATTENTION[attention].options:
        options['head_dim'] = 16
    net = module.ELAResNet(50, attention=attention, out_indices=(0, 1, 2, 3),
                           **small, **options).double()
    for parameter in net.parameters():
        std = 0.1 if parameter.dim() > 1 else 0.5
        nn.init.normal_(parameter, std=std)
    for buffer in net.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5)
    net.eval()
    return net


def assert_same_features(net, other):
    x = torch.randn(2, 3, 64, 64).double()
    with torch.no_grad():
        outs, others = net(x), other(x)
    for out, expected in zip(others, outs):
        torch.testing.assert_close(
            out, expected, rtol=0, atol=1e-10 * expected.abs().max().item())


def norms(net):
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


def attention_norms(net):
    return {m for n, m in net.named_modules() if n.endswith('.norm')}


NETWORKS = [
    dict(host=host, attention=attention)
    for host in HOSTS for attention in (*ATTENTION, None)
] + [
    dict(host=host, attention=attention, zero_init_attention=True)
    for host in HOSTS for attention in ('base', 'light')
] + [dict(act=False)]


def label(options):
    return '-'.join(str(value) for value in options.values())


@pytest.mark.parametrize('options', NETWORKS, ids=label)
def test_the_hosts_fuse_conv_bn(options):
    """``--fuse-conv-bn`` of the hosts' tools."""
    net = network(**options)
    fused = fuse_conv_bn(copy.deepcopy(net))
    assert_same_features(net, fused)
    assert len(norms(net)) - len(norms(fused)) >= PAIRS
    # Attention's own stay, and so do those of skipped layers.
    assert [type(m) for n, m in fused.named_modules() if '.attention.' in n
            ] == [type(m) for n, m in net.named_modules() if '.attention.' in n]


@pytest.mark.parametrize('skip', ['layer', 'retrieval'])
@pytest.mark.parametrize('host', HOSTS)
def test_pruned_networks_fold_as_well(host, skip):
    net = network(host)
    net.skip_layers(PRUNED, skip)
    fused = fuse_conv_bn(copy.deepcopy(net))
    assert_same_features(net, fused)
    # And are pruned further, or restored.
    for network_ in (net, fused):
        network_.restore_layers(PRUNED[:2])
        network_.skip_layers(['layer2.1'])
    assert_same_features(net, fused)


@pytest.mark.parametrize('attention', ['base', 'light', None])
def test_lists_from_the_order_of_modules(attention):
    """A convolution and a norm that follow each other in named_modules."""
    net = network(attention=attention)
    modules = list(net.named_modules())
    lists = [[name, after] for (name, module), (after, norm) in zip(
        modules, modules[1:]) if isinstance(module, nn.Conv2d)
        and isinstance(norm, nn.BatchNorm2d)]
    assert len(lists) == PAIRS
    assert_same_features(net, fuse_modules(copy.deepcopy(net), lists))


def test_a_norm_and_its_activation_may_be_fused():
    """That they follow each other is true."""
    net = network()
    fused = fuse_modules(copy.deepcopy(net), [
        [f'{layer.prefix}.norm', f'{layer.prefix}.act']
        for layer in net.attention_layers])
    assert_same_features(net, fused)


# --- torch.fx -----------------------------------------------------------------


def efficient(net):
    model = nn.ModuleDict(dict(backbone=copy.deepcopy(net)))
    turn_on_efficient_conv_bn_eval(model, 'backbone')
    return model.backbone


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('attention', ['base', 'light', None])
def test_efficient_conv_bn_eval(host, attention):
    """mmengine's option: a graph of torch.fx in place of the forward pass."""
    net = network(host, attention)
    graph = efficient(net)
    assert_same_features(net, graph)
    folded = [node for node in graph.forward.__self__.graph.nodes
              if node.name.startswith('efficient_conv_bn_eval')]
    assert len(folded) == PAIRS
    # Attention trains on.
    x, results = torch.randn(2, 3, 64, 64).double(), []
    for model in (net, graph):
        for norm in norms(model):
            norm.train(norm in attention_norms(model))
        sum(out.square().mean() for out in model(x)).backward()
        results.append({n: p.grad for n, p in model.named_parameters()})
    for name, grad in results[0].items():
        torch.testing.assert_close(
            results[1][name], grad, rtol=1e-7,
            atol=1e-9 * (0 if grad is None else grad.abs().max().item()))


def test_decisions_hold_in_a_graph_that_was_made_before():
    net = network()
    graph = efficient(net)
    for model in (net, graph):
        model.skip_layers(PRUNED)
    assert_same_features(net, graph)
    seen = {}
    for model in (net, graph):
        model.observe(lambda name, prev, curr, model=model: seen.setdefault(
            name, {}).update({model is graph: (prev, curr)}))
    assert_same_features(net, graph)
    assert len(seen) == 12 - len(PRUNED)
    for by_model in seen.values():
        for a, b in zip(by_model[False], by_model[True]):
            torch.testing.assert_close(a, b)


TRACED = [('mmdet', 'base'), ('mmdet', 'light'), ('mmdet', 'dla'),
          ('mmdet', None), ('mmpretrain', 'base')]


@pytest.mark.parametrize('host, attention', TRACED)
def test_features_are_extracted_by_the_names_of_stages(host, attention):
    """torchvision cuts a graph at the last node of a module."""
    net = network(host, attention)
    stages = [f'layer{i}' for i in (1, 2, 3, 4)]
    cut = create_feature_extractor(copy.deepcopy(net), stages)
    for model in (net, cut):
        model.eval()
    outs = cut(torch.zeros(1, 3, 64, 64).double())
    assert list(outs) == stages
    assert_same_features(net, lambda x: cut(x).values())


@pytest.mark.parametrize('host, attention', TRACED)
def test_a_network_is_traced(host, attention):
    net = network(host, attention)
    assert_same_features(copy.deepcopy(net), fx.symbolic_trace(net))


def test_pruning_a_network_prunes_its_trace():
    net = network()
    graph, other = fx.symbolic_trace(net), copy.deepcopy(net)
    for model in (net, other):
        model.skip_layers(PRUNED)
    assert_same_features(other, graph)


# --- ONNX -----------------------------------------------------------------------


@pytest.mark.skipif(not importlib.util.find_spec('onnxruntime'),
                    reason='needs onnxruntime')
@pytest.mark.parametrize('attention', ['base', 'light'])
def test_constant_folding_of_onnx(attention, tmp_path):
    """Weights are folded by the exporter and by the runtime."""
    import onnxruntime
    net = network(attention=attention).float()
    x = torch.randn(1, 3, 64, 64)
    path = str(tmp_path / 'net.onnx')
    torch.onnx.export(net, (x, ), path, dynamo=False, do_constant_folding=True)
    session = onnxruntime.InferenceSession(path)
    outs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        for out, expected in zip(outs, net(x)):
            torch.testing.assert_close(
                torch.from_numpy(out), expected, rtol=0,
                atol=1e-4 * expected.abs().max().item())
