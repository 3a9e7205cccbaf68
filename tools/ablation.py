"""Run a grid of criteria or architectures x depths x seeds, and tabulate it.

    tools/ablation.py --preset digits
    tools/ablation.py my_grid.yaml --out work_dirs/my_grid

Each run has its own process and folder. What is finished is not run again, a
run that was killed goes on from its last checkpoint.
"""
import argparse
import csv
import glob
import io
import json
import os
import os.path as osp
import statistics
import subprocess
import sys
from typing import List, Optional

from mmengine.config import Config

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.apis.data import check_data, prepare_config
from ela_mm.apis.launch import UsageError, build_runner, run
from ela_mm.engine.checkpoints import resume_latest
from ela_mm.engine.hooks.reseed_hook import ensure_reseeding
from ela_mm.engine.journal.record import FILE_NAME, read_record, write_whole
from ela_mm.experiments.grid import Cell, apply_overrides, cells, read_grid

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
PRESETS = osp.join(ROOT, 'configs', 'ablations')
METRIC = 'accuracy/top1'
CELL = 'cell.json'
RESULT = 'result.json'
FIELDS = ('variant', 'depth', 'seed', 'top1', 'skipped', 'skipped_layers',
          'parameters', 'epoch_seconds', 'last_epoch_seconds')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('grid', nargs='?', help='a .yaml, .json or .py file')
    parser.add_argument('--preset', help='a grid that comes along: ' +
                        ', '.join(presets()))
    parser.add_argument('--out', help='folder of the runs; default: '
                        'work_dirs/ablation_<name>')
    parser.add_argument(
        '--collect',
        action='store_true',
        help='run nothing, tabulate what is finished')
    # One run, in its own process: its folder, with the cell in it.
    parser.add_argument('--cell', help=argparse.SUPPRESS)
    return parser.parse_args()


def presets() -> List[str]:
    """Names of the grids that come along."""
    return sorted(osp.splitext(name)[0] for name in os.listdir(PRESETS)
                  if name.endswith(('.yaml', '.py')))


def train_cell(folder: str) -> None:
    """Train the run of a folder, or go on with it, and write its result."""
    with open(osp.join(folder, CELL)) as file:
        cell = Cell(**json.load(file)['cell'])
    cfg = Config.fromfile(cell.config)
    apply_overrides(cfg, cell.overrides)
    prepare_config(cfg)
    cfg.model.backbone.depth = cell.depth
    cfg.randomness = dict(seed=cell.seed)
    cfg.work_dir = folder
    resume_latest(cfg)
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    runner = build_runner(cfg)
    ensure_reseeding(runner)
    runner.train()
    # Evaluated here: of a run that was killed after its last checkpoint, the
    # last evaluation may be missing.
    top1 = float(runner.val()[METRIC])
    steps = len(runner.train_dataloader)
    seconds, _ = runner.message_hub.get_scalar('train/time').data
    skipped = []
    if osp.isfile(osp.join(folder, FILE_NAME)):
        record = read_record(folder)
        skipped = [n for n in record['layers'] if n not in record['active']]
    result = dict(
        variant=cell.variant,
        depth=cell.depth,
        seed=cell.seed,
        top1=top1,
        skipped=len(skipped),
        skipped_layers=skipped,
        parameters=sum(p.numel() for p in runner.model.parameters()),
        epoch_seconds=float(seconds.mean() * steps),
        last_epoch_seconds=float(seconds[-steps:].mean() * steps))
    write_whole(json.dumps(result, indent=1), osp.join(folder, RESULT))


def finished(cell: Cell, folder: str) -> Optional[dict]:
    """The result of a finished run, None if it is not.

    Raises:
        UsageError: If it was begun under other settings.
    """
    path = osp.join(folder, CELL)
    if osp.isfile(path):
        with open(path) as file:
            if json.load(file)['fingerprint'] != cell.fingerprint:
                raise UsageError(
                    f'{folder} was begun under other settings than the grid '
                    'or its config gives now: choose another --out, or '
                    'remove that folder')
    path = osp.join(folder, RESULT)
    if not osp.isfile(path):
        return None
    with open(path) as file:
        return json.load(file)


