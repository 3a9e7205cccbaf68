"""Evaluate a checkpoint of a detector, classifier or segmentor.

A pruned checkpoint is evaluated as the pruned network, with the same config.
"""
import argparse
import os.path as osp


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file of a detector, a '
                        'classifier or a segmentor')
    parser.add_argument(
        '--work-dir',
        help='folder for logs; default: that of the config, or else '
        'work_dirs/<name of the config>')
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
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='write the predictions to this .pkl, or '
                        'the metrics (see --out-item)')
    parser.add_argument(
        '--out-item',
        choices=['pred', 'metrics'],
        default='pred',
        help='what --out receives; default: predictions')
    parser.add_argument(
        '--show-dir', help='folder for pictures of the predictions')
    parser.add_argument(
        '--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds for which --show keeps a picture')
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation')
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # --help and typos end here, before what takes seconds

from mmengine import dump
from mmengine.config import Config

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.apis.data import check_data
from ela_mm.apis.downloads import download_explained, downloads_explained
from ela_mm.apis.launch import (
    UsageError,
    build_runner,
    check_checkpoint,
    check_has,
    load_config,
    run,
    set_up_distributed,
)
from ela_mm.engine.hooks.active_layers_hook import ActiveLayersHook
from ela_mm.hosts.registration import host_of


def set_visualization(cfg: Config, args: argparse.Namespace) -> None:
    """Switch on the host's visualization hook."""
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise UsageError(f'--show and --show-dir: {args.config} has no '
                         'default_hooks.visualization to draw with')
    # Absolute, as mmdet's hook puts a relative folder below the work dir.
    folder = osp.abspath(args.show_dir) if args.show_dir else None
    hook.update(show=args.show, wait_time=args.wait_time)
    host_of(cfg, hook['type']).show(cfg, folder)


def main() -> None:
    args = parse_args()
    endings = dict(
        pred=('.pkl', '.pickle'), metrics=('.json', '.yaml', '.yml', '.pkl'))
    if args.out is not None and not args.out.endswith(endings[args.out_item]):
        raise UsageError(f'--out {args.out!r}: expected a file name that ends '
                         f'in {" or ".join(endings[args.out_item])}')
    cfg = load_config(args)
    check_has(cfg, 'test_dataloader', 'test_cfg', 'test_evaluator')
    check_checkpoint(args.checkpoint)
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.show or args.show_dir:
        set_visualization(cfg, args)
    host = host_of(cfg)
    if args.tta:
        host.tta(cfg)
    check_data(cfg, 'test_dataloader')
    set_up_distributed(cfg)
    runner = build_runner(cfg, trains=False)
    runner.register_hook(ActiveLayersHook())
    if args.out is not None and args.out_item == 'pred':
        runner.test_evaluator.metrics.append(host.dump_results(args.out))
    with downloads_explained(cfg, weights=False), download_explained(
            args.checkpoint):
        metrics = runner.test()
    if args.out is not None and args.out_item == 'metrics':
        dump(metrics, args.out)


if __name__ == '__main__':
    run(main)
