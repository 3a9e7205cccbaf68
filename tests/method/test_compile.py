"""torch.compile, before and after a pruning and in a window."""
import copy
from collections import Counter

import pytest
import torch
from functorch.compile import make_boxed_func
from support.toy import small_network
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from ela_mm import LayerAttention
from ela_mm.hosts.mmdet import ELAResNet
from ela_mm.models.backbones.stages import AttentionStage
from ela_mm.models.layers.traced import CAN_TRACE
from ela_mm.pruning import KLStatistics

pytestmark = pytest.mark.skipif(
    not hasattr(torch, 'compiler'),
    reason='torch.compile of torch 2.0 does not take the stages')
PRUNED = ['layer1.1', 'layer3.0', 'layer4.1']


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def gradients(outs, net, x):
    x.grad = None
    net.zero_grad()
    sum(out.square().mean() for out in outs).backward()
    return dict(x=x.grad, **{
        n: p.grad for n, p in net.named_parameters() if p.grad is not None})


def assert_same_step(net, compiled, tolerance):
    """Values, gradients and running statistics of one training step."""
    x = torch.randn(2, 3, 32, 32, dtype=next(net.parameters()).dtype,
                    requires_grad=True)
    state = copy.deepcopy(net.state_dict())
    outs = net(x)
    expected = gradients(outs, net, x)
    after = copy.deepcopy(net.state_dict())
    net.load_state_dict(state)
    ours = compiled(x)
    found = gradients(ours, net, x)
    close = dict(rtol=tolerance, atol=tolerance)
    for a, b in zip(ours, outs):
        torch.testing.assert_close(a, b, **close)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, **close,
            msg=lambda m, n=name: f'{n}: {m}')
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, after[name], **close)


def prune_and_compare(net, counter, tolerance):
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    for frames, (names, skip) in enumerate(
            [((), 'layer'), (PRUNED[:1], 'layer'),
             (PRUNED, 'retrieval')], start=1):
        net.skip_layers(names, skip=skip)
        for _ in range(2):
            assert_same_step(net, compiled, tolerance)
        # All of the backbone is one graph, and a pruning makes one anew.
        assert counter.frame_count == frames
    assert not counters['graph_break']
    # Evaluation is another mode, and another graph.
    net.eval()
    x = torch.randn(2, 3, 32, 32, dtype=next(net.parameters()).dtype)
    with torch.no_grad():
        for a, b in zip(compiled(x), net(x)):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert counter.frame_count == frames + 1


def test_one_recompilation_per_pruning():
    prune_and_compare(small_network().double(),
                      CompileCounterWithBackend('aot_eager'), 1e-9)


@pytest.mark.slow
def test_inductor():
    """The compiler that writes kernels, on one stage."""
    stage = small_network().double().layer2
    compiled = torch.compile(stage, fullgraph=True)
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64, requires_grad=True)
    parameters = list(stage.parameters())
    results = []
    for run in (stage, compiled):
        out = run(x)
        results.append([
            out, *torch.autograd.grad(
                out.square().mean(), [x, *parameters], allow_unused=True,
                materialize_grads=True)])
    for expected, found in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('attention, whole', [('light', False), (None, True)])
def test_light_attention_and_plain_networks_compile(attention, whole):
    """MRLA-light breaks the graph where it takes a block's shortcut."""
    net = ELAResNet(18, base_channels=32, norm_eval=False,
                    attention=attention).double().train()
    compiled = torch.compile(net, backend='aot_eager', fullgraph=whole)
    assert_same_step(net, compiled, 1e-9)


def test_autocast_compiles():
    """No further from float32 than autocast itself is."""
    net = small_network()
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    x = torch.randn(4, 3, 64, 64)
    for names in ((), PRUNED):
        net.skip_layers(names)
        with torch.autocast('cpu', torch.bfloat16):
            ours, outs = compiled(x), net(x)
        for a, b, exact in zip(ours, outs, net(x)):
            assert a.dtype == b.dtype
            error = (b - exact).norm()
            assert 0 < error < 0.2 * exact.norm()
            assert (a - exact).norm() < 2 * error
    assert counter.frame_count == 2


