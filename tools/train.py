"""Train a detector, a classifier or a segmentor from its config.

One GPU or the CPU: python tools/train.py CONFIG
Several GPUs: torchrun --nproc_per_node=8 tools/train.py CONFIG --launcher pytorch
"""
import argparse
import sys


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file of a detector, a '
                        'classifier or a segmentor')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints; default: that of the config, or '
        'else work_dirs/<name of the config>')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        help='override settings of the config: key=value, nested keys by '
        'dots, lists as key="[a,b]" or key=a,b, without white space')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how distributed processes are started')
    # torch.distributed.launch passes it; torchrun sets LOCAL_RANK.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint; without a value, from the latest '
        'intact one in the work dir, or start if there is none')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision (needs a GPU)')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the batch size that is used')
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='print what the training would do and why it might be refused, '
        'time a few steps, and end; nothing is written')
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # --help and typos end here, before what takes seconds

import torch
from mmengine.config import Config

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.apis.data import check_data
from ela_mm.apis.downloads import downloads_explained
from ela_mm.apis.launch import (
    UsageError,
    build_runner,
    check_checkpoint,
    check_has,
    load_config,
    run,
    set_up_distributed,
)
from ela_mm.engine import ValidateResumedHook
from ela_mm.engine.checkpoints import resume_latest, warn_of_single_checkpoint
from ela_mm.engine.hooks.reseed_hook import ensure_reseeding
from ela_mm.engine.interruption import tell_interrupted
from ela_mm.errors import INTERRUPTED


def say_plan(cfg: Config) -> None:
    """Print the plan of a training; raise an error if it would be refused."""
    # Imported here: a training needs neither rich nor matplotlib.
    from ela_mm.analysis.plan import make_plan
    from ela_mm.analysis.report.plan import plan_sections
    from ela_mm.analysis.report.terminal import print_sections, progress_bar
    found = make_plan(cfg, progress=progress_bar('steps'))
    print_sections(plan_sections(found))
    if found.refused:
        raise UsageError(f'training would be refused: {found.refused[0]}')


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    check_has(cfg, 'train_dataloader', 'train_cfg', 'optim_wrapper')
    if args.amp:
        if not torch.cuda.is_available():
            raise UsageError('--amp needs a GPU and this machine shows none: '
                             'leave it out')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UsageError(
                f'--auto-scale-lr: {args.config} does not say for which batch '
                'size its learning rate is meant; set '
                'auto_scale_lr=dict(base_batch_size=...) in it')
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto':
        resume_latest(cfg)
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
    if args.dry_run:
        say_plan(cfg)
        return
    check_checkpoint(cfg.get('load_from'))
    warn_of_single_checkpoint(cfg)
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    set_up_distributed(cfg)
    runner = build_runner(cfg)
    ensure_reseeding(runner)
    runner.register_hook(ValidateResumedHook())
    try:
        with downloads_explained(cfg):
            runner.train()
    except KeyboardInterrupt as error:
        tell_interrupted(runner, error)
        sys.exit(INTERRUPTED)


if __name__ == '__main__':
    run(main)
