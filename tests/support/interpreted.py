"""Attention's kernels for GPUs, run by Triton's interpreter on a CPU.

A process of its own, since Triton asks for the interpreter when it is imported:
``TRITON_INTERPRET=1 python -m support.interpreted CASES.json``.
"""
import copy
import json
import sys

import torch
from torch import nn

from ela_mm import LayerAttention
from ela_mm.models.backbones.stages import AttentionStage
from ela_mm.models.layers.bank import gpu, layer, without_bank

# depth, heads, head_dim, height, width, and options of the layers.
CASES = dict(
    observed=(3, 2, 3, 5, 7, {}),
    evaluated=(3, 2, 3, 5, 7, {}),
    alone=(1, 2, 4, 4, 4, {}),
    long=(8, 1, 4, 2, 3, {}),
    skipped=(5, 1, 4, 3, 3, dict(zero_init=True)),
    without_relu=(2, 1, 8, 4, 4, dict(act=False)),
    another_norm=(2, 2, 4, 6, 8, dict(norm_cfg=dict(type='GN', num_groups=2))),
    many_tiles=(2, 1, 2, 9, 31, {}),
    dropped=(2, 1, 4, 4, 4, dict(drop_path_rate=0.5)),
    recomputed=(2, 1, 4, 4, 4, {}),
    early=(3, 1, 4, 4, 4, {}),
    half=(3, 1, 4, 6, 8, {}),
)


def build(depth, heads, head_dim, options):
    channels = heads * head_dim
    stage = AttentionStage(
        'layer1',
        nn.Sequential(*(nn.Conv2d(channels, channels, 1)
                        for _ in range(depth))),
        [LayerAttention(channels, head_dim, **options) for _ in range(depth)]
    ).double()
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.7)
    for buffer in stage.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5)
    return stage


def run(name, stage, x):
    """Output, all gradients, and what the norms have noted."""
    x, seen, early = x.clone().requires_grad_(), [], []
    if name == 'observed':  # whose gradients come from outside, too
        stage.observer = lambda layer, prev, curr: seen.append(curr)
    if name == 'early':  # nobody waits for what comes after the second layer
        stage[2].register_forward_pre_hook(lambda block, x: early.extend(x))
    torch.manual_seed(1)
    out = torch.utils.checkpoint.checkpoint(
        stage, x, use_reentrant=False) if name == 'recomputed' else stage(x)
    out = early[0] if early else out
    cotangent = torch.linspace(-1, 1, out.numel()).view_as(out)
    loss = (out.double() * cotangent).sum() + sum(
        weights.double().square().sum() for weights in seen)
    loss.backward()
    return [out, x.grad, *(
        torch.zeros_like(p) if p.grad is None else p.grad
        for p in stage.parameters()), *stage.buffers()]


def error(name):
    """The largest relative one, and whether every layer ran in kernels."""
    depth, heads, head_dim, height, width, options = CASES[name]
    torch.manual_seed(0)
    stage = build(depth, heads, head_dim, options)
    stage.train(name != 'evaluated')
    if name == 'skipped':
        stage.active = [True, False, True, False, True]
        stage.visible = [True, True, True, False, True]
    x = torch.randn(2, heads * head_dim, height, width).double()
    if name == 'half':
        stage, x = stage.bfloat16(), x.bfloat16()
        for layer_ in stage.attention:
            layer_.norm.float()
    reference = copy.deepcopy(stage).double()
    for attention in stage.attention:
        attention.fused = True
    # What is read before it is written shows.
    gpu.new_gradients = lambda state: torch.full_like(state, torch.nan)
    ran, decide = [], gpu.has_kernels
    gpu.has_kernels = lambda *args: ran.append(decide(*args)) or ran[-1]
    tiles = gpu.streaming, gpu.one_by_one
    if name == 'many_tiles':
        gpu.streaming = lambda x: gpu.Tiles(x, 64, 1)
    elif name != 'alone':  # which the interpreter takes long for
        gpu.one_by_one = gpu.streaming
    found = run(name, copy.deepcopy(stage), x)
    gpu.has_kernels = decide
    gpu.streaming, gpu.one_by_one = tiles
    with without_bank():
        expected = run(name, reference, x.double())
    ours = distance(found, expected)
    if name == 'half':  # in relation to what rounding does to the operations
        with gpu.without_kernels():
            ours /= distance(run(name, stage, x), expected)
    return ours, bool(ran) and all(ran)


def distance(found, expected):
    return float(torch.stack([
        (a.double() - b).norm() / b.norm().clamp(min=1e-3)
        for a, b in zip(found, expected) if a.is_floating_point()]).max())


def falls_back():
    """Whether kernels pass the trial that compute something else, and ours."""
    right = gpu.Attend

    class Wrong(right):

        @staticmethod
        def forward(ctx, *args):
            out, *rest = right.forward(ctx, *args)
            return (out * 1.01, *rest)

    passed = []
    for gpu.Attend in (Wrong, right):
        layer._agree.cache_clear()
        passed.append(layer._agree(torch.device('cpu')))
    return passed


if __name__ == '__main__':
    with open(sys.argv[1], 'w') as f:
        json.dump({**{name: error(name) for name in CASES},
                   'trial': falls_back()}, f)
