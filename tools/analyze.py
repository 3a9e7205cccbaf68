"""Analyse what is redundant, what was pruned, and what that gained.

plan        what a training will do, without training
layers      which attention layers are active, frozen, prunable
attention   which layers every layer attends to, as heat maps (figures 2a, 6, 7)
redundancy  KL divergences and decisions of a run, and its timeline
features    class activation maps of layers, with and without pruning (3, 5)
similarity  which blocks have similar features, by CKA
ablate      how much loss skipping each layer adds, and which measure predicts it
whatif      what other criteria and parameters would have skipped
cost        parameters, GMACs and time, per stage and layer
compare     runs side by side: layers, metric, loss, step time, decisions
report      all of these on one HTML page

Results are printed, and saved as pictures (PNG) and tables (CSV) in a folder
that is named at the end.
"""
import argparse
from typing import Callable

FOLDER = 'ela_analysis'  # name of the folder of results
PARTS = ('attention', 'similarity', 'cost', 'features', 'ablation')
REDUNDANCY = ('paper', 'excess', 'conditional')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    command = _command(
        commands, 'plan', 'layers, windows, schedule, step times and refusals '
        'of a training, without training', kind='CONFIG [CHECKPOINT]')
    command.add_argument(
        '--rounds', type=_not_negative,
        help='number of rounds of timed training steps; 0: none; default: 3, or '
        '1 if these would take longer than a minute')

    _command(commands, 'layers', 'attention layers by stage',
             kind='WORK_DIR | CONFIG [CHECKPOINT]')

    command = _command(commands, 'attention',
                       'which layers every layer attends to',
                       more=' [PICTURE ...]')
    _add_images(command, 64)

    command = _command(
        commands, 'redundancy', 'KL divergences, decisions and timeline of a '
        'run; with --checkpoint as they were when it was saved',
        kind='WORK_DIR')

    command = _command(
        commands, 'features', 'class activation maps of layers, by Score-CAM',
        more=' [PICTURE]')
    command.add_argument(
        '--stage', type=_positive,
        help='number of the stage; default: that with most layers')
    command.add_argument(
        '--layers',
        nargs='+',
        help='names of layers, such as layer3.1 layer3.2; default: the last '
        'six of the stage')
    command.add_argument(
        '--channels',
        type=_not_negative,
        default=32,
        help='number of channels to weigh in each layer, for each of which the '
        'network runs once; 0: all; default: 32')
    command.add_argument(
        '--class',
        dest='wanted',
        metavar='CLASS',
        help='class to explain, by name or number; of detectors its boxes, of '
        'segmentors its pixels; default: what the network finds')
    command.add_argument(
        '--as-pruned',
        action='store_true',
        help='leave out the maps with all layers active')

    command = _command(commands, 'similarity',
                       'CKA between the features of all blocks')
    _add_images(command, 64)
    command.add_argument(
        '--batch',
        type=_at_least(4),
        default=8,
        help='number of images that are compared at a time; default: 8')

    command = _command(commands, 'ablate',
                       'how much loss skipping each layer adds')
    _add_images(command, 256)
    command.add_argument(
        '--batch',
        type=_positive,
        help='number of images in a batch; default: that of the validation '
        'loader')
    command.add_argument(
        '--criterion',
        help='criterion whose decision is tried as a whole, such as '
        "EBQM,mu=0.1; default: the config's")
    _add_redundancy(command, "the config's")
    command.add_argument(
        '--no-time',
        action='store_true',
        help='do not measure how long each layer takes')

    command = _command(
        commands, 'whatif', 'what other criteria would have skipped, from the '
        'record of a run, or in a network that is measured now')
    command.add_argument(
        '--batches',
        type=_positive,
        help='number of batches of the validation set, with CONFIG CHECKPOINT; '
        'default: 32')
    command.add_argument(
        '--criterion',
        action='append',
        default=[],
        help='another criterion, such as EBQM,gamma=0.9,mu=0.1; may be repeated')
    _add_redundancy(command, "the run's, or the config's")
    command.add_argument(
        '--no-time',
        action='store_true',
        help='do not measure how long layers take, nor predict step times')
    _add_timing(command)

    command = _command(
        commands, 'cost', 'parameters, GMACs and time per stage and layer',
        kind='WORK_DIR | CONFIG [CHECKPOINT]')
    _add_timing(command)
    command.add_argument(
        '--inference', action='store_true', help='time forward in eval mode')

    command = commands.add_parser('compare', help='runs side by side')
    command.add_argument(
        'source', nargs='+', metavar='RUN',
        help='work dirs, or the folder of a grid of tools/ablation.py')
    command.add_argument(
        '--config', nargs='+', default=[], help='config for all runs, or one for '
        'each in their order, instead of those in the work dirs')
    command.add_argument(
        '--checkpoint', nargs='+', default=[], help='one checkpoint of each run '
        'in their order, to compare runs as they were when these were saved; '
        'curves show the whole runs')
    command.add_argument(
        '--out', metavar='FOLDER',
        help=f'folder of results; default: {FOLDER} in the folder '
        'that holds all work dirs, or in that of the grid')
    command.add_argument(
        '--no-parameters', action='store_true',
        help='do not build the networks to count their parameters')

    command = _command(
        commands, 'report', 'all analyses on one HTML page', kind='WORK_DIR',
        out=('FILE', 'path of the page; default: ela_report.html in the work '
             'dir'))
    command.add_argument(
        '--without',
        nargs='+',
        choices=PARTS,
        default=[],
        help='parts to leave out, since they take long')

    args, more = parser.parse_known_args()
    options = [word for word in more if word.startswith('-')]
    if options:
        parser.error(f'unrecognized arguments: {" ".join(options)}')
    args.source += more  # positional arguments after an option
    return args


