"""Rename checkpoints of the published MRLA code to this package's names.

MRLA-base and MRLA-light on ResNet, classification and MMDetection 2; --reverse
goes back to the classification code's names. The network, ELAResNetV1c where
the stem has three convolutions, computes the same.
"""
import argparse
import os.path as osp

import torch

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.apis.convert import from_mrla, to_mrla
from ela_mm.apis.deploy import whole_file
from ela_mm.apis.launch import UsageError, check_checkpoint, run
from ela_mm.hosts.registration import installed


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('source_file', metavar='IN', help='checkpoint file')
    parser.add_argument('target_file', metavar='OUT', help='file to write')
    parser.add_argument(
        '--source',
        choices=['mrla'],
        default='mrla',
        help='whose names they are; the MRLA networks in the published DLA '
        'code have the same')
    parser.add_argument(
        '--host',
        choices=[host.scope for host in installed() if host.deep_stem],
        default='mmpretrain',
        help='whose stem of three convolutions the network has')
    parser.add_argument(
        '--reverse',
        action='store_true',
        help="from this package's names to the published ones")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_checkpoint(args.source_file)
    if osp.exists(args.target_file) and osp.samefile(args.source_file,
                                                     args.target_file):
        raise UsageError(f'{args.target_file!r} is the checkpoint itself: '
                         'expected another file to write to')
    checkpoint = torch.load(
        args.source_file, map_location='cpu', weights_only=True)
    state = checkpoint.get('state_dict', checkpoint)
    rename = to_mrla if args.reverse else from_mrla
    converted = rename(state, args.host)
    meta = {} if args.reverse else dict(meta={})
    with whole_file(args.target_file) as file:
        torch.save(dict(meta, state_dict=converted), file)
    attention = sum('attention' in n or 'mrla' in n for n in converted)
    print(f'{args.target_file}: {len(converted)} tensors, {attention} of them '
          'of attention')


if __name__ == '__main__':
    run(main)
