"""See what is redundant, what was pruned, and what it bought.

attention   whom every layer attends to, as heat maps (figures 2a, 6, 7)
redundancy  KL divergences and decisions of a run, and its timeline
features    where consecutive layers look, with and without pruning (3, 5)
similarity  which blocks return nearly the same, by CKA
ablate      what it costs to skip each layer, and which measure knew
whatif      what other criteria and parameters would have skipped
cost        parameters, GMACs and time, per stage and layer
report      all of it on one HTML page

Pictures (PNG) and tables (CSV) go to a folder that is named at the end; what
they say is printed.
"""
import argparse
import csv
import os
import os.path as osp
import re
import sys
from typing import Callable, Iterable, List, Optional

import torch
from mmengine.config import Config, DictAction
from rich.console import Console
from rich.progress import track
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text
from torch import nn

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.analysis.ablate import ablate as ablate_layers
from ela_mm.analysis.attention import measure
from ela_mm.analysis.cost import Cost, cost_of_config
from ela_mm.analysis.features import check_grad_cam, choose_layers, look
from ela_mm.analysis.history import decided, read_run
from ela_mm.analysis.report.ablate import ablation_section
from ela_mm.analysis.report.attention import attention_section
from ela_mm.analysis.report.cost import cost_section
from ela_mm.analysis.report.features import features_section
from ela_mm.analysis.report.page import Section
from ela_mm.analysis.report.redundancy import timeline_section, window_section
from ela_mm.analysis.report.report import PARTS, write_report
from ela_mm.analysis.report.similarity import similarity_section
from ela_mm.analysis.report.whatif import whatif_section
from ela_mm.analysis.similarity import compare_features
from ela_mm.analysis.whatif import (
    Window,
    compare,
    measured_window,
    parse_criterion,
    recorded_window,
)
from ela_mm.apis.data import (
    annotated_batches,
    dataset_batches,
    file_batches,
    loader_of,
    set_of,
)
from ela_mm.apis.launch import UsageError, check_checkpoint, run
from ela_mm.apis.loading import build_model, criterion_of, load_model, read_config
from ela_mm.plotting import printable, save
from ela_mm.pruning.build import build_criterion

