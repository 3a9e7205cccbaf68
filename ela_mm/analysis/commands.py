"""The commands of tools/analyze.py, one function each."""
import os.path as osp
from argparse import Namespace
from typing import Callable, Dict, List, Optional, Tuple

from mmengine.config import Config
from torch import nn

from ..apis.data import (
    annotated_batches,
    dataset_batches,
    file_batches,
    loader_of,
    sample_of,
    set_of,
)
from ..apis.loading import (
    build_model,
    criterion_of,
    load_model,
    redundancy_of,
    skip_mode_of,
)
from ..engine.journal.record import write_whole
from ..errors import UsageError
from ..plotting import printable
from ..pruning.build import build_criterion
from .ablate import ablate as ablate_layers
from .attention import measure
from .compare import common_folder, compare_runs, find_runs
from .cost import Cost, cost_of_config
from .features import check_grad_cam, choose_layers, look
from .history import as_of_checkpoint, decided, read_run
from .plan import make_plan, planned_layers, start_of
from .report.ablate import ablation_section
from .report.attention import attention_section
from .report.compare import compare_sections, summarize_comparison
from .report.cost import cost_section
from .report.features import features_section
from .report.page import Section, render
from .report.plan import layers_section, plan_sections
from .report.redundancy import timeline_section, window_section
from .report.report import footer, write_report
from .report.similarity import similarity_section
from .report.terminal import print_sections, progress_bar, show
from .report.whatif import whatif_section
from .similarity import compare_features
from .source import FOLDER, Source, find_source
from .whatif import compare as compare_criteria
from .whatif import parse_criterion
from .window import Window, measured_window, recorded_window


def source_of(args: Namespace) -> Source:
    """Find the files that the arguments of a command name, unchecked."""
    return find_source(args.source, args.config, args.checkpoint)


def load(args: Namespace, source: Source) -> Tuple[Config, nn.Module]:
    """Load config and model of a source, on the device of the arguments."""
    cfg = source.read_config(args.cfg_options)
    if source.checkpoint is None:
        return cfg, build_model(cfg).to(args.device)
    return cfg, load_model(cfg, source.checkpoint)[0].to(args.device)


def cost_of(args: Namespace,
            cfg: Config,
            model: nn.Module,
            training: bool = True) -> Cost:
    """Measure costs under the conditions that the arguments give."""
    return cost_of_config(
        cfg,
        model,
        args.shape,
        args.batch,
        rounds=args.rounds or 10,
        training=training,
        progress=progress_bar('timing stages'))


def attention(args: Namespace) -> None:
    """Show which layers every layer attends to."""
    source = source_of(args).check(takes_more=True)
    cfg, model = load(args, source)
    bar = progress_bar('pictures')
    if source.rest:
        batches = bar(list(file_batches(cfg, source.rest)))
        pictures = ', '.join(map(osp.basename, source.rest[:3])) + (
            ', ...' if len(source.rest) > 3 else '')
    else:
        batches = bar(dataset_batches(cfg, args.images))
        pictures = sample_of(cfg)
    section = attention_section(measure(model, batches), pictures)
    show([section], args.out or source.folder)


def redundancy(args: Namespace) -> None:
    """Show KL divergences, decisions and the timeline of a run."""
    source = _run_of(args)
    done = read_run(source.work_dir)
    if args.config is not None:  # for its custom_imports
        source.read_config(args.cfg_options)
    if args.checkpoint is not None:
        done = as_of_checkpoint(done, args.checkpoint)
    sections = [window_section(done, x) for x in decided(done)]
    show([*sections, timeline_section(done)], args.out or source.folder)


def _run_of(args: Namespace) -> Source:
    source = source_of(args).check(needs_checkpoint=False)
    if source.work_dir is None:
        raise UsageError(f'{source.config!r} is no folder: expected the work '
                         'dir of a run')
    return source


def features(args: Namespace) -> None:
    """Show class activation maps of consecutive layers."""
    check_grad_cam()
    source = source_of(args).check(takes_more=True)
    if len(source.rest) > 1:
        raise UsageError(f'{len(source.rest)} pictures: expected one')
    cfg, model = load(args, source)
    layers = args.layers or choose_layers(model, args.stage)
    if source.rest:
        batch, name = next(file_batches(cfg, source.rest)), source.rest[0]
    else:
        batch = next(dataset_batches(cfg, 1))
        name = f'the first picture of {set_of(cfg)}'
    found = look(model, batch, layers, args.channels, not args.as_pruned,
                 progress_bar('maps'), args.wanted)
    show([features_section(found, osp.basename(name))],
         args.out or source.folder)


def similarity(args: Namespace) -> None:
    """Show which blocks have similar features."""
    source = source_of(args).check()
    cfg, model = load(args, source)
    batches = progress_bar('pictures')(
        dataset_batches(cfg, args.images, args.batch))
    section = similarity_section(compare_features(model, batches),
                                 sample_of(cfg))
    show([section], args.out or source.folder)


def ablate(args: Namespace) -> None:
    """Show how much loss skipping each layer adds."""
    source = source_of(args).check()
    cfg, model = load(args, source)
    criterion = build_criterion(
        parse_criterion(args.criterion) if args.criterion else
        criterion_of(cfg))
    batches = annotated_batches(cfg, args.images, args.batch)
    found = ablate_layers(
        model,
        progress_bar('batches')(list(batches)),
        criterion,
        redundancy=args.redundancy or redundancy_of(cfg),
        skip=skip_mode_of(cfg))
    times = None if args.no_time else _or_none(lambda: cost_of_config(
        cfg, model, progress=progress_bar('timing stages')))
    show([ablation_section(found, sample_of(cfg), times)],
         args.out or source.folder)