def run_grid(runs: List[Cell], out: str) -> int:
    """Run what is not finished; return the number of failures."""
    failures = 0
    for number, cell in enumerate(runs, start=1):
        folder = osp.join(out, cell.folder)
        label = (f'[{number}/{len(runs)}] {cell.variant}, depth {cell.depth}, '
                 f'seed {cell.seed}')
        if finished(cell, folder) is not None:
            print(f'{label}: finished before', flush=True)
            continue
        begun = dict(cell=cell._asdict(), fingerprint=cell.fingerprint)
        write_whole(json.dumps(begun), osp.join(folder, CELL))
        print(f'{label}: training ...', flush=True)
        log = osp.join(folder, 'output.log')
        with open(log, 'a') as file:
            process = subprocess.run(
                [sys.executable, osp.abspath(__file__), '--cell', folder],
                stdout=file, stderr=subprocess.STDOUT)
        result = finished(cell, folder)
        if process.returncode or result is None:
            failures += 1
            print(f'{label}: failed, see {log}', flush=True)
        else:
            print(f'{label}: top-1 {result["top1"]:.2f}, '
                  f'{result["skipped"]} layers skipped', flush=True)
    return failures


def tabulate(grid: dict, runs: List[Cell], out: str) -> str:
    """Write results.csv and results.md; return the Markdown table."""
    results = [r for cell in runs
               if (r := finished(cell, osp.join(out, cell.folder)))]
    if not results:
        raise UsageError(f'no finished run below {out}: nothing to tabulate')
    rows = io.StringIO()
    writer = csv.DictWriter(rows, FIELDS, extrasaction='ignore')
    writer.writeheader()
    for result in results:
        writer.writerow({**result, 'skipped_layers':
                         ' '.join(result['skipped_layers'])})
    write_whole(rows.getvalue(), osp.join(out, 'results.csv'))
    lines = [f'# {grid.get("title", "Ablation")}', '',
             '| variant | depth | top-1, % | paper | layers skipped | '
             's per epoch, last | parameters | runs |',
             '| --- | --- | --- | --- | --- | --- | --- | --- |']
    for depth in grid['depths']:
        for variant in grid['variants']:
            group = [r for r in results
                     if (r['variant'], r['depth']) == (variant, depth)]
            if group:
                paper = grid.get('paper', {}).get(variant, {}).get(depth, '-')
                lines.append(
                    f'| {variant} | {depth} | {_spread(group, "top1", 2)} | '
                    f'{paper} | {_spread(group, "skipped", 1)} | '
                    f'{_spread(group, "last_epoch_seconds", 2)} | '
                    f'{group[0]["parameters"] / 1e6:.4f} M | '
                    f'{len(group)} of {len(grid["seeds"])} |')
    table = '\n'.join(lines) + '\n'
    write_whole(table, osp.join(out, 'results.md'))
    return table


def _spread(group: List[dict], key: str, digits: int) -> str:
    """Mean and standard deviation over the seeds."""
    values = [result[key] for result in group]
    text = f'{statistics.mean(values):.{digits}f}'
    if len(values) > 1:
        text += f' ± {statistics.stdev(values):.{digits}f}'
    return text


def main() -> None:
    args = parse_args()
    if args.cell:
        train_cell(args.cell)
        return
    if (args.grid is None) == (args.preset is None):
        raise UsageError('expected either a grid file or --preset '
                         f'({", ".join(presets())})')
    if args.preset is not None and args.preset not in presets():
        raise UsageError(f'unknown preset {args.preset!r}: expected one of '
                         f'{", ".join(presets())}')
    path = args.grid or glob.glob(osp.join(PRESETS, f'{args.preset}.*'))[0]
    grid = read_grid(path)
    name = osp.splitext(osp.basename(path))[0]
    out = args.out or osp.join('work_dirs', f'ablation_{name}')
    runs = cells(grid, ROOT)
    failures = 0 if args.collect else run_grid(runs, out)
    table = tabulate(grid, runs, out)
    print(f'\n{table}\n{out}/results.csv\n{out}/results.md')
    if failures:
        raise UsageError(f'{failures} of {len(runs)} runs failed; the same '
                         'command runs them again')


if __name__ == '__main__':
    os.environ.setdefault('MPLBACKEND', 'agg')
    run(main)