FOLDER = 'ela_analysis'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    command = commands.add_parser(
        'attention', help='whom every layer attends to')
    _add_model(command)
    command.add_argument(
        'pictures',
        nargs='*',
        help='picture files; default: the validation set of the config')
    command.add_argument(
        '--images',
        type=_positive,
        default=64,
        help='how many of the validation set; default: 64')

    command = commands.add_parser(
        'redundancy', help='KL divergences, decisions and timeline of a run')
    _add_work_dir(command)

    command = commands.add_parser(
        'features', help='where consecutive layers look, by Score-CAM')
    _add_model(command)
    command.add_argument('picture', help='a picture file')
    command.add_argument(
        '--stage', type=_positive, help='default: the one with most layers')
    command.add_argument(
        '--layers',
        nargs='+',
        help='such as layer3.1 layer3.2; default: the last six '
        'of the stage')
    command.add_argument(
        '--channels',
        type=_not_negative,
        default=32,
        help='channels weighed per layer, each a run of the network; 0: all; '
        'default: 32')
    command.add_argument(
        '--as-pruned',
        action='store_true',
        help='leave out the network with its skipped layers put back')

    command = commands.add_parser(
        'similarity', help='CKA between the features of all blocks')
    _add_model(command)
    command.add_argument(
        '--images',
        type=_positive,
        default=64,
        help='how many of the validation set; default: 64')
    command.add_argument(
        '--batch',
        type=_at_least(4),
        default=8,
        help='pictures that are compared at a time; default: 8')

    command = commands.add_parser(
        'ablate', help='what it costs to skip each layer')
    _add_model(command)
    command.add_argument(
        '--images',
        type=_positive,
        default=256,
        help='how many of the validation set; default: 256')
    command.add_argument(
        '--batch',
        type=_positive,
        help="pictures a batch; default: the validation loader's")
    command.add_argument(
        '--criterion',
        help='whose decision is tried as a whole, such as EBQM,mu=0.1; '
        "default: the config's")

    command = commands.add_parser(
        'whatif', help='what other criteria would have skipped')
    command.add_argument(
        'source',
        nargs='+',
        metavar='WORK_DIR | CONFIG CHECKPOINT',
        help='the work dir of a run, or a network to measure now')
    _add_common(command)
    command.add_argument(
        '--batches',
        type=_positive,
        help='of the validation set, with CONFIG CHECKPOINT; default: 32')
    command.add_argument(
        '--criterion',
        action='append',
        default=[],
        help='one more, such as EBQM,gamma=0.9,mu=0.1; may be repeated')
    command.add_argument(
        '--no-time',
        action='store_true',
        help='do not measure what layers cost, nor expect step times')
    _add_timing(command)

    command = commands.add_parser(
        'cost', help='parameters, GMACs and time per stage and layer')
    command.add_argument('config', help='of a detector or a classifier')
    command.add_argument(
        'checkpoint',
        nargs='?',
        help='for what is pruned; default: nothing is')
    _add_common(command)
    _add_timing(command)
    command.add_argument(
        '--inference', action='store_true', help='time forward in eval mode')

    command = commands.add_parser('report', help='one HTML page of it all')
    command.add_argument('work_dir', help='of a run with ELAPruneHook')
    command.add_argument(
        '--out',
        metavar='FILE',
        help='default: ela_report.html in the work dir')
    command.add_argument('--config', help='default: the one in the work dir')
    command.add_argument(
        '--checkpoint', help='default: the latest in the work dir')
    command.add_argument(
        '--without',
        nargs='+',
        choices=PARTS,
        default=[],
        help='leave out what takes long')
    _add_device(command)
    _add_cfg_options(command)
    return parser.parse_args()


def _at_least(least: int) -> Callable[[str], int]:

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(
                f'{text}: expected at least {least}')
        return int(text)

    return number


_positive = _at_least(1)
_not_negative = _at_least(0)


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument('config', help='of a detector or a classifier')
    command.add_argument('checkpoint', help='that it trained')
    _add_common(command)


def _add_work_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument('work_dir', help='of a run with ELAPruneHook')
    command.add_argument(
        '--out', metavar='FOLDER', help=f'default: {FOLDER} in the work dir')


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        '--out',
        metavar='FOLDER',
        help=f'default: {FOLDER} beside the checkpoint or in the work dir')
    _add_device(command)
    _add_cfg_options(command)


def _add_cfg_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key=value')


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        '--device',
        type=_device,
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='default: cuda where there is one')


def _device(text: str) -> str:
    try:
        torch.zeros(0, device=text)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f'{text!r}: {reason}') from None
    return text


def _add_timing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        '--shape',
        nargs=2,
        type=_positive,
        metavar=('HEIGHT', 'WIDTH'),
        help="of the pictures; default: the config's")
    command.add_argument(
        '--batch',
        type=_positive,
        help="pictures of a timed step; default: the config's")
    command.add_argument('--rounds', type=_positive, help='default: 10')


def load(args: argparse.Namespace) -> tuple:
    """Config and model of the arguments, on their device."""
    cfg = read_config(args.config, args.cfg_options)
    if args.checkpoint is None:
        return cfg, build_model(cfg).to(args.device)
    check_checkpoint(args.checkpoint)
    return cfg, load_model(cfg, args.checkpoint)[0].to(args.device)


def bar(what: str) -> Callable:
    """Shows a bar over a list of work."""

    def show(items: Iterable) -> Iterable:
        return track(
            items, what, console=Console(stderr=True), transient=True)

    return show


