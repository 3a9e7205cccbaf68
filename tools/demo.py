"""Train, prune and evaluate the demo, and summarise what happened.

It is Faster R-CNN with ELA-ResNet-50 on handwritten digits, and takes a few
minutes on a CPU.
"""
import argparse
import glob
import os.path as osp
import time
from copy import deepcopy
from typing import Tuple


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work-dir', default='work_dirs/demo')
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # --help and typos end here, before what takes seconds

from mmengine.config import Config
from mmengine.runner import Runner

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.analysis.report.report import write_report
from ela_mm.apis.launch import build_runner, run
from ela_mm.engine.gain import StepTimer
from ela_mm.engine.journal.record import FILE_NAME, decisions_of, read_record
from ela_mm.models.backbones.layer_attention_mixin import with_all_layers

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
CONFIG = osp.join(ROOT, 'configs', 'faster_rcnn_ela_r50_digits.py')


def time_side_by_side(runner: Runner, rounds: int = 8) -> Tuple[float, float]:
    """Time a training step with all attention layers, and as pruned.

    Steps are forward and backward on the same batch, in turns, since a
    machine's speed changes over minutes.

    Args:
        runner (Runner): Runner after its training.
        rounds (int): Number of timed steps of each. Defaults to 8.

    Returns:
        Tuple[float, float]: Median seconds with all layers, and as pruned.
    """
    pruned = runner.model
    everything = with_all_layers(pruned)
    batch = next(iter(runner.train_dataloader))
    timers = {everything: StepTimer(rounds), pruned: StepTimer(rounds)}
    for _ in range(rounds + 1):  # the timer drops the first
        for model, timer in timers.items():
            model.train()
            data = model.data_preprocessor(deepcopy(batch), training=True)
            timer.start()
            loss, _ = model.parse_losses(model(**data, mode='loss'))
            loss.backward()
            timer.stop()
            model.zero_grad()
    return timers[everything].median, timers[pruned].median


def summarize(work_dir: str, metrics: dict, minutes: float,
              side_by_side: Tuple[float, float], report: str) -> str:
    """Summarise what a run has pruned, gained and reached.

    Args:
        work_dir (str): Work dir of the run, with its record of decisions.
        metrics (dict): Metrics of the last evaluation by CocoMetric.
        minutes (float): Wall-clock time of the training.
        side_by_side (Tuple[float, float]): Seconds from
            :func:`time_side_by_side`.
        report (str): Path of the report.

    Returns:
        str: The summary, several lines.
    """
    lines = [f'Trained in {minutes:.1f} minutes.']
    for decision in decisions_of(read_record(work_dir)):
        gain = ''
        if decision.times.are_enough:
            gain = f'; step {decision.times.medians()}'
        pruned = ', '.join(decision.skipped) or 'none'
        lines.append(f'After epoch {decision.epoch} pruned {pruned}: '
                     f'{decision.active} of {decision.total} attention '
                     f'layers active{gain}')
    full, pruned = side_by_side
    lines.append(f'Side by side on one batch: {full:.3f} s per step with all '
                 f'layers, {pruned:.3f} s now ({pruned / full:.2f}x)')
    lines.append(f'bbox mAP {metrics["coco/bbox_mAP"]:.3f}, '
                 f'mAP_50 {metrics["coco/bbox_mAP_50"]:.3f} on digits that '
                 'training has not seen')
    checkpoint = max(
        glob.glob(osp.join(work_dir, 'epoch_*.pth')), key=osp.getmtime)
    lines += [
        f'Report:     {report} (open it in a browser)',
        f'Checkpoint: {checkpoint}',
        f'Decisions:  {osp.join(work_dir, FILE_NAME)}',
        f'Logs:       {work_dir}/<time of the run>/',
        'Next, on your own COCO (in data/coco):',
        '  .venv/bin/python tools/train.py configs/faster_rcnn_ela_r50.py',
    ]
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir = args.work_dir
    runner = build_runner(cfg)
    start = time.time()
    runner.train()
    minutes = (time.time() - start) / 60
    metrics = {
        name: runner.message_hub.get_scalar(f'val/{name}').current()
        for name in ('coco/bbox_mAP', 'coco/bbox_mAP_50')
    }
    side_by_side = time_side_by_side(runner)
    print('Writing the report ...')
    text = summarize(args.work_dir, metrics, minutes, side_by_side,
                     write_report(args.work_dir))
    rule = '-' * 79
    print(f'\n{rule}\n{text}\n{rule}')


if __name__ == '__main__':
    run(main)
