"""Run a grid of criteria, architectures or systems, and tabulate the results.

    tools/ablation.py --preset digits
    tools/ablation.py --preset table1_cifar10
    tools/ablation.py my_grid.yaml --out work_dirs/my_grid

The runs of a grid are all variants x depths x seeds. Each run has its own
process and folder. Finished runs are not run again, and interrupted runs are
resumed from their last checkpoint.

A study measures whether redundancy finds the layers that matter least, or how
attention should start (docs/validity.md):

    tools/ablation.py --preset validity --jobs 2
    tools/ablation.py --preset validity_digits
"""
import argparse
import csv
import glob
import io
import json
import numbers
import os
import os.path as osp
import statistics
import subprocess
import sys
from typing import Iterable, List, Optional

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
PRESETS = osp.join(ROOT, 'configs', 'ablations')
STUDIES = osp.join(ROOT, 'configs', 'studies')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('grid', nargs='?', help='grid file: .yaml, .json or .py')
    parser.add_argument('--preset', help='name of a grid of this package: ' +
                        ', '.join(presets()))
    parser.add_argument('--out', help='folder of the runs; default: '
                        'work_dirs/ablation_<name>')
    parser.add_argument(
        '--collect',
        action='store_true',
        help='run nothing, only tabulate finished runs')
    parser.add_argument(
        '--jobs',
        type=int,
        default=1,
        help='for studies: number of processes, with one thread each; default: '
        '1')
    parser.add_argument(
        '--data-root',
        help="for studies: folder of the images, instead of the config's")
    # Folder of one run, which this process trains.
    parser.add_argument('--cell', help=argparse.SUPPRESS)
    return parser.parse_args()


def presets() -> List[str]:
    """List the names of this package's grids and studies."""
    return sorted(osp.splitext(name)[0] for folder in (PRESETS, STUDIES)
                  for name in os.listdir(folder)
                  if name.endswith(('.yaml', '.py')))


if __name__ == '__main__':
    parse_args()  # --help and typos end here, before what takes seconds

from mmengine.config import Config
from torch import nn

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.analysis import count_macs
from ela_mm.analysis.run_names import CELL
from ela_mm.apis.data import check_data, picture_shape
from ela_mm.apis.downloads import downloads_explained
from ela_mm.apis.launch import UsageError, build_runner, run
from ela_mm.engine.checkpoints import resume_latest
from ela_mm.engine.hooks.reseed_hook import ensure_reseeding
from ela_mm.engine.journal.record import FILE_NAME, read_record, write_whole
from ela_mm.experiments.checks import check_cells, config_of
from ela_mm.experiments.grid import (
    Cell,
    cells,
    published_number,
    read_grid,
    short_name,
)
from ela_mm.experiments.validity.report import write_report
from ela_mm.experiments.validity.run import run_study
from ela_mm.experiments.validity.study import is_study, read_study
from ela_mm.hosts.registration import host_of_model
from ela_mm.models.backbones.pictures import picture_channels
from ela_mm.plotting import printable

RESULT = 'result.json'
# Columns of results.csv, followed by the metrics.
FIELDS = ('variant', 'network', 'depth', 'seed', 'skipped', 'skipped_layers',
          'parameters', 'macs', 'epoch_seconds', 'last_epoch_seconds',
          'step_seconds')


def preset_path(name: str) -> str:
    """Return the path of a preset.

    Raises:
        UsageError: If there is no preset of that name.
    """
    if name not in presets():
        raise UsageError(f'unknown preset {name!r}: expected one of '
                         f'{", ".join(presets())}')
    return next(path for folder in (PRESETS, STUDIES)
                for path in glob.glob(osp.join(folder, f'{name}.*')))


def train_cell(folder: str) -> None:
    """Train or resume the run of a folder, and write its result."""
    cell = Cell(**read_back(osp.join(folder, CELL), 'cell')['cell'])
    cfg = config_of(cell)
    cfg.work_dir = folder
    resume_latest(cfg)
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    runner = build_runner(cfg)
    ensure_reseeding(runner)
    with downloads_explained(cfg):
        runner.train()
    # A run that was killed after its last checkpoint may lack its last
    # evaluation.
    scores = runner.val()
    steps = len(runner.train_dataloader)
    seconds, _ = runner.message_hub.get_scalar('train/time').data
    skipped = []
    if osp.isfile(osp.join(folder, FILE_NAME)):
        record = read_record(folder)
        skipped = [n for n in record['layers'] if n not in record['active']]
    result = dict(
        {short_name(name): float(score) for name, score in scores.items()
         if isinstance(score, numbers.Real)},  # float32 in MMSegmentation
        variant=cell.variant,
        network=cell.network,
        depth=cell.depth,
        seed=cell.seed,
        skipped=len(skipped),
        skipped_layers=skipped,
        parameters=sum(p.numel() for p in runner.model.parameters()),
        macs=classifier_macs(runner.model, cfg),
        epoch_seconds=float(seconds.mean() * steps),
        last_epoch_seconds=float(seconds[-steps:].mean() * steps),
        step_seconds=statistics.median(map(float, seconds)))
    write_whole(json.dumps(result, indent=1), osp.join(folder, RESULT))