def plain(text: str, style: str = '') -> Text:
    """Text from outside, in which rich finds neither markup nor emoji."""
    return Text(printable(text), style)


def show(sections: List[Section], folder: str) -> None:
    """Print sections; write their pictures and tables."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    for section in sections:
        console.rule(plain(section.title, 'rule.text'))
        for paragraph in section.text:
            console.print(plain(paragraph))
        for table in section.tables:
            drawn = RichTable(
                *(Column(plain(text)) for text in table.header),
                title=plain(table.caption, 'table.title'),
                title_justify='left')
            for row in table.rows:
                drawn.add_row(*map(plain, row))
            console.print(drawn)
    os.makedirs(folder, exist_ok=True)
    written = [
        save(picture, folder) for section in sections
        for picture in section.pictures
    ]
    for section in sections:
        for table in section.tables:
            caption = re.split('[:;,]', table.caption)[0]
            name = f'{section.title}_{caption}'.lower()
            name = ''.join(c if c.isalnum() else '_' for c in name)
            written.append(osp.join(folder, f'{name}.csv'))
            with open(written[-1], 'w', newline='', encoding='utf-8',
                      errors='backslashreplace') as file:
                csv.writer(file).writerows(
                    table.csv or [table.header, *table.rows])
    print(f'written to {folder}: ' + ', '.join(map(osp.basename, written)))


def beside(args: argparse.Namespace, place: Optional[str]) -> str:
    """The folder that results go to."""
    remote = '://' in (place or '')
    return args.out or osp.join(
        '.' if remote else osp.dirname(place or '.') or '.', FOLDER)


def cost_of(args: argparse.Namespace,
            cfg: Config,
            model: nn.Module,
            training: bool = True) -> Cost:
    return cost_of_config(
        cfg,
        model,
        args.shape,
        args.batch,
        rounds=args.rounds or 10,
        training=training,
        progress=bar('timing stages'))


def attention(args: argparse.Namespace) -> None:
    cfg, model = load(args)
    if args.pictures:
        batches = bar('pictures')(list(file_batches(cfg, args.pictures)))
        source = ', '.join(map(osp.basename, args.pictures[:3])) + (
            ', ...' if len(args.pictures) > 3 else '')
    else:
        batches = bar('pictures')(dataset_batches(cfg, args.images))
        source = f'the first of {set_of(cfg)}'
    section = attention_section(measure(model, batches), source)
    show([section], beside(args, args.checkpoint))


def redundancy(args: argparse.Namespace) -> None:
    done = read_run(args.work_dir)
    sections = [window_section(done, x) for x in decided(done)]
    show([*sections, timeline_section(done)],
         args.out or osp.join(args.work_dir, FOLDER))


def features(args: argparse.Namespace) -> None:
    check_grad_cam()
    cfg, model = load(args)
    layers = args.layers or choose_layers(model, args.stage)
    found = look(model, next(file_batches(cfg, [args.picture])), layers,
                 args.channels, not args.as_pruned, bar('maps'))
    show([features_section(found, osp.basename(args.picture))],
         beside(args, args.checkpoint))


def similarity(args: argparse.Namespace) -> None:
    cfg, model = load(args)
    batches = bar('pictures')(dataset_batches(cfg, args.images, args.batch))
    section = similarity_section(
        compare_features(model, batches), f'the first of {set_of(cfg)}')
    show([section], beside(args, args.checkpoint))


def ablate(args: argparse.Namespace) -> None:
    cfg, model = load(args)
    criterion = build_criterion(
        parse_criterion(args.criterion) if args.criterion else
        criterion_of(cfg))
    batches = annotated_batches(cfg, args.images, args.batch)
    found = ablate_layers(model, bar('batches')(list(batches)), criterion)
    show([ablation_section(found, f'the first of {set_of(cfg)}')],
         beside(args, args.checkpoint))


def whatif(args: argparse.Namespace) -> None:
    _check_whatif(args)
    cost = None
    if len(args.source) == 1:
        done = read_run(args.source[0])
        if done.config is not None:  # whose imports bring criteria of its own
            read_config(done.config, args.cfg_options)
        more = [parse_criterion(text) for text in args.criterion]
        windows = [recorded_window(d, done.unit) for d in decided(done)]
        if not args.no_time:
            cost = _or_none(lambda: _cost_of_run(args, done.config))
        folder = args.out or osp.join(args.source[0], FOLDER)
    else:
        args.config, args.checkpoint = args.source
        cfg, model = load(args)
        more = [parse_criterion(text) for text in args.criterion]
        loader = cfg[loader_of(cfg)]
        images = (args.batches or 32) * (loader.get('batch_size') or 1)
        measured = measure(model,
                           bar('pictures')(dataset_batches(cfg, images)))
        window = measured_window(
            measured.kl, [row.name for row in measured.rows],
            f'{measured.images} pictures of {set_of(cfg)}')
        if not args.no_time:
            cost = _or_none(lambda: cost_of(args, cfg, model))
        if cost is not None:
            window = window._replace(step_time=cost.seconds_after)
        windows = [window]
        folder = beside(args, args.checkpoint)
    seconds = cost and cost.attention_seconds
    sections = [_what_if(window, seconds, more, cost) for window in windows]
    show(sections, folder)


def _check_whatif(args: argparse.Namespace) -> None:
    """What contradicts itself is said, not ignored."""
    if len(args.source) > 2:
        raise UsageError(f'{len(args.source)} arguments: expected WORK_DIR, or '
                         'CONFIG CHECKPOINT')
    if len(args.source) == 1 and osp.isfile(args.source[0]):
        raise UsageError(f'{args.source[0]!r} is a file: expected WORK_DIR, or '
                         'CONFIG CHECKPOINT')
    if len(args.source) == 1 and args.batches:
        raise UsageError('--batches is for CONFIG CHECKPOINT: a run has been '
                         'measured')
    timing = [n for n in ('shape', 'batch', 'rounds') if getattr(args, n)]
    if args.no_time and timing:
        raise UsageError(f'--{timing[0]} does nothing with --no-time: leave '
                         'out one of them')


def _what_if(window: Window, seconds: Optional[Callable], more: List[dict],
             cost: Optional[Cost]) -> Section:
    if not window.names:
        return Section(f'What if: {window.label}', [
            'No KL divergence was measured: there is nothing to decide on.'
        ])
    return whatif_section(window, compare(window, seconds, more),
                          cost and cost.conditions)


def _or_none(measure_now: Callable[[], Cost]) -> Optional[Cost]:
    """Costs, or a sentence why step times are left out."""
    try:
        return measure_now()
    except UsageError as error:
        print(f'no step times are expected: {error}')
        return None


def _cost_of_run(args: argparse.Namespace, config: Optional[str]) -> Cost:
    """Of the network that a work dir's config builds."""
    if config is None:
        raise UsageError('the work dir has no config')
    cfg = read_config(config, args.cfg_options)
    return cost_of(args, cfg, build_model(cfg).to(args.device))


def cost(args: argparse.Namespace) -> None:
    cfg, model = load(args)
    measured = cost_of(args, cfg, model, not args.inference)
    show([cost_section(measured)], beside(args, args.checkpoint))


def report(args: argparse.Namespace) -> None:
    path = write_report(
        args.work_dir,
        args.out,
        args.config,
        args.checkpoint,
        args.without,
        device=args.device,
        cfg_options=args.cfg_options)
    print(f'report: {path}')


def main() -> None:
    args = parse_args()
    dict(
        attention=attention,
        redundancy=redundancy,
        features=features,
        similarity=similarity,
        ablate=ablate,
        whatif=whatif,
        cost=cost,
        report=report)[args.command](
            args)


if __name__ == '__main__':
    run(main)
