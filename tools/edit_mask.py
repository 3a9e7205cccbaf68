"""Restore skipped attention layers in a checkpoint, or skip more by hand.

    tools/edit_mask.py CHECKPOINT --undo-window 2
    tools/edit_mask.py CHECKPOINT --restore layer3.5 --skip layer2.1

Without options, list which layers are active. The new checkpoint loads like the
old one. If a run is resumed from it, its record contains the change.
"""
import argparse
import os.path as osp


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint',
                        help='checkpoint of a training; not changed')
    parser.add_argument(
        '--restore', nargs='+', default=[], metavar='LAYER',
        help='skipped layers to make active again, such as layer3.5')
    parser.add_argument(
        '--skip', nargs='+', default=[], metavar='LAYER',
        help='active layers to skip')
    parser.add_argument(
        '--undo-window', type=int, metavar='NUMBER',
        help='restore the layers that this window has skipped, from 1')
    parser.add_argument(
        '--skip-mode', choices=['layer', 'retrieval'], default='layer',
        help='what --skip removes: the whole layer, or only its retrieval, so '
        'that later layers still see its key and value; default: layer')
    parser.add_argument(
        '--out', metavar='FILE.pth',
        help='file to write, which must not exist yet; default: '
        '<checkpoint>_edited.pth')
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # --help and typos end here, before what takes seconds

import torch
from mmengine.runner import CheckpointLoader

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.apis.deploy import whole_file
from ela_mm.apis.edit_mask import Edited, describe, edit_mask
from ela_mm.apis.launch import UsageError, check_checkpoint, run


def tell(done: Edited, target: str) -> None:
    """Print what was done, and how to continue."""
    edit = done.edit
    if edit.undone is not None:
        print(f'window {edit.undone} is undone')
    if edit.restored:
        print(f'restored, with the weights that they had when they were '
              f'skipped: {", ".join(edit.restored)}')
    if edit.skipped:
        print(f'skipped: {", ".join(edit.skipped)}')
    for name in done.skipped_firsts:
        print(f'{name} is the first of its stage, which ELA never skips: it is '
              'skipped as you ask')
    print(f'{done.before} -> {done.after} of {len(done.layers)} attention '
          f'layers active, in {" and ".join(done.places)}')
    if done.left_out is not None:
        print(f'left out: what was measured so far in window {done.left_out}, '
              'between other neighbours')
    print(f'written to {target}: go on with tools/train.py CONFIG --resume '
          f'{target}, or name it as any checkpoint')


def main() -> None:
    args = parse_args()
    if '://' in args.checkpoint:
        raise UsageError(f'{args.checkpoint!r}: expected a file; download it '
                         'first')
    check_checkpoint(args.checkpoint)
    checkpoint = CheckpointLoader.load_checkpoint(
        args.checkpoint, map_location='cpu', logger='silent')
    if not (args.restore or args.skip or args.undo_window is not None):
        print(describe(checkpoint))
        return
    target = args.out or osp.splitext(args.checkpoint)[0] + '_edited.pth'
    if osp.realpath(target) == osp.realpath(args.checkpoint):
        raise UsageError(f'--out {target!r} is the checkpoint itself: expected '
                         'another file to write to')
    if osp.lexists(target):
        raise UsageError(f'{target!r} exists, perhaps from an earlier edit: '
                         'name another file with --out, or remove it first')
    done = edit_mask(checkpoint, args.restore, args.skip, args.undo_window,
                     args.skip_mode)
    with whole_file(target) as file:
        torch.save(done.checkpoint, file)
    tell(done, target)


if __name__ == '__main__':
    run(main)