@pytest.mark.skipif(not CAN_TRACE, reason='torch < 2.4 has no operators')
@pytest.mark.parametrize('attention, sums', [('base', 2), ('light', 0)])
def test_backward_is_by_operators(attention, sums):
    """One for a layer's value, and on a CPU one for its weights."""
    net = ELAResNet(18, base_channels=32, attention=attention)
    found = Counter()

    def keep(graph, inputs):
        found.update(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    compiled = torch.compile(net.layer1, backend=aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        bw_compiler=keep))
    x = torch.randn(2, 32, 8, 8, requires_grad=True)
    compiled(x).sum().backward()
    assert found['ela_mm.depthwise_backward.default'] == 2
    assert found['ela_mm.head_products.default'] == sums


class Breaking(nn.Identity):

    def forward(self, x):
        torch._dynamo.graph_break()
        return x


def test_a_block_may_break_the_graph_of_its_stage():
    """What layers leave for later ones crosses from a graph to the next."""
    stage = AttentionStage(
        'layer1', nn.Sequential(nn.Identity(), Breaking(), nn.Identity()),
        [LayerAttention(8, 4) for _ in range(3)]).double()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for run in (stage, torch.compile(stage, backend='aot_eager')):
        out = run(x)
        results.append([out, *torch.autograd.grad(
            out.square().sum(), [x, *stage.parameters()], allow_unused=True,
            materialize_grads=True)])
    assert sum(counters['graph_break'].values())
    torch.testing.assert_close(*results)


# --- windows -----------------------------------------------------------------


@pytest.mark.slow
def test_a_window_counts_what_eager_counts():
    """Many steps and a bounded number of graphs, also after the window."""
    net = small_network().double()
    steps = 12
    batches = torch.randn(steps, 2, 3, 32, 32, dtype=torch.float64)
    eager, observed = KLStatistics(), KLStatistics()
    net.observe(eager.update)
    state = copy.deepcopy(net.state_dict())
    for x in batches:
        net(x)

    net.observe(None)
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(net, backend=counter)
    compiled(batches[0])
    assert counter.frame_count == 1
    net.load_state_dict(state)
    net.observe(observed.update)
    frames = []
    for x in batches:
        sum(out.mean() for out in compiled(x)).backward()
        frames.append(counter.frame_count)
    # The stem and each stage; afterwards every step runs what is there.
    assert frames[0] <= 1 + 5 and frames[-1] == frames[0]
    names = [f'layer{i}.1' for i in (1, 2, 3, 4)]
    expected, found = eager.reduce(names), observed.reduce(names)
    for name in names:
        assert found[name].samples == expected[name].samples == 24
        assert found[name].iterations == steps
        assert found[name].series == pytest.approx(
            expected[name].series, rel=1e-9)
    # The window ends with a pruning. Dynamo goes on with a graph per stage.
    net.observe(None)
    net.skip_layers(PRUNED)
    counters.clear()
    compiled(batches[0])
    after = counter.frame_count
    assert frames[-1] < after <= frames[-1] + 5
    for x in batches:
        compiled(x)
    assert counter.frame_count == after
    assert not counters['graph_break']


def test_the_stage_loop_is_one_graph_in_a_window():
    """The only break lies after the loop, where the stage reports."""
    net = ELAResNet(34, base_channels=16, norm_eval=False).double().train()
    counter = CompileCounterWithBackend('aot_eager')
    seen = []
    net.observe(lambda name, prev, curr: seen.append((name, prev, curr)))
    compiled = torch.compile(net.layer3, backend=counter)
    x = torch.randn(2, 32, 8, 8, dtype=torch.float64)
    for _ in range(4):
        compiled(x)
    assert counter.frame_count == 1
    assert sum(counters['graph_break'].values()) == 1
    assert [name for name, _, _ in seen] == 4 * [
        f'layer3.{i}' for i in range(1, 6)]
    assert [curr.shape[-1] for _, _, curr in seen[:5]] == [2, 3, 4, 5, 6]
