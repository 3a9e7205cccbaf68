"""What layer attention costs and what pruning saves, side by side.

Times and memory of a training step or of inference, as ratios to the plain
network: the concatenating formulation of the equations, this package's
MRLA-base and MRLA-light, ELA with a part of its layers skipped, and the other
systems that the paper compares. The variants take turns in one process; a ratio
is the median over rounds.
"""
import argparse
import csv
import json
import os
import os.path as osp
import platform
import statistics
import subprocess
import sys
import textwrap
from typing import Dict, List, Optional

# As in ela_mm.experiments.benchmark.
NETWORKS = ('r18', 'r34', 'r50', 'r50c', 'r50-d8', 'r101', 'r101c', 'r101-d8',
            'r152', 'cifar20', 'cifar56', 'cifar110', 'convnext-tiny',
            'swin-tiny', 'deit-tiny', 'cspnext-s', 'pvt-v2-b0',
            'regnetx-3.2gf')
VARIANTS = ('plain', 'concatenating', 'base', 'fused', 'measuring',
            'own value', 'separate light', 'light', 'ELA 25%', 'ELA 50%',
            'ELA 80%')
COMPARED = ('SE', 'ECA', 'CBAM', 'BAM', 'GC', 'NL', 'A2', 'AA', 'DIA', 'RLA',
            'DLA-L', 'DLA-B', 'CKA-SR')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        '--networks',
        nargs='+',
        default=['r50', 'r101'],
        choices=NETWORKS)
    parser.add_argument(
        '--variants',
        nargs='+',
        default=[v for v in VARIANTS if v != 'fused'],
        choices=[*VARIANTS, *COMPARED],
        metavar='VARIANT',
        help='variants to measure, among ' + ', '.join(
            map(repr, VARIANTS + COMPARED)).replace('%', '%%') +
        "; 'plain' is always measured, and 'fused' is base with fused=True")
    parser.add_argument(
        '--systems',
        action='store_true',
        help='measure every system that the paper compares, instead of '
        '--variants')
    parser.add_argument(
        '--mask',
        metavar='CHECKPOINT',
        help='also measure the network with the layers skipped that this '
        'checkpoint skips; it has to be the only one of --networks')
    parser.add_argument(
        '--growth',
        action='store_true',
        help='measure the cost against the number of layers in the third stage '
        '(6, 12, 23 and 36), instead of --networks')
    parser.add_argument(
        '--count',
        action='store_true',
        help='count the kernels that a step launches and the bytes that it '
        'moves, which are the same on every machine. On a CPU this replaces the '
        'timing, and a step as a GPU runs it is counted too, without computing; '
        'on CUDA the timing follows')
    parser.add_argument(
        '--default-allocator',
        action='store_true',
        help="use the C library's default; otherwise, on a CPU, it is told to "
        'keep freed memory, as PyTorch does on CUDA, lest chance decide which '
        'variant waits for pages')
    parser.add_argument(
        '--inference', action='store_true',
        help='run only forward, in evaluation mode')
    parser.add_argument(
        '--device',
        choices=['cpu', 'cuda'],
        help='device to run on; None: cuda where there is one')
    parser.add_argument(
        '--amp', action='store_true', help='run forward in bfloat16 autocast')
    parser.add_argument(
        '--channels-last',
        action='store_true',
        help='keep images and weights in channels last')
    parser.add_argument(
        '--compile', action='store_true', help='torch.compile the backbones')
    parser.add_argument(
        '--with-cp',
        action='store_true',
        help='use activation checkpointing in all but the plain network')
    parser.add_argument(
        '--batch', type=int, default=2, help='number of images in a batch')
    parser.add_argument(
        '--size',
        type=int,
        help='side of an image in pixels; None: 224, or 32 for CIFAR networks')
    parser.add_argument(
        '--channels', type=int, default=3, help='channels of an image')
    parser.add_argument(
        '--rounds',
        type=int,
        default=15,
        help='number of rounds, in each of which every variant takes a step')
    parser.add_argument(
        '--no-peak',
        action='store_true',
        help='leave out the peaks of memory, each of which takes a process of '
        'its own on a CPU')
    parser.add_argument(
        '--out',
        default='work_dirs/benchmark',
        metavar='FOLDER',
        help='folder for benchmark.csv, .md and .png')
    # Given by this script itself: what a process of its own measures, as JSON.
    parser.add_argument('--peak-of', help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # --help and typos end here, before what takes seconds

import torch
from rich.progress import track

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.analysis import count_macs
from ela_mm.apis.launch import UsageError, check_checkpoint, run
from ela_mm.experiments import benchmark, counts
from ela_mm.experiments.benchmark import Conditions
from ela_mm.timing import ratio, seconds_of, time_in_turns

COLUMNS = ('variant', 'active', 'time', 'step, ms', 'kept for backward',
           'peak of memory', 'parameters, M', 'GMACs')
SYSTEMS = (*benchmark.COMPARED, 'light', 'base', 'ELA 50%')


def load_mask(path: str) -> Dict[str, torch.Tensor]:
    """Read the mask, ``active`` and ``visible``, from a checkpoint."""
    check_checkpoint(path)
    state = torch.load(path, map_location='cpu', weights_only=True)
    state = state.get('state_dict', state) if isinstance(state, dict) else {}
    mask = {
        name: value
        for key, value in state.items() for name in ('active', 'visible')
        if key == name or key.endswith('backbone.' + name)
    }
    if len(mask) != 2:
        raise UsageError(f'--mask {path!r} holds no mask of layer attention: '
                         'expected a checkpoint of a network with ELAResNet')
    return mask


def peak(conditions: Conditions, variant: str, mask: Optional[str]) -> int:
    """Measure the peak of memory; on a CPU in a process of its own."""
    if conditions.device != 'cpu':
        return benchmark.peak_bytes(
            build(conditions, variant, mask), conditions)
    request = json.dumps([conditions, variant, mask])
    output = subprocess.run(
        [sys.executable, osp.abspath(__file__), '--peak-of', request],
        check=True,
        stdout=subprocess.PIPE,
        text=True).stdout
    return int(output.split()[-1])


def build(conditions: Conditions, variant: str, mask: Optional[str]):
    return benchmark.build_backbone(
        conditions.network, variant, conditions.with_cp,
        load_mask(mask) if variant == 'ELA mask' else None, conditions.size,
        conditions.channels)


def offered(conditions: Conditions, variants: List[str]) -> List[str]:
    """Return those of the variants that the network has."""
    return [v for v in variants if benchmark.offers(conditions.network, v)]


def measure(conditions: Conditions, variants: List[str],
            args: argparse.Namespace) -> List[dict]:
    """Return a row for each of the variants that the network has."""
    torch.manual_seed(0)
    variants = offered(conditions, variants)
    networks = {v: build(conditions, v, args.mask) for v in variants}
    kept = {
        v: benchmark.bytes_kept(network, conditions)
        for v, network in networks.items()
    } if conditions.training else {}
    seconds = time_in_turns(
        {v: benchmark.make_step(n, conditions)
         for v, n in networks.items()}, args.rounds,
        progress=lambda rounds: track(rounds, conditions.network),
        clock=seconds_of if conditions.device == 'cpu' else
        benchmark.seconds_on_gpu)
    costs = {
        v: count_macs(network.cpu(), (
            conditions.channels, conditions.size, conditions.size))
        for v, network in networks.items()
    }
    active = {
        v: (sum(layer.active for layer in network.attention_layers),
            len(network.attention_layers))
        for v, network in networks.items()
    }
    del networks
    peaks = {} if args.no_peak else {
        v: peak(conditions, v, args.mask)
        for v in track(variants, f'{conditions.network}, memory')
    }
    rows = []
    for v in variants:
        rows.append(
            dict(
                network=conditions.network,
                variant=v,
                active='{} of {}'.format(*active[v]) if active[v][1] else '-',
                time=ratio(seconds[v], seconds['plain']),
                step_ms=1e3 * statistics.median(seconds[v]),
                kept=kept[v] / kept['plain'] if kept else None,
                kept_mb=kept[v] / 1e6 if kept else None,
                peak=peaks[v] / peaks['plain'] if peaks else None,
                peak_mb=peaks[v] / 1e6 if peaks else None,
                parameters=costs[v].parameters,
                macs=costs[v].macs))
    return rows


def count(all_conditions: List[Conditions], variants: List[str],
          args: argparse.Namespace) -> None:
    """Count what each network's variants run; print and write counts.md."""
    sections = []
    for conditions in all_conditions:
        # In half precision and channels last a CPU runs what a GPU runs.
        both = args.device == 'cpu' and not (args.amp or args.channels_last)
        for device in (('meta', 'cpu') if both else (args.device, )):
            found = {
                v: counts.count(
                    build(conditions, v, args.mask),
                    conditions._replace(device=device))
                for v in track(
                    offered(conditions, variants),
                    f'{conditions.network}, {device}')
            }
            place = 'a GPU' if device in ('meta', 'cuda') else 'a CPU'
            sections += [
                f'**{conditions.network}**, as {place} runs it', '',
                counts.table(found), counts.table_of_operations(found)
            ]
    step = 'inference' if args.inference else 'forward and backward'
    text = '\n'.join([
        f'Backbone, {step}, batch {args.batch}, PyTorch {torch.__version__}: '
        'operations that reach a backend, without views and new, unwritten '
        'tensors; bytes of their tensor arguments and results.', '', *sections
    ])
    path = osp.join(args.out, 'counts.md')
    with open(path, 'w', encoding='utf-8') as f:
        f.write(text)
    print(text)
    print(f'Written: {path}')


def markdown(rows: List[dict]) -> str:
    """Format the rows as Markdown, one table per network."""
    lines = []
    for network in dict.fromkeys(row['network'] for row in rows):
        lines += [
            f'**{network}**', '', '| ' + ' | '.join(COLUMNS) + ' |',
            '| ' + ' | '.join('---' for _ in COLUMNS) + ' |'
        ]
        for row in rows:
            if row['network'] != network:
                continue
            lines.append('| ' + ' | '.join([
                row['variant'], row['active'], f'{row["time"]:.2f}x',
                f'{row["step_ms"]:.1f}',
                _with_mb(row['kept'], row['kept_mb']),
                _with_mb(row['peak'], row['peak_mb']),
                f'{row["parameters"] / 1e6:.2f}', f'{row["macs"] / 1e9:.3f}'
            ]) + ' |')
        lines.append('')
    return '\n'.join(lines)


def _with_mb(ratio: Optional[float], megabytes: Optional[float]) -> str:
    return '-' if ratio is None else f'{ratio:.2f}x ({megabytes:.0f} MB)'


def describe(args: argparse.Namespace, kept: bool) -> str:
    """Describe the conditions in a sentence; ``kept``: freed memory is kept."""
    machine = (
        torch.cuda.get_device_name() if args.device == 'cuda' else
        f'{torch.get_num_threads()} CPU threads ({platform.machine()})')
    options = [
        text for on, text in ((args.amp, 'bfloat16 autocast'),
                              (not args.amp, 'float32'),
                              (args.channels_last, 'channels last'),
                              (args.compile, 'torch.compile'),
                              (args.with_cp, 'with_cp=True'),
                              (args.channels != 3,
                               f'{args.channels} channels'),
                              (kept, 'freed memory kept')) if on
    ]
    step = 'inference' if args.inference else 'forward and backward'
    return (f'Backbone, {step}, batch {args.batch}, '
            f'{f"{args.size} pixels" if args.size else "default sizes"}, '
            f'{", ".join(options)}, {machine}, PyTorch '
            f'{torch.__version__}; medians of {args.rounds} rounds in which '
            'the variants take turns, as ratios to the plain network.')


def plot(rows: List[dict], title: str, path: str) -> None:
    """Plot time and memory: bars per variant, or lines over T for --growth."""
    import matplotlib
    matplotlib.use('agg')
    from matplotlib import pyplot as plt
    measures = [('time', 'time'), ('kept', 'bytes kept for backward'),
                ('peak', 'peak of memory')]
    measures = [m for m in measures if rows[0][m[0]] is not None]
    networks = list(dict.fromkeys(row['network'] for row in rows))
    variants = list(dict.fromkeys(row['variant'] for row in rows))
    figure, axes = plt.subplots(
        1, len(measures), squeeze=False,
        figsize=(4.5 * len(measures), max(3.6, 0.3 * len(variants))))
    # Okabe and Ito's colours, which differ in lightness too; with hatches.
    colours = ('#000000', '#E69F00', '#56B4E9', '#009E73')
    for axis, (key, label) in zip(axes[0], measures):
        if networks[0].startswith('stage3'):
            lengths = [int(n.split()[-1]) for n in networks]
            for i, variant in enumerate(variants):
                axis.plot(
                    lengths,
                    [r[key] for r in rows if r['variant'] == variant],
                    color=colours[i % 4],
                    marker='os^Dvx*P+'[i % 9],  # with colours: 36 kinds
                    label=variant)
            axis.set_xlabel('layers in the third stage')
            axis.set_xticks(lengths)
        else:
            width = 0.8 / len(networks)
            for i, network in enumerate(networks):
                axis.barh(
                    [v + i * width for v in range(len(variants))],
                    [r[key] for r in rows if r['network'] == network],
                    height=width,
                    color=colours[(i + 1) % 4],
                    hatch=('', '//', '..', 'xx')[i % 4],
                    edgecolor='black',
                    linewidth=0.4,
                    label=network)
            axis.set_yticks([v + 0.4 - width / 2 for v in
                             range(len(variants))], variants)
            axis.invert_yaxis()
            axis.axvline(1, color='black', linewidth=0.8)
        axis.set_title(f'{label}, ratio to plain', fontsize=10)
    axes[0][0].legend(fontsize=8)
    figure.suptitle(textwrap.fill(title, 75 * len(measures)), fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    args = parse_args()
    if args.device is None:
        args.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if args.peak_of:
        conditions, variant, mask = json.loads(args.peak_of)
        conditions = Conditions(*conditions)
        print(
            benchmark.peak_bytes(
                build(conditions, variant, mask), conditions))
        return
    kept = (
        args.device == 'cpu' and not args.default_allocator
        and benchmark.keep_freed_memory())
    networks = args.networks
    if args.growth:
        networks = [f'stage3 x {depth}' for depth in benchmark.GROWTH]
    if args.channels < 1:
        raise UsageError(f'--channels {args.channels}: expected 1 or more')
    if args.mask and len(networks) != 1:
        raise UsageError(f'--mask is of one network, but {len(networks)} are '
                         'measured: name its own with --networks')
    chosen = SYSTEMS if args.systems else args.variants
    variants = ['plain'] + [v for v in chosen if v != 'plain']
    if args.mask:
        variants.append('ELA mask')
    conditions = [
        Conditions(
            network, not args.inference, args.device, args.amp, args.batch,
            args.size or (32 if network.startswith('cifar') else 224),
            args.channels_last, args.compile, args.with_cp, args.channels)
        for network in networks
    ]
    os.makedirs(args.out, exist_ok=True)
    if args.count:
        count(conditions, variants, args)
        if args.device == 'cpu':
            return
    rows = [row for c in conditions for row in measure(c, variants, args)]
    text = f'{describe(args, kept)}\n\n{markdown(rows)}'
    with open(osp.join(args.out, 'benchmark.md'), 'w', encoding='utf-8') as f:
        f.write(text)
    with open(osp.join(args.out, 'benchmark.csv'), 'w', newline='',
              encoding='utf-8') as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, describe(args, kept), osp.join(args.out, 'benchmark.png'))
    print(text)
    print(f'Written: {args.out}/benchmark.md, .csv and .png')


if __name__ == '__main__':
    run(main)