def whatif(args: Namespace) -> None:
    """Show what other criteria and parameters would have skipped."""
    source = source_of(args)
    recorded = source.work_dir is not None and args.checkpoint is None
    source.check(needs_checkpoint=not recorded)
    _check_whatif(args, recorded)
    ask = _whatif_of_run if recorded else _whatif_now
    windows, more, cost = ask(args, source)
    seconds = cost and cost.attention_seconds
    sections = [
        _what_if(window, seconds, more, cost)
        for window in progress_bar('windows')(windows)
    ]
    show(sections, args.out or source.folder)


_Asked = Tuple[List[Window], List[dict], Optional[Cost]]


def _whatif_of_run(args: Namespace, source: Source) -> _Asked:
    done = read_run(source.work_dir)
    if source.config is not None:  # for custom_imports with own criteria
        source.read_config(args.cfg_options)
    more = [parse_criterion(text) for text in args.criterion]
    windows = [recorded_window(d, done.unit, args.redundancy)
               for d in decided(done)]

    def measure_now() -> Cost:
        if source.config is None:
            raise UsageError('the work dir has no config')
        cfg = source.read_config(args.cfg_options)
        return cost_of(args, cfg, build_model(cfg).to(args.device))

    return windows, more, None if args.no_time else _or_none(measure_now)


def _whatif_now(args: Namespace, source: Source) -> _Asked:
    cfg, model = load(args, source)
    more = [parse_criterion(text) for text in args.criterion]
    loader = cfg[loader_of(cfg)]
    images = (args.batches or 32) * (loader.get('batch_size') or 1)
    measured = measure(model,
                       progress_bar('pictures')(dataset_batches(cfg, images)))
    window = measured_window(
        measured.kl, [row.name for row in measured.rows],
        f'{measured.images} pictures of {set_of(cfg)}',
        args.redundancy or redundancy_of(cfg))
    cost = None if args.no_time else _or_none(
        lambda: cost_of(args, cfg, model))
    if cost is not None:
        window = window._replace(step_time=cost.seconds_after)
    return [window], more, cost


def _check_whatif(args: Namespace, recorded: bool) -> None:
    """Refuse options that contradict each other or would be ignored."""
    if recorded and args.batches:
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
    return whatif_section(window,
                          compare_criteria(window, seconds, more),
                          cost and cost.conditions)


def _or_none(measure_now: Callable[[], Cost]) -> Optional[Cost]:
    """Measure costs; if that is refused, print why and return None."""
    try:
        return measure_now()
    except UsageError as error:
        print(f'no step times are expected: {printable(str(error))}')
        return None


def cost(args: Namespace) -> None:
    """Show parameters, GMACs and time of each stage and layer."""
    source = source_of(args).check(needs_checkpoint=False)
    cfg, model = load(args, source)
    measured = cost_of(args, cfg, model, not args.inference)
    show([cost_section(measured)], args.out or source.folder)


def compare(args: Namespace) -> None:
    """Compare runs side by side."""
    folders = find_runs(args.source)
    found = compare_runs(folders, not args.no_parameters,
                         progress_bar('runs'), args.config, args.checkpoint)
    for line in summarize_comparison(found):
        print(printable(line))
    folder = args.out or osp.join(common_folder(args.source), FOLDER)
    sections = compare_sections(found)
    show(sections, folder)
    try:
        page = render('ELA: runs compared', summarize_comparison(found),
                      sections, footer())
    except UsageError as error:  # no Jinja2
        print(f'no page is written: {error}')
        return
    path = osp.join(folder, 'compare.html')
    write_whole(page, osp.abspath(path))
    print(f'page: {path}')


def layers(args: Namespace) -> None:
    """Show which attention layers are active, frozen and prunable."""
    source = source_of(args).check(needs_checkpoint=False)
    cfg = source.read_config(args.cfg_options)
    notes: List[str] = []
    if source.checkpoint is not None:
        cfg.load_from = source.checkpoint
    section = layers_section(planned_layers(start_of(cfg, notes)))
    section.text += notes
    print_sections([section])


def plan(args: Namespace) -> None:
    """Show what a training will do, without training."""
    source = source_of(args)
    if source.work_dir is not None:
        source = source._replace(checkpoint=None)  # plan it from the start
    source.check(needs_checkpoint=False)
    cfg = source.read_config(args.cfg_options)
    if source.checkpoint is not None:
        cfg.load_from = source.checkpoint
    found = make_plan(cfg, args.rounds, progress_bar('steps'))
    show(plan_sections(found), args.out or source.folder)
    if found.refused:
        raise UsageError(f'{source.config}: training would be refused: '
                         f'{found.refused[0]}')


def report(args: Namespace) -> None:
    """Write an HTML page of all analyses."""
    source = _run_of(args)
    path = write_report(
        source.work_dir,
        args.out,
        args.config,
        args.checkpoint,
        args.without,
        device=args.device,
        cfg_options=args.cfg_options,
        progress=progress_bar)
    print(f'report: {path}')


COMMANDS: Dict[str, Callable[[Namespace], None]] = dict(
    attention=attention,
    redundancy=redundancy,
    features=features,
    similarity=similarity,
    ablate=ablate,
    whatif=whatif,
    cost=cost,
    compare=compare,
    layers=layers,
    plan=plan,
    report=report)
