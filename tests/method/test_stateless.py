"""No call leaves its state on a module: threads, replicas and copies."""
import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from ela_mm.hosts import mmdet, mmpretrain
from ela_mm.models.backbones.stages import ATTENTION
from ela_mm.models.layers.bank import without_bank

KINDS = [*ATTENTION, None]


def network(attention='base', depth=18, **options):
    if attention is not None and 'head_dim' in ATTENTION[attention].options:
        options.setdefault('head_dim', 8)
    if attention in ('dia', 'rla', 'rla-concat'):
        depth = 50  # whose blocks have what these read
    net = mmdet.ELAResNet(depth, base_channels=8, norm_eval=False,
                          attention=attention, **options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    net.eval()
    return net


def state_of(net):
    """Everything that hangs on modules, but for what tensors hold."""
    state = {}
    for name, module in net.named_modules():
        for key, value in vars(module).items():
            parts = value.items() if isinstance(value, dict) else [('', value)]
            if isinstance(value, (list, set)):
                parts = [('', repr(value))]
            for part, item in parts:
                state[name, key, part] = (
                    item if isinstance(item, (str, int, float, bool, type(None)))
                    else id(item))
    return state


@pytest.mark.parametrize('watched', [False, True])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('attention', KINDS)
def test_a_pass_leaves_nothing_on_modules(attention, training, watched):
    net = network(attention)
    net.train(training)
    if attention is not None and ATTENTION[attention].prunable:
        net.skip_layers(['layer2.0'], 'retrieval')
        net.skip_layers(['layer3.0'])
        net.observe(lambda name, prev, curr: None)
    if watched:
        for module in net.modules():
            module.register_forward_hook(lambda *args: None)
    before = state_of(net)
    with torch.no_grad():
        net(torch.randn(2, 3, 64, 64))
    sum(out.mean() for out in net(torch.randn(2, 3, 64, 64))).backward()
    assert state_of(net) == before
    # Of one number per channel as well.
    if not training:
        for name, module in net.named_modules():
            module.training = name.endswith('.norm')
        before = state_of(net)
        net(torch.randn(1, 3, 32, 32))
        assert state_of(net) == before


@pytest.mark.parametrize('attention', KINDS)
def test_two_threads_use_one_network(attention):
    """A server's, with pictures of several sizes."""
    net = network(attention)
    pictures = [torch.randn(1, 3, 32 + 32 * (i % 3), 64) for i in range(6)]
    with torch.no_grad():
        expected = [net(x) for x in pictures]

    @torch.no_grad()
    def serve(i):
        return [torch.equal(a, b)
                for a, b in zip(net(pictures[i % 6]), expected[i % 6])]

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(serve, range(300)))
    assert sum(all(equal) for equal in results) == 300


@pytest.mark.parametrize('attention', ['base', 'light'])
def test_threads_with_plain_memory_do_not_disturb_others(attention):
    net = network(attention).double()
    x = torch.randn(2, 3, 64, 64).double()
    expected = net(x)[-1]

    def run(i):
        if i % 2:
            return net(x)[-1]
        with without_bank():
            return net(x)[-1]

    with ThreadPoolExecutor(2) as pool:
        for out in pool.map(run, range(40)):
            torch.testing.assert_close(out, expected)


def replica_of(net):
    """What DataParallel makes of a network: parameters are no parameters.

    ``torch.nn.parallel.replicate`` itself copies to GPUs alone.
    """
    replicas = {m: m._replicate_for_data_parallel() for m in net.modules()}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            replica._modules[name] = replicas.get(child)
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter if parameter is None
                    else parameter * 1)
        for name, buffer in module._buffers.items():
            replica._buffers[name] = buffer
    return replicas[net]


@pytest.mark.parametrize('kind', [torch.float, torch.double, torch.bfloat16])
@pytest.mark.parametrize('attention', KINDS)
def test_replicas_in_threads(attention, kind):
    net = network(attention).to(kind)
    if attention == 'base':
        net.skip_layers(['layer3.0'])
        net.layer2.attention[1].query.register_forward_hook(
            lambda *args: None)
    xs = torch.randn(2, 2, 3, 64, 64).to(kind)
    results = []
    for run in (lambda: [net(x) for x in xs], lambda: in_threads(net, xs)):
        net.zero_grad()
        outs = run()
        sum(out.square().mean() for part in outs for out in part).backward()
        results.append(([out for part in outs for out in part], {
            n: p.grad for n, p in net.named_parameters()
            if p.grad is not None}))
    (expected, gradients), (found, of_replicas) = results
    for a, b in zip(found, expected):
        assert torch.equal(a, b)
    assert of_replicas.keys() == gradients.keys()
    if kind == torch.double:
        for name, gradient in gradients.items():
            torch.testing.assert_close(of_replicas[name], gradient)


def in_threads(net, xs):
    replicas = [replica_of(net) for _ in xs]
    with ThreadPoolExecutor(len(xs)) as pool:
        return list(pool.map(lambda pair: pair[0](pair[1]),
                             zip(replicas, xs)))


@pytest.mark.parametrize('way', ['deepcopy', 'pickle', 'torch.save'])
@pytest.mark.parametrize('attention', KINDS)
def test_copies_compute_the_same(attention, way):
    """Of a trained, pruned and watched network, and they learn apart."""
    net = network(attention)
    net.train()
    x = torch.randn(2, 3, 64, 64)
    sum(out.mean() for out in net(x)).backward()
    if attention == 'base':
        net.skip_layers(['layer3.0'])
        net.observe(lambda name, prev, curr: None)  # which pickle cannot take
    other = {
        'deepcopy': copy.deepcopy,
        'pickle': lambda net: pickle.loads(pickle.dumps(net)),
        'torch.save': saved_and_loaded,
    }[way](net)
    net.eval()
    other.eval()
    with torch.no_grad():
        for a, b in zip(net(x), other(x)):
            assert torch.equal(a, b)
    if attention == 'base':
        other.restore_layers()
        assert not net.layer3.active[0] and other.layer3.active[0]
        assert other.layer3.observer is None
        assert not net.layer3.attention[0].norm.weight.requires_grad
        assert other.layer3.attention[0].norm.weight.requires_grad


def saved_and_loaded(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_mmpretrains_networks_as_well():
    net = mmpretrain.ELAResNet_CIFAR(20, attention='light', head_dim=16).eval()
    before = state_of(net)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        out = copy.deepcopy(net)(x)[0]
        assert torch.equal(net(x)[0], out)
    assert state_of(net) == before
