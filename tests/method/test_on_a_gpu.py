"""What only a GPU can show: its own branches, and that nothing waits for it.

Left out where there is none, or where ``CUDA_VISIBLE_DEVICES`` is not set, as
in `CUDA_VISIBLE_DEVICES=0 python -m pytest tests/method/test_on_a_gpu.py`.
"""
import copy
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from mmengine.runner import Runner
from support import ROOT
from support.families import FAMILIES, flat, loss_of, pictures, randomize
from support.toy import toy_config

from ela_mm.engine.journal.record import read_record
from ela_mm.hosts.mmdet import ELAResNet
from ela_mm.models.layers.bank import gpu, without_bank
from ela_mm.pruning import KLStatistics

# Some hosts resize embeddings in float32 whatever they are given.
CLOSE = dict(rtol=1e-5, atol=1e-7)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a GPU')


@pytest.fixture(autouse=True)
def exact():
    """Convolutions round to TF32 otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def network(depth=34, **options):
    net = ELAResNet(depth, base_channels=8, stem_channels=8, norm_eval=False,
                    **{'head_dim': 8, **options})
    return randomize(net)


def step(net, x):
    """Outputs, gradients, and what norms have noted."""
    outs = flat(net(x))
    loss_of(outs).backward()
    gradients = {name: p.grad for name, p in net.named_parameters()
                 if p.grad is not None}
    net.zero_grad()
    return outs, gradients, dict(net.named_buffers())


def assert_close(ours, theirs, **tolerances):
    assert ours[1].keys() == theirs[1].keys()
    for name, a, b in [
            *(('output', *pair) for pair in zip(ours[0], theirs[0])),
            *((name, value, theirs[i][name]) for i in (1, 2)
              for name, value in ours[i].items())]:
        torch.testing.assert_close(
            a.detach().cpu(), b.detach().cpu(), **tolerances,
            msg=lambda m, n=name: f'{n}: {m}')


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('options', [
    {}, dict(attention='light'), dict(zero_init_attention=True),
    dict(with_cp=True), dict(fused=True), dict(depth=101)], ids=str)
def test_it_computes_what_a_cpu_does(options, last):
    """In float64: by the bank, and in plain operations."""
    net = network(**options).double()
    for skipped in ((), ('layer1.1', 'layer3.2')):
        if net.attention != 'base' and skipped:
            continue
        net.skip_layers(skipped) if skipped else None
        x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
        theirs = step(copy.deepcopy(net), x)
        layout = torch.channels_last if last else torch.contiguous_format
        ours = copy.deepcopy(net).to('cuda', memory_format=layout)
        x = x.to('cuda', memory_format=layout)
        for context in (nullcontext, without_bank):
            with context():
                assert_close(step(copy.deepcopy(ours), x), theirs, **CLOSE)


def test_kernels_run(monkeypatch):
    """Not the operations instead of them, which the other tests would not see."""
    found = []
    decide = gpu.has_kernels
    monkeypatch.setattr(gpu, 'has_kernels',
                        lambda *args: found.append(decide(*args)) or found[-1])
    net = network(fused=True).cuda()
    step(net, torch.randn(2, 3, 64, 96, device='cuda'))
    assert found == [True] * 16


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family(name):
    family = FAMILIES[name]
    net = randomize(family.build()).double().eval()
    x = pictures(family).double()
    theirs = step(copy.deepcopy(net), x)
    # Some hosts' attention makes a table when it is told to evaluate.
    net = net.cuda().train().eval()
    assert_close(step(net, x.cuda()), theirs, **CLOSE)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('options', [{}, dict(attention='light'),
                                     dict(fused=True)], ids=str)
def test_half_precision(options, dtype):
    """Near the same step in float32, in both formulations."""
    net = network(**options).cuda()
    x = torch.randn(8, 3, 96, 96, device='cuda')
    exact = copy.deepcopy(net)(x)

    def errors(net):
        with torch.autocast('cuda', dtype):
            outs = net(x)
        loss_of([out.float() for out in outs]).backward()
        assert all(p.grad.isfinite().all() for p in net.parameters()
                   if p.grad is not None)
        return [float((a.float() - b).norm() / b.norm())
                for a, b in zip(outs, exact)]

    ours = errors(copy.deepcopy(net))
    with without_bank():
        plain = errors(copy.deepcopy(net))
    for a, b in zip(ours, plain):
        assert a < max(2 * b, 1e-2)


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('options', [{}, dict(attention='light'),
                                     dict(fused=True)], ids=str)
def test_no_step_waits(options, amp):
    """Neither in a window, nor after a pruning."""
    net = network(**options).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, foreach=True)
    x = torch.randn(4, 3, 96, 96, device='cuda')
    statistics = KLStatistics()
    if net.attention == 'base':
        net.observe(statistics.update)

    def run():
        with torch.autocast('cuda', torch.bfloat16, enabled=amp):
            outs = net(x)
        loss_of(outs).backward()
        optimizer.step()
        optimizer.zero_grad()

    run()  # buffers are made, and algorithms chosen
    torch.cuda.set_sync_debug_mode('error')
    try:
        run()
        if net.attention == 'base':
            torch.cuda.set_sync_debug_mode('default')
            net.skip_layers(['layer2.1'])
            torch.cuda.set_sync_debug_mode('error')
            run()
        torch.cuda.set_sync_debug_mode('error')
    finally:
        torch.cuda.set_sync_debug_mode('default')
    if net.attention == 'base':
        assert statistics.reduce(['layer3.1'])['layer3.1'].mean > 0


def test_a_compiled_network():
    net = network().cuda()
    x = torch.randn(4, 3, 64, 64, device='cuda')
    theirs = step(copy.deepcopy(net), x)
    compiled = copy.deepcopy(net)
    compiled.compile()
    assert_close(step(compiled, x), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('wrapper', ['OptimWrapper', 'AmpOptimWrapper'])
def test_a_run_prunes_and_resumes(wrapper, tmp_path):
    options = {'optim_wrapper.type': wrapper}
    first = Runner.from_cfg(toy_config(tmp_path / 'first', **options))
    first.train()
    (decision, ) = read_record(tmp_path / 'first')['decisions']
    assert decision['skipped']
    second = Runner.from_cfg(toy_config(
        tmp_path / 'second', resume=True,
        load_from=str(tmp_path / 'first' / 'epoch_2.pth'), **options))
    second.train()
    ours, theirs = (runner.model.state_dict() for runner in (second, first))
    for name, value in ours.items():
        # A GPU adds up in no fixed order.
        torch.testing.assert_close(value, theirs[name], rtol=1e-2, atol=1e-3)


def test_a_process_of_nccl(tmp_path):
    """DDP is wrapped anew after a pruning."""
    cfg = toy_config(tmp_path, hooks=[dict(type='Witness')])
    cfg.custom_imports = dict(imports=['support.toy', 'support.ddp_toy'])
    cfg.env_cfg = dict(dist_cfg=dict(backend='nccl'))
    cfg.dump(tmp_path / 'toy.py')
    process = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc_per_node=1', str(ROOT / 'tools' / 'train.py'),
         str(tmp_path / 'toy.py'), '--launcher', 'pytorch'],
        cwd=ROOT, capture_output=True, text=True, timeout=240, env={
            **os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, [
                str(ROOT / 'tests'), os.environ.get('PYTHONPATH')]))})
    assert process.returncode == 0, process.stderr[-3000:]
    rank = torch.load(tmp_path / 'rank0.pth')
    assert rank['decisions'][0]['skipped']
    assert rank['in_buckets'] == rank['trainable']
