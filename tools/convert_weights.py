"""Convert checkpoints of the published MRLA and DLA code to this package.

mrla: MRLA-base and MRLA-light on ResNet, for classification or MMDetection 2.
The network of this package (ELAResNetV1c if the stem has three convolutions)
computes the same.
dla: DLA-base of the code for CIFAR; here ELAResNet_CIFAR with attention='dla'.
Its DLA-light has a convolution that this package lacks, and is refused.
--reverse converts to the names of the published classification code.
"""
import argparse
import os.path as osp

# Published code whose names are known, and hosts with a stem of three
# convolutions.
SOURCES = ('mrla', 'dla')
HOSTS = ('mmpretrain', 'mmdet', 'mmseg')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source_file', metavar='IN', help='checkpoint file')
    parser.add_argument('target_file', metavar='OUT', help='file to write')
    parser.add_argument(
        '--source',
        choices=SOURCES,
        default='mrla',
        help='code that the names are from: that of MRLA (also for MRLA networks '
        'in the published DLA code), or that of DLA; default: mrla')
    parser.add_argument(
        '--host',
        choices=HOSTS,
        default='mmpretrain',
        help='host of the network, for the names in a stem of three '
        'convolutions; default: mmpretrain')
    parser.add_argument(
        '--reverse',
        action='store_true',
        help='convert from this package to the published code')
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # --help and typos end here, before what takes seconds

import torch

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.apis.convert import SOURCES as RENAMES
from ela_mm.apis.deploy import whole_file
from ela_mm.apis.launch import UsageError, check_checkpoint, run


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
    from_theirs, to_theirs = RENAMES[args.source]
    rename = to_theirs if args.reverse else from_theirs
    converted = rename(state, args.host)
    meta = {} if args.reverse else dict(meta={})
    with whole_file(args.target_file) as file:
        torch.save(dict(meta, state_dict=converted), file)
    attention = sum('attention' in n or 'mrla' in n for n in converted)
    print(f'{args.target_file}: {len(converted)} tensors, {attention} of them '
          'of attention')


if __name__ == '__main__':
    run(main)
