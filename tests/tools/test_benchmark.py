"""The benchmark: what it measures, and what it prints."""
import csv
import importlib.util
import platform
import subprocess
import sys

import pytest
import torch
from mmengine.utils import digit_version
from support import ROOT
from support.versions import needs_torch_2_1
from torch import nn

from ela_mm.errors import UsageError
from ela_mm.experiments import benchmark, counts
from ela_mm.experiments.benchmark import Conditions
from ela_mm.timing import ratio, time_in_turns

SMALL = Conditions('r18', size=32)
needs_counter = pytest.mark.skipif(
    importlib.util.find_spec('torch.utils.flop_counter') is None,
    reason='torch < 2.1 does not count operations')


@pytest.fixture
def tool(monkeypatch):
    # For good, and other tests run in this process.
    monkeypatch.setattr(benchmark, 'keep_freed_memory', lambda: True)
    spec = importlib.util.spec_from_file_location(
        'benchmark_tool', ROOT / 'tools' / 'benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def features(variant, state, images):
    torch.manual_seed(0)
    net = benchmark.build_backbone('cifar20', variant).double()
    if state is not None:
        net.load_state_dict(state)
    return net.train()(images)[-1], net.state_dict()


def test_the_concatenating_reference_computes_the_same():
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    ours, state = features('base', None, images)
    torch.manual_seed(0)
    fresh = benchmark.build_backbone('cifar20', 'base').double().state_dict()
    theirs, _ = features('concatenating', fresh, images)
    torch.testing.assert_close(ours, theirs)
    own, _ = features('own value', fresh, images)
    assert not torch.allclose(ours, own)


@pytest.mark.parametrize('share', benchmark.SHARES)
def test_shares_of_a_resnet50(share):
    net = benchmark.build_backbone('r50', f'ELA {share}%')
    layers = net.attention_layers
    skipped = [layer for layer in layers if not layer.active]
    assert len(skipped) == {25: 4, 50: 8, 80: 12}[share]
    assert all(layer.index > 0 for layer in skipped)
    assert len({layer.stage for layer in skipped}) == 4


def test_a_ratio_is_the_median_over_rounds():
    # The machine became twice as slow after the second round.
    assert ratio([3., 3., 6., 60.], [2., 2., 4., 4.]) == 1.5


class Square(nn.Module):
    """Keeps its input's copy (and nothing else) for backward."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        copied = x * 2.  # lives on in the product's graph
        return [(copied * self.weight).sum((1, 2, 3), keepdim=True)]


@pytest.mark.skipif(
    platform.libc_ver()[0] != 'glibc', reason='another C library')
def test_freed_memory_is_kept():
    """The last tensor of a size takes no page from the system."""
    code = """if True:
        import resource, torch
        from ela_mm.experiments.benchmark import keep_freed_memory
        assert keep_freed_memory()
        for number in range(5):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(2**25)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"""
    faults = subprocess.run([sys.executable, '-c', code], check=True,
                            capture_output=True, text=True).stdout
    assert int(faults.split()[-1]) < 100  # of 32768


def test_bytes_kept_are_counted_by_storage():
    conditions = Conditions('-', batch=2, size=16)
    kept = benchmark.bytes_kept(Square(), conditions)
    copied = 2 * 3 * 16 * 16 * 4
    # Beside it: a few numbers of the loss.
    assert copied <= kept < copied + 200


def test_bytes_kept_follow_what_is_active():
    kept = {
        v: benchmark.bytes_kept(benchmark.build_backbone('r18', v), SMALL)
        for v in ('plain', 'base', 'ELA 50%', 'concatenating')
    }
    assert (kept['plain'] < kept['ELA 50%'] < kept['base'] <
            kept['concatenating'])


def test_pictures_of_other_channels():
    """Plain, ours and a compared system's."""
    conditions = SMALL._replace(channels=4)
    for variant in ('plain', 'base', 'SE'):
        net = benchmark.build_backbone('cifar20', variant, channels=4)
        assert net.conv1.in_channels == 4
        benchmark.make_step(net, conditions)()


def test_memory_grows_linearly_with_the_layers():
    """What attention keeps, for 4, 8 and 16 layers in a stage."""

    def kept(depth, variant):
        network = f'stage3 x {depth}'
        return benchmark.bytes_kept(
            benchmark.build_backbone(network, variant),
            Conditions(network, batch=1, size=64))

    extra = [kept(d, 'base') - kept(d, 'plain') for d in (4, 8, 16)]
    assert extra[2] - extra[1] < 2.1 * (extra[1] - extra[0])
    copies = [kept(d, 'concatenating') - kept(d, 'plain') for d in (4, 8, 16)]
    assert copies[2] - copies[1] > 2.5 * (copies[1] - copies[0])


def test_checkpointing_keeps_less():
    base, cp = (
        benchmark.bytes_kept(
            benchmark.build_backbone('r18', 'base', with_cp=with_cp), SMALL)
        for with_cp in (False, True))
    assert cp < base


# --- counts ------------------------------------------------------------------


class Steps(nn.Module):
    """Three kernels of known bytes, between views and new tensors."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = x.flatten()[:8].view(2, 4)
        shown = torch.empty(2, 4).copy_(x)  # 32 B, 32 B, and 32 B of the result
        return shown.mul_(2.).expand(3, 2, 4) * self.weight


def test_operations_are_counted():
    images, net = torch.ones(2, 3, 4, 4), Steps()
    with counts.Operations() as forward:
        out = net(images)
    assert forward.kernels == dict(copy_=1, mul_=1, mul=1)
    # The expanded argument counts once, its product whole.
    assert forward.bytes == dict(copy_=96, mul_=64, mul=32 + 16 + 96)
    with counts.Operations() as backward:
        out.sum().backward()
    assert backward.kernels['sum'] == 2  # of the loss, and to the weight


# Kernels forward and backward, and bytes, of a step of ResNetV1c-50 as a GPU
# runs it. Whoever changes the attention path and means to, runs
# `tools/benchmark.py --count --networks r50c` and writes down what it prints.
COUNTED = {
    'plain': (235, 183, 1945906176),
    'base': (435, 427, 3886689768),
    'ELA 50%': (331, 299, 2853752056),
    'light': (411, 391, 3237556512),
}
needs_this_torch = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.12'),
    reason='other versions have other operations')


@needs_this_torch
@pytest.mark.parametrize('variant', COUNTED)
def test_a_step_counts_what_it_did(variant):
    found = counts.count(
        benchmark.build_backbone('r50c', variant),
        Conditions('r50c', device='meta'))
    kernels = [sum(part.kernels.values()) for part in found]
    assert (*kernels, found.bytes) == COUNTED[variant]


@needs_this_torch
def test_a_cpu_starts_more_kernels_for_its_statistics():
    """Eight a layer: group norm's moments are put together."""
    found = {
        device: counts.count(
            benchmark.build_backbone('r18', 'base'),
            Conditions('r18', device=device, size=64))
        for device in ('meta', 'cpu')
    }
    assert found['cpu'].kernels - found['meta'].kernels == 8 * 8
    more = found['cpu'].beyond(found['meta'])
    assert more[0].name == 'native_group_norm' and more[0].kernels == (8, 0)


def test_times_of_a_gpu_are_those_of_events(monkeypatch):
    """Waiting comes after the last event, not within the step."""
    said = []

    class Event:

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            said.append('record')

        def synchronize(self):
            said.append('wait')

        def elapsed_time(self, other):
            return 250.

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    times = time_in_turns({'a': lambda: said.append('step')}, 2, warm_up=1,
                          clock=benchmark.seconds_on_gpu)
    assert times == {'a': [0.25, 0.25]}
    assert said == 3 * ['record', 'step', 'record', 'wait']


def run_tool(tool, monkeypatch, tmp_path, *arguments):
    monkeypatch.setattr(sys, 'argv', [
        'benchmark.py', '--rounds', '1', '--size', '32', '--device', 'cpu',
        '--out',
        str(tmp_path), *arguments
    ])
    tool.main()
    with open(tmp_path / 'benchmark.csv') as f:
        return {row['variant']: row for row in csv.DictReader(f)}


@needs_counter
def test_tool_writes_table_csv_and_plot(tool, monkeypatch, tmp_path, capsys):
    rows = run_tool(tool, monkeypatch, tmp_path, '--networks', 'r18',
                    '--variants', 'base', 'ELA 50%', '--no-peak')
    assert list(rows) == ['plain', 'base', 'ELA 50%']
    assert float(rows['plain']['time']) == 1
    assert rows['ELA 50%']['active'] == '4 of 8'
    assert float(rows['base']['kept']) > float(rows['ELA 50%']['kept']) > 1
    assert (tmp_path / 'benchmark.png').stat().st_size > 5000
    text = (tmp_path / 'benchmark.md').read_text()
    assert 'batch 2, 32 pixels, float32' in text and text in capsys.readouterr(
    ).out


def test_growth_is_drawn_for_every_variant(tool, tmp_path):
    variants = (*tool.VARIANTS, *tool.COMPARED)
    rows = [dict(network=f'stage3 x {layers}', variant=variant, time=i + layers,
                 kept=1., peak=None)
            for layers in (6, 12) for i, variant in enumerate(variants)]
    tool.plot(rows, 'Growth', str(tmp_path / 'growth.png'))
    assert (tmp_path / 'growth.png').stat().st_size > 10_000


@needs_torch_2_1
def test_tool_counts_without_timing(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, 'argv', [
        'benchmark.py', '--count', '--networks', 'r18', '--variants', 'base',
        '--size', '32', '--device', 'cpu', '--out', str(tmp_path)])
    monkeypatch.setattr(tool, 'measure', None)
    tool.main()
    text = (tmp_path / 'counts.md').read_text()
    assert text in capsys.readouterr().out
    gpu, cpu = text.split('**r18**')[1:]
    assert 'as a GPU runs it' in gpu and 'as a CPU runs it' in cpu
    for part in (gpu, cpu):
        assert '| plain | 1.00x | ' in part
        assert '| base | `convolution` | +8 | +8, +0 |' in part
        assert '| base | `convolution_backward` | +8 | +0, +8 |' in part
    assert '`native_group_norm` | +8' in cpu and 'group_norm' not in gpu


def test_tool_leaves_out_what_a_network_does_not_have(tool):
    chosen = ['plain', 'concatenating', 'base', 'light', 'ELA 50%']
    assert tool.offered(Conditions('swin-tiny'), chosen) == [
        'plain', 'base', 'ELA 50%']
    assert tool.offered(Conditions('r18'), chosen) == chosen


@needs_counter
def test_tool_measures_the_compared_systems(tool, monkeypatch, tmp_path):
    rows = run_tool(tool, monkeypatch, tmp_path, '--networks', 'cifar20',
                    '--systems', '--no-peak')
    assert list(rows) == ['plain', 'SE', 'ECA', 'CBAM', 'BAM', 'GC', 'NL', 'A2',
                          'AA', 'DIA', 'RLA', 'DLA-L', 'DLA-B', 'light', 'base',
                          'ELA 50%']
    plain = rows.pop('plain')
    for name, row in rows.items():
        assert int(row['parameters']) > int(plain['parameters']), name
        assert int(row['macs']) > int(plain['macs']), name
        assert float(row['kept']) > 1, name
    assert rows['SE']['active'] == '-' and rows['DLA-B']['active'] == '6 of 6'
    # Two blocks a stage: each channel squeezed by 16, and back.
    assert int(rows['SE']['parameters']) - int(plain['parameters']) == sum(
        2 * 2 * c * c // 16 for c in (64, 128, 256))


def test_systems_fit_networks_of_basic_blocks_and_sizes():
    for variant in benchmark.COMPARED:
        net = benchmark.build_backbone('r18', variant, with_cp=True, size=64)
        loss = net.train()(torch.randn(2, 3, 64, 64))[-1].square().mean()
        loss.backward()
        assert loss.isfinite(), variant
    tables = [p for n, p in benchmark.build_backbone(
        'r18', 'AA', size=64).named_parameters() if 'relative_rows' in n]
    # Maps of 8, 4 and 2 pixels a side, in two blocks each.
    assert [len(p) for p in tables] == [15, 15, 7, 7, 3, 3]


def test_a_step_with_cka_sr_compares_the_blocks():
    net = benchmark.build_backbone('r18', 'CKA-SR').train()
    outputs = []
    for stage in net.res_layers:
        for block in getattr(net, stage):
            block.register_forward_hook(lambda m, a, out: outputs.append(out))
    net(torch.randn(9, 3, 32, 32))
    first = [x[:8].detach().flatten(1).double() for x in outputs]
    grams = [x @ x.T for x in first]

    def hsic(k, l):  # noqa: E741
        k, l = (x - x.diag().diag() for x in (k, l))  # noqa: E741
        return ((k * l).sum() + k.sum() * l.sum() / 42 -
                (k.sum(0) * l.sum(0)).sum() / 3)

    pairs = sum(
        2 * hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()
        for k, l in zip(grams[::2], grams[1::2]))  # noqa: E741
    loss = net.regularizer()
    assert loss.item() == pytest.approx(1e-4 * (8 + pairs.item()), rel=1e-5)
    loss.backward()
    assert net.layer1[0].conv1.weight.grad.abs().sum() > 0
    conditions = benchmark.Conditions('r18', batch=2, size=32)
    with pytest.raises(UsageError, match='CKA of 2 samples'):
        benchmark.make_step(net, conditions)()


@needs_counter
def test_tool_measures_the_mask_of_a_checkpoint(tool, monkeypatch, tmp_path):
    net = benchmark.build_backbone('r18', 'base')
    net.skip_layers(['layer2.1', 'layer4.1'])
    checkpoint = tmp_path / 'pruned.pth'
    torch.save(
        dict(state_dict={'backbone.' + k: v
                         for k, v in net.state_dict().items()}), checkpoint)
    rows = run_tool(tool, monkeypatch, tmp_path, '--networks', 'r18',
                    '--variants', 'plain', '--mask', str(checkpoint),
                    '--inference', '--no-peak')
    assert rows['ELA mask']['active'] == '6 of 8'
    torch.save(dict(state_dict=dict(a=torch.ones(1))), checkpoint)
    with pytest.raises(UsageError, match='holds no mask'):
        run_tool(tool, monkeypatch, tmp_path, '--networks', 'r18', '--mask',
                 str(checkpoint))
    with pytest.raises(UsageError, match='is of one network'):
        run_tool(tool, monkeypatch, tmp_path, '--mask', str(checkpoint))


@pytest.mark.slow
def test_peaks_come_from_processes_of_their_own(tool, monkeypatch, tmp_path):
    rows = run_tool(tool, monkeypatch, tmp_path, '--networks', 'r50',
                    '--variants', 'concatenating', '--size', '160', '--batch',
                    '4')
    assert float(rows['concatenating']['peak']) > 1.2


def test_unknown_network_is_refused():
    with pytest.raises(UsageError, match="network 'r99'"):
        benchmark.build_backbone('r99', 'plain')
