"""The option fused=True: kernels for GPUs, in Triton's interpreter."""
import inspect
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from support import ROOT

from ela_mm.hosts.mmdet import ELAResNet
from ela_mm.models.layers.bank import gpu, layer

CASES = ('observed', 'evaluated', 'alone', 'long', 'skipped', 'without_relu',
         'another_norm', 'many_tiles', 'dropped', 'recomputed', 'early',
         'half')

needs_triton = pytest.mark.skipif(
    gpu.triton is None, reason='there is no Triton 3')


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """Errors in relation to the plain formulation in float64, by case."""
    path = tmp_path_factory.mktemp('kernels') / 'found.json'
    process = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'support.interpreted',
         str(path)], capture_output=True, text=True, timeout=300, cwd=ROOT,
        env={**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1',
             'PYTHONPATH': os.pathsep.join(filter(None, [
                 str(ROOT / 'tests'), str(ROOT),
                 os.environ.get('PYTHONPATH')]))})
    assert process.returncode == 0, process.stderr[-3000:]
    return dict(json.loads(path.read_text()), log=process.stdout)


@needs_triton
@pytest.mark.parametrize('case', CASES)
def test_kernels_compute_the_equations(found, case):
    error, in_kernels = found[case]
    assert in_kernels
    assert error < (2 if case == 'half' else 1e-7)


@needs_triton
def test_kernels_that_compute_something_else_are_left(found):
    assert found['trial'] == [False, True]
    assert 'Tensor-likes are not close' in found['log']


def test_where_there_is_none_one_line_says_so(monkeypatch):
    lines = []
    layer._agree.cache_clear()
    monkeypatch.setattr(
        layer, 'print_log', lambda text, logger, level: lines.append(
            (text, level)))
    torch.manual_seed(0)
    net = ELAResNet(18, base_channels=8, head_dim=8, fused=True)
    torch.manual_seed(0)
    plain = ELAResNet(18, base_channels=8, head_dim=8)
    x = torch.randn(2, 3, 32, 32)
    for ours, theirs in zip(net(x), plain(x)):
        assert torch.equal(ours, theirs)
    ((text, level), ) = lines
    assert 'no Triton' in text and level == logging.WARNING


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
@pytest.mark.parametrize('aligned', [False, True])
def test_they_compile_for_a_gpu_that_is_not_here(aligned, dtype):
    from triton import compile as compile_kernel
    from triton import language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ela_mm.models.layers.bank.kernels import backward, forward
    from ela_mm.models.layers.bank.kernels.launching import Kernel
    maps = {'x', 'value', 'values', 'retrieved', 'out', 'grad', 'of_sum',
            'maps', 'beside', 'of_x', 'table'}
    numbers = {'stride', 'entry', 'step', 'seen', 'count', 'slot', 'number',
               'planes', 'channels', 'size', 'height', 'width', 'head_dim',
               'capacity', 'heads', 'batch', 'rows'}
    constants = dict(
        PLANES=2 if aligned else 256, BLOCK=1024 if aligned else 1,
        ACC=tl.float32, SEEN=4, DIM=16, KERNEL=3, COUNT=2, CHANNELS=16,
        BATCH=2)
    kernels = [k for module in (forward, backward)
               for k in vars(module).values() if isinstance(k, Kernel)]
    assert len(kernels) == 11
    for kernel in kernels:
        function = kernel._functions[aligned]
        signature, constant, attributes = {}, {}, {}
        for i, name in enumerate(inspect.signature(function.fn).parameters):
            if name.isupper():
                signature[name] = 'constexpr'
                constant[(i, )] = constants.get(name, True)
            elif name in numbers:
                signature[name] = 'i32'
            elif name in ('momentum', 'eps') or (
                    name == 'scale' and 'weigh' in kernel.name):
                signature[name] = 'fp32'
            else:
                signature[name] = '*' + (dtype if name in maps else 'fp32')
                if aligned and name in maps:
                    attributes[(i, )] = [['tt.divisibility', 16]]
        compiled = compile_kernel(
            ASTSource(function, signature, constant, attributes),
            target=GPUTarget('cuda', 90, 32), options=dict(num_warps=4))
        assert kernel.name in compiled.asm['ptx']