def classifier_macs(model: nn.Module, cfg: Config) -> Optional[int]:
    """Count multiply-accumulates for an image; None for a detector."""
    if host_of_model(model).default_part(model) == 'backbone':
        return None
    try:
        picture = picture_channels(model), *picture_shape(cfg)
        return count_macs(model, picture).macs
    except UsageError as error:  # too old a torch must not make the run fail
        print(error)
        return None


def finished(cell: Cell, folder: str) -> Optional[dict]:
    """Read the result of a run; None if it is not finished.

    Raises:
        UsageError: If the run was begun under other settings.
    """
    path = osp.join(folder, CELL)
    if osp.isfile(path):
        other = cell.difference(read_back(path, 'fingerprint'))
        if other is not None:
            raise UsageError(
                f'{folder} was begun under other settings than the grid or '
                f'its config gives now ({other}): choose another --out, or '
                'remove that folder')
    path = osp.join(folder, RESULT)
    if not osp.isfile(path):
        return None
    return read_back(path, 'skipped', 'skipped_layers', 'parameters',
                     'last_epoch_seconds')


def read_back(path: str, *keys: str) -> dict:
    """Read a JSON file that an earlier start has written.

    Raises:
        UsageError: If it is damaged, or lacks one of the keys.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        raise UsageError(f'{path} is damaged: remove its folder, and the run '
                         'starts over')
    return content


def run_grid(runs: List[Cell], out: str, metric: str) -> int:
    """Run all unfinished runs; return the number of failures."""
    failures = 0
    for number, cell in enumerate(runs, start=1):
        folder = osp.join(out, cell.folder)
        label = f'[{number}/{len(runs)}] {printable(cell.label)}'
        if finished(cell, folder) is not None:
            print(f'{label}: finished before', flush=True)
            continue
        write_whole(json.dumps(cell.begin()), osp.join(folder, CELL))
        print(f'{label}: training ...', flush=True)
        log = osp.join(folder, 'output.log')
        with open(log, 'ab') as file:
            process = subprocess.run(
                [sys.executable, osp.abspath(__file__), '--cell', folder],
                stdout=file, stderr=subprocess.STDOUT)
        result = finished(cell, folder)
        if process.returncode or result is None:
            failures += 1
            print(f'{label}: failed, see {log}: {last_line(log)}', flush=True)
        else:
            value = score(result, metric)
            print(f'{label}: {title(metric)} '
                  f'{"not evaluated" if value is None else f"{value:.2f}"}, '
                  f'{result["skipped"]} layers skipped', flush=True)
    return failures


def last_line(log: str) -> str:
    """Return the last line of a log, which usually says why a run failed."""
    with open(log, encoding='utf-8', errors='replace') as file:
        lines = [line.strip() for line in file if line.strip()]
    return printable(lines[-1])[:300] if lines else 'it said nothing'


def title(metric: str) -> str:
    """Return the name of a metric in tables."""
    return dict(top1='top-1', top5='top-5').get(
        short_name(metric), short_name(metric))


def score(result: dict, metric: str) -> Optional[float]:
    """Return a metric of a run in percent; None if it was not evaluated."""
    value = result.get(short_name(metric))
    if value is not None and metric.startswith('coco/'):  # from 0 to 1
        value *= 100
    return value


def tabulate(grid: dict, runs: List[Cell], out: str) -> str:
    """Write results.csv and results.md; return the Markdown table."""
    results = {(cell.network, cell.variant, cell.seed): result for cell in runs
               if (result := finished(cell, osp.join(out, cell.folder)))}
    if not results:
        raise UsageError(f'no finished run below {out}: nothing to tabulate')
    rows = io.StringIO()
    writer = csv.DictWriter(
        rows, (*FIELDS, *map(short_name, grid['metrics'])),
        extrasaction='ignore')
    writer.writeheader()
    for result in results.values():
        writer.writerow({**result, 'skipped_layers':
                         ' '.join(result['skipped_layers'])})
    write_whole(rows.getvalue(), osp.join(out, 'results.csv'))
    first = runs[0].variant
    header = ['variant', 'network' if runs[0].name else 'depth']
    for metric in grid['metrics']:
        header += [f'{title(metric)}, %', 'paper']
    header += ['layers skipped', 's per epoch, last', f'step, to {first}',
               'parameters', 'GMACs', 'runs']
    lines = [f'# {printable(grid.get("title", "Ablation"))}', '',
             table_row(header), '|' + ' --- |' * len(header)]
    # One row for all seeds, in the order of the runs.
    for network, variant in dict.fromkeys((c.network, c.variant)
                                          for c in runs):
        seeds = [c.seed for c in runs
                 if (c.network, c.variant) == (network, variant)]
        done = {seed: results[network, variant, seed] for seed in seeds
                if (network, variant, seed) in results}
        if not done:
            continue
        group = list(done.values())
        row = [variant, '-' if network is None else str(network)]
        for metric in grid['metrics']:
            paper = published_number(grid, variant, network, metric)
            row += [_spread((score(r, metric) for r in group), 2),
                    '-' if paper is None else str(paper)]
        ratios = (_ratio(result, results.get((network, first, seed)))
                  for seed, result in done.items())
        macs = group[0].get('macs')
        row += [_spread((r['skipped'] for r in group), 1),
                _spread((r['last_epoch_seconds'] for r in group), 2),
                _spread(ratios, 2),
                f'{group[0]["parameters"] / 1e6:.4f} M',
                '-' if macs is None else f'{macs / 1e9:.4f}',
                f'{len(done)} of {len(seeds)}']
        lines.append(table_row(row))
    table = '\n'.join(lines) + '\n'
    write_whole(table, osp.join(out, 'results.md'))
    return table


def table_row(row: Iterable[str]) -> str:
    """Format a row of a Markdown table, with special characters escaped."""
    texts = (printable(text).replace('|', r'\|') for text in row)
    return f'| {" | ".join(texts)} |'


def _ratio(result: dict, reference: Optional[dict]) -> Optional[float]:
    """Compute a run's median step relative to the reference's."""
    if 'step_seconds' not in result or 'step_seconds' not in (reference or {}):
        return None
    return result['step_seconds'] / reference['step_seconds']


def _spread(values: Iterable[Optional[float]], digits: int) -> str:
    """Format mean and standard deviation over the seeds."""
    values = list(values)
    if None in values:
        return '-'
    text = f'{statistics.mean(values):.{digits}f}'
    if len(values) > 1:
        text += f' ± {statistics.stdev(values):.{digits}f}'
    return text


def run_and_report(args: argparse.Namespace, path: str, out: str) -> None:
    """Run a study, then write its tables and pictures."""
    study = read_study(path, ROOT, args.data_root)
    if args.jobs < 1:
        raise UsageError(f'--jobs {args.jobs}: expected 1 or more')
    failures = 0 if args.collect else run_study(study, out, args.jobs)
    text, written = write_report(study, out)
    print('', text, *written, sep='\n')
    if failures:
        raise UsageError(f'{failures} networks failed; the same command runs '
                         'them again')


def main() -> None:
    args = parse_args()
    if args.cell:
        train_cell(args.cell)
        return
    if (args.grid is None) == (args.preset is None):
        raise UsageError('expected either a grid file or --preset '
                         f'({", ".join(presets())})')
    path = args.grid or preset_path(args.preset)
    name = osp.splitext(osp.basename(path))[0]
    out = args.out or osp.join('work_dirs', f'ablation_{name}')
    if is_study(path):
        run_and_report(args, path, out)
        return
    grid = read_grid(path)
    runs = cells(grid, ROOT)
    if not args.collect:
        check_cells([cell for cell in runs
                     if finished(cell, osp.join(out, cell.folder)) is None])
    failures = 0 if args.collect else run_grid(runs, out, grid['metrics'][0])
    table = tabulate(grid, runs, out)
    print(f'\n{table}\n{out}/results.csv\n{out}/results.md')
    if failures:
        raise UsageError(f'{failures} of {len(runs)} runs failed; the same '
                         'command runs them again')


if __name__ == '__main__':
    os.environ.setdefault('MPLBACKEND', 'agg')
    run(main)
