"""Train, prune and evaluate the embedded demo, and say what happened.

Faster R-CNN with ELA-ResNet-50 on handwritten digits, a few minutes on a CPU.
"""
import argparse
import glob
import os.path as osp
import time

from mmengine.config import Config

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.engine.launch import build_runner, run
from ela_mm.engine.record import FILE_NAME, read_record

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
CONFIG = osp.join(ROOT, 'configs', 'faster_rcnn_ela_r50_digits.py')


def summarize(work_dir: str, metrics: dict, minutes: float) -> str:
    """What a run pruned, gained and reached, in a few lines.

    Args:
        work_dir (str): The run's work dir, with its decisions record.
        metrics (dict): Of the last evaluation, as CocoMetric names them.
        minutes (float): Wall-clock time of the training.

    Returns:
        str: The summary.
    """
    record = read_record(work_dir)
    lines = [f'Trained in {minutes:.1f} minutes.']
    for decision in record['decisions']:
        before, after = (decision[f'step_time_{when}']
                         for when in ('before', 'after'))
        gain = ''
        if before and after:
            gain = f'; median step {before:.3f} s -> {after:.3f} s'
        pruned = ', '.join(decision['skipped']) or 'none'
        lines.append(f'After epoch {decision["epoch"]} pruned {pruned}: '
                     f'{decision["active"]} of {decision["total"]} attention '
                     f'layers active{gain}')
    lines.append(f'bbox mAP {metrics["coco/bbox_mAP"]:.3f}, '
                 f'mAP_50 {metrics["coco/bbox_mAP_50"]:.3f} on digits that '
                 'training has not seen')
    checkpoint = max(
        glob.glob(osp.join(work_dir, 'epoch_*.pth')), key=osp.getmtime)
    lines += [
        f'Checkpoint: {checkpoint}',
        f'Decisions:  {osp.join(work_dir, FILE_NAME)}',
        f'Logs:       {work_dir}/<time of the run>/',
        'Next, on your own COCO (in data/coco):',
        '  .venv/bin/python tools/train.py configs/faster_rcnn_ela_r50.py',
    ]
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work-dir', default='work_dirs/demo')
    args = parser.parse_args()
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
    rule = '-' * 79
    print(f'\n{rule}\n{summarize(args.work_dir, metrics, minutes)}\n{rule}')


if __name__ == '__main__':
    run(main)
