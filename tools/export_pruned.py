"""Write a pruned network for production: a small checkpoint, and ONNX.

The deploy checkpoint lacks the parameters of skipped layers and all state of
training. It loads with the same config, in tools/test.py, in inferencers and as
load_from. The ONNX graph takes normalised images (the config's
data_preprocessor is not included) in batches of any size.
"""
import argparse
import os.path as osp

# The backbone, and the exportable parts of hosts.
PARTS = ('backbone', 'classifier', 'segmentor')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file, of a detector, a '
                        'classifier or a segmentor')
    parser.add_argument('checkpoint', help='checkpoint file of that config')
    parser.add_argument(
        '--out',
        metavar='FILE.pth',
        help='deploy checkpoint to write; default: <checkpoint>_deploy.pth')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        help='override settings of the config: key=value')
    group = parser.add_argument_group('ONNX')
    group.add_argument(
        '--onnx', metavar='FILE.onnx', help='ONNX graph to write as well')
    group.add_argument(
        '--part',
        choices=PARTS,
        help='part of the model to export; default: the classifier or the '
        'segmentor, if it is one, or else the backbone')
    group.add_argument(
        '--scores',
        action='store_true',
        help='make a classifier or segmentor return scores instead of logits')
    group.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        default=(224, 224),
        help='size of images; default: 224 224')
    group.add_argument(
        '--dynamic',
        action='store_true',
        help='allow any height and width; the graph is verified at --shape and '
        'two other sizes')
    group.add_argument(
        '--opset', type=int, default=18,
        help="version of ONNX's operators; default: 18")
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # --help and typos end here, before what takes seconds

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.apis.deploy import write_deploy_checkpoint
from ela_mm.apis.launch import UsageError, check_checkpoint, run
from ela_mm.apis.loading import load_model, read_config, settings
from ela_mm.apis.onnx import channel_order, check_onnx, export_onnx, part_of
from ela_mm.models.backbones.pictures import picture_channels


def megabytes(number: int) -> str:
    return f'{number / 1e6:.2f} MB'


def main() -> None:
    args = parse_args()
    if args.onnx is not None:
        check_onnx()
    if '://' in args.checkpoint:
        raise UsageError(f'{args.checkpoint!r}: expected a file; download it '
                         'first')
    cfg = read_config(args.config, settings(args.cfg_options))
    check_checkpoint(args.checkpoint)
    model, checkpoint = load_model(cfg, args.checkpoint)
    if args.onnx is not None:  # find errors before anything is written
        module, outputs = part_of(model, args.part, args.scores)
    target = args.out or osp.splitext(args.checkpoint)[0] + '_deploy.pth'
    done = write_deploy_checkpoint(model, checkpoint, args.checkpoint, target)
    if done.active == done.layers:
        why = '' if done.has_mask else ' (the checkpoint has no mask)'
        print(f'nothing is pruned{why}: all {done.layers} attention layers '
              'are active')
    else:
        print(f'{done.active} of {done.layers} attention layers are active; '
              f'left out {len(done.left_out)} tensors with {done.parameters:,} '
              'parameters and norm statistics of the others')
    training = [key for key in checkpoint if key not in ('meta', 'state_dict')]
    if training:
        print(f'left out, as only training needs it: {", ".join(training)}')
    print(f'{args.checkpoint}: {megabytes(done.bytes_before)} -> {target}: '
          f'{megabytes(done.bytes_after)}')
    if args.onnx is None:
        return
    difference = export_onnx(module, outputs, args.onnx, args.shape,
                             args.opset, args.dynamic)
    sides = 'height, width' if args.dynamic else ', '.join(
        map(str, args.shape))
    print(f'{args.onnx}: {megabytes(osp.getsize(args.onnx))}, images (batch, '
          f'{picture_channels(module)}, {sides}) -> {", ".join(outputs)}; '
          f'onnxruntime agrees to {difference:.1e}')
    size = ('any height and width' if args.dynamic else
            f'{args.shape[0]} x {args.shape[1]} pixels and no other size '
            '(--dynamic leaves them open)')
    steps = model.data_preprocessor
    mean = getattr(steps, 'mean', None)
    print(f'feed it any number of pictures, of {size}' + (
        f', channels in the order {channel_order(steps)}'
        if picture_channels(module) == 3 else '') + (
        ', normalised as the config does: mean '
        f'{mean.flatten().tolist()}, std {steps.std.flatten().tolist()}'
        if mean is not None else ', as the config leaves them'))


if __name__ == '__main__':
    run(main)
