"""The option fused=True: a compiler's kernels, or none at hand."""
import copy
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from torch._dynamo.testing import CompileCounter

from ela_mm.hosts.mmdet import ELAResNet
from ela_mm.models.layers.bank import fused


@pytest.fixture(autouse=True)
def fresh():
    fused._failed.clear()
    fused._compiled.cache_clear()
    yield
    fused._failed.clear()
    fused._compiled.cache_clear()


def networks(**options):
    """The same network without and with the option."""
    net = ELAResNet(18, base_channels=8, head_dim=8, norm_eval=False, **options)
    other = ELAResNet(18, base_channels=8, head_dim=8, norm_eval=False,
                      fused=True, **options)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    return net.double(), other.double()


def step(net, x):
    outs = net(x)
    parameters = [p for p in net.parameters() if p.requires_grad]
    return outs, torch.autograd.grad(
        sum(out.square().mean() for out in outs), parameters), list(
            net.buffers())


def assert_same(net, other):
    for training in (True, False):
        net.train(training)
        other.train(training)
        for size in (32, 48):
            x = torch.randn(2, 3, size, size, dtype=torch.float64)
            for ours, theirs in zip(step(other, x), step(net, x)):
                for a, b in zip(ours, theirs):
                    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_without_a_compiler_one_line_says_so(monkeypatch):
    lines = []

    def broken(function, **options):
        raise RuntimeError('no C++ compiler\nfound')

    monkeypatch.setattr(torch, 'compile', broken)
    monkeypatch.setattr(
        fused, 'print_log', lambda text, logger, level: lines.append(text))
    assert_same(*networks())
    assert sorted(lines) == [
        f'fused=True: {name} runs operation by operation, since torch.compile '
        'failed: no C++ compiler' for name in ('add_normalized',
                                               'relu_backward')]


def test_both_functions_are_compiled_with_open_shapes(monkeypatch):
    asked = []

    def compile(function, dynamic):
        asked.append((function.__name__, dynamic))
        return function

    monkeypatch.setattr(torch, 'compile', compile)
    assert_same(*networks())
    assert sorted(asked) == [('_add_normalized', True),
                             ('_relu_backward', True)]


def test_neither_stages_nor_sizes_compile_anew(monkeypatch):
    """Maps of twelve shapes; it gives up after eight kernels a function."""
    counter = CompileCounter()
    torch._dynamo.reset()
    compile = torch.compile
    monkeypatch.setattr(
        torch, 'compile',
        lambda function, **options: compile(function, backend=counter, **options))
    _, net = networks()
    for size in ((64, 64), (96, 160), (160, 96)):
        step(net, torch.randn(2, 3, *size, dtype=torch.float64))
    assert 2 <= counter.frame_count <= 8


@pytest.mark.slow
def test_a_compiler_writes_the_same():
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    MMLogger.get_current_instance().addHandler(handler)
    try:
        assert_same(*networks())
    finally:
        MMLogger.get_current_instance().removeHandler(handler)
    assert not [line for line in lines if 'fused' in line]


@pytest.mark.parametrize('attention', ['light', None])
def test_other_attention_has_nothing_to_fuse(attention):
    with pytest.raises(ValueError, match="an option of 'base'"):
        ELAResNet(18, attention=attention, fused=True)