def _command(commands,
             name: str,
             text: str,
             kind: str = 'WORK_DIR | CONFIG CHECKPOINT',
             more: str = '',
             out: tuple = ('FOLDER', f'folder of results; default: {FOLDER} in '
                           'the work dir or beside the checkpoint')
             ) -> argparse.ArgumentParser:
    """Add a sub-command with the arguments that most of them take."""
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument('source', nargs='*', metavar=kind + more,
                         help='the work dir of a run, or the files')
    command.add_argument(
        '--config', help='config to use, instead of that in the work dir, or of '
        'naming it first')
    command.add_argument(
        '--checkpoint', help='checkpoint to use, instead of the latest in the '
        'work dir')
    command.add_argument('--out', metavar=out[0], help=out[1])
    _add_device(command)
    command.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        help='override settings of the config: key=value')
    return command


def _add_images(command: argparse.ArgumentParser, number: int) -> None:
    command.add_argument(
        '--images',
        type=_positive,
        default=number,
        help=f'number of images of the validation set; default: {number}')


def _at_least(least: int) -> Callable[[str], int]:

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(
                f'{text}: expected at least {least}')
        return int(text)

    return number


_positive = _at_least(1)
_not_negative = _at_least(0)


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        '--device',
        type=_device,
        help='device to run on; default: cuda if there is a GPU')


def _device(text: str) -> str:
    import torch
    try:
        torch.zeros(0, device=text)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f'{text!r}: {reason}') from None
    return text


def _add_redundancy(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        '--redundancy',
        choices=REDUNDANCY,
        help='measure that criteria rank by: equation 11, its excess over '
        'uniform weights, or its part on what both layers see; default: '
        f'{default}')


def _add_timing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        '--shape',
        nargs=2,
        type=_positive,
        metavar=('HEIGHT', 'WIDTH'),
        help='size of images; default: that of the config')
    command.add_argument(
        '--batch',
        type=_positive,
        help='number of images in a timed step; default: that of the config')
    command.add_argument(
        '--rounds', type=_positive,
        help='number of rounds of timed steps; default: 10')


if __name__ == '__main__':
    parse_args()  # --help and typos end here, before what takes seconds

import torch

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.analysis.commands import COMMANDS
from ela_mm.apis.launch import run
from ela_mm.apis.loading import settings


def main() -> None:
    args = parse_args()
    if args.command != 'compare':
        args.cfg_options = settings(args.cfg_options)
        args.device = args.device or (
            'cuda' if torch.cuda.is_available() else 'cpu')
    COMMANDS[args.command](args)


if __name__ == '__main__':
    run(main)
