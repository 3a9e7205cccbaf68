"""Writes the report of a run: one HTML file with all analyses."""
import os.path as osp
import platform
import time
from typing import Callable, List, NamedTuple, Optional, Sequence

import mmengine
import torch
from mmengine.config import Config
from torch import nn

from ...apis.data import annotated_batches, dataset_batches, sample_of, set_of
from ...apis.loading import load_model, read_config
from ...engine.journal.record import edits_of, windows_of, write_whole
from ...engine.resumption import STATE_KEY
from ...engine.trial import loss_of
from ...errors import UsageError
from ...models.backbones.layer_attention_mixin import find_backbone
from ...pruning.edit import MaskEdit
from ...version import __version__
from ..ablate import ablate
from ..attention import measure
from ..cost import Cost, cost_of_config
from ..features import choose_layers, look
from ..history import Run, read_run
from ..run_names import name_of
from ..schedule import read_schedule
from ..similarity import compare_features
from ..whatif import compare, recorded_criterion
from ..window import recorded_window
from .ablate import ablation_section
from .attention import attention_section
from .cost import cost_section
from .features import features_section
from .page import Section, check_jinja, render
from .plan import schedule_section
from .redundancy import summarize, timeline_section, window_section
from .similarity import similarity_section
from .whatif import whatif_section

FILE_NAME = 'ela_report.html'
PARTS = ('attention', 'similarity', 'cost', 'features', 'ablation')
SAMPLES = 8  # images in a batch, as in CKA-SR


class Effort(NamedTuple):
    """How much is measured for a report.

    Attributes:
        images (int): Number of images for attention weights, similarity and
            ablation.
        rounds (int): Number of timed rounds for the costs.
        batch (int | None): Number of images in a timed step; None: that of the
            config.
        channels (int): Number of channels that Score-CAM weighs.
        seconds (float): Time limit of the ablation, which is left out if it
            would take longer.
    """
    images: int = 32
    rounds: int = 8
    batch: Optional[int] = None
    channels: int = 16
    seconds: float = 120.


def write_report(work_dir: str,
                 out: Optional[str] = None,
                 config: Optional[str] = None,
                 checkpoint: Optional[str] = None,
                 without: Sequence[str] = (),
                 effort: Optional[Effort] = None,
                 device: str = 'cpu',
                 cfg_options: Optional[dict] = None,
                 say: Callable[[str], None] = print,
                 progress: Callable[[str], Callable] = lambda what: iter
                 ) -> str:
    """Write the report of a run.

    Parts that need the model are measured now, with the config and the latest
    checkpoint of the work dir. Parts that do not apply are left out, and the
    page says why.

    Args:
        work_dir (str): Work dir of a run with ELAPruneHook.
        out (str, optional): Path of the report. Defaults to
            ``ela_report.html`` in the work dir.
        config (str, optional): Config to use. Defaults to that of the work dir.
        checkpoint (str, optional): Checkpoint to use. Defaults to the latest of
            the work dir.
        without (Sequence[str]): Parts to leave out, some of ``attention``,
            ``similarity``, ``cost``, ``features`` and ``ablation``.
        effort (Effort, optional): How much to measure. Defaults to None:
            ``Effort()``.
        device (str): Device to measure on. Defaults to ``'cpu'``.
        cfg_options (dict, optional): Options that override the config's.
        say (Callable): Function to report progress to, in words. Defaults to
            ``print``.
        progress (Callable): Function that makes, from a description, a function
            that wraps a list to show a bar. Defaults to one without bars.

    Returns:
        str: Path of the report, which is written completely or not at all.

    Raises:
        UsageError: If there is no record of a run, or no Jinja2.
    """
    check_jinja()
    for kind, given in (('config', config), ('checkpoint', checkpoint)):
        if given is not None and not osp.isfile(given):
            raise UsageError(f'{kind} {given!r} does not exist')
    run = read_run(work_dir)
    path = out or osp.join(work_dir, FILE_NAME)
    if osp.isdir(path):
        path = osp.join(path, FILE_NAME)
    effort = effort or Effort()
    left_out: List[str] = []

    def attempt(what: str, make: Callable):
        """Make a part of the report; if that fails, note why."""
        if what in without:
            return None
        say(f'{what} ...')
        try:
            return make()
        except UsageError as error:
            reason = str(error)
        except Exception as error:  # a user's model may raise anything
            reason = f'{type(error).__name__}: {error}'
        left_out.append(f'{what} is left out: {reason}')
        say(left_out[-1])
        return None

    paths = config or run.config, checkpoint or run.checkpoint
    loaded = None
    if set(PARTS) - set(without):
        loaded = attempt('the model',
                         lambda: _load(run, *paths, cfg_options, device))
    measured = similar = cost = features = ablated = other = None
    if loaded is not None:
        cfg, model, edits = loaded
        other = _other_network(run, model, edits, paths[1])
        pictures = progress('pictures')
        measured = attempt(
            'attention', lambda: attention_section(
                measure(model, pictures(dataset_batches(cfg, effort.images))),
                sample_of(cfg)))
        similar = attempt(
            'similarity', lambda: similarity_section(
                compare_features(
                    model,
                    pictures(dataset_batches(cfg, effort.images, SAMPLES))),
                sample_of(cfg)))
        cost = attempt(
            'cost', lambda: cost_of_config(
                cfg, model, batch=effort.batch, rounds=effort.rounds,
                progress=progress('timing stages')))
        features = attempt('features',
                           lambda: _features(cfg, model, effort.channels,
                                             progress('maps')))
        ablated = attempt('ablation',
                          lambda: _ablation(run, cfg, model, effort, cost))
    sections = [timeline_section(run)]
    schedule = attempt('schedule', lambda: _schedule(run, paths[0]))
    if schedule is not None:
        sections.append(schedule)
    sections += [window_section(run, decision) for decision in run.decisions]
    sections += attempt('what if', lambda: _what_if(run, cost)) or []
    sections += [section for section in (measured, similar, features, ablated)
                 if section]
    if cost is not None:
        sections.append(cost_section(cost))
    page = render(f'ELA: what was pruned in {name_of(work_dir)}',
                  [*([other] if other else []), *summarize(run, cost)], sections,
                  ['Config: {}. Checkpoint: {}.'.format(*paths), *left_out,
                   *footer()])
    write_whole(page, osp.abspath(path))
    return path


def _schedule(run: Run, config: Optional[str]) -> Section:
    """Show when things were to happen, by the config."""
    if config is None:
        raise UsageError(f'no config in {run.work_dir!r}')
    epochs = [d.iter // d.epoch for d in run.decisions
              if run.unit == 'epoch' and d.epoch]
    return schedule_section(
        read_schedule(
            read_config(config), epochs[0] if epochs else None,
            windows_of(run.record)),
        line=False)


def _load(run: Run, config: Optional[str], checkpoint: Optional[str],
          cfg_options: Optional[dict], device: str) -> tuple:
    for kind, path in (('config', config), ('checkpoint', checkpoint)):
        if path is None:
            raise UsageError(f'no {kind} in {run.work_dir!r}')
    cfg = read_config(config, cfg_options)
    model, saved = load_model(cfg, checkpoint)
    state = saved.get(STATE_KEY) or {}
    return cfg, model.to(device), edits_of(state)


def _other_network(run: Run, model: nn.Module, edits: List[MaskEdit],
                   path: str) -> Optional[str]:
    """Say that the checkpoint has other active layers than the run ended with.

    It is older than the record says, or its mask was edited by hand, or the
    record mentions an edit of a checkpoint from which nothing was trained.
    """
    active = {x.name for x in find_backbone(model).attention_layers if x.active}
    recorded = set(run.record['active'])
    if active == recorded:
        return None
    differ = [
        f'{", ".join(names)} {"are" if len(names) > 1 else "is"} {what}'
        for names, what in (
            ([n for n in run.record['layers'] if n in active - recorded],
             'active in it and skipped in the record'),
            ([n for n in run.record['layers'] if n in recorded - active],
             'skipped in it and active in the record')) if names]
    by_hand = [str(edit) for edit in edits if edit not in run.edits]
    return (
        'Two networks are on this page. Decisions, the timeline and what-if are '
        f'those of the record, with {len(recorded)} active layers. Attention, '
        'similarity, costs, features and ablation are measured on '
        f'{osp.basename(path)}, with {len(active)}: {"; ".join(differ)}.' +
        (f' Its mask was edited by hand: {"; ".join(by_hand)}.' if by_hand
         else '') + ' To measure another checkpoint, name it with --checkpoint.')


def _features(cfg: Config, model: nn.Module, channels: int,
              progress: Callable) -> Section:
    """Show class activation maps of the first image of the validation set."""
    batch = next(dataset_batches(cfg, 1))
    features = look(model, batch, choose_layers(model), channels,
                    progress=progress)
    samples = batch.get('data_samples') or [None]
    path = getattr(samples[0], 'img_path', None)
    return features_section(
        features, f'the first picture of {set_of(cfg)}' +
        (f', {osp.basename(path)}' if path else ''))


def _ablation(run: Run, cfg: Config, model: nn.Module, effort: Effort,
              cost: Optional[Cost]) -> Section:
    """Show the ablation, unless it takes too long: one pass for each layer."""
    batches = list(annotated_batches(cfg, effort.images, SAMPLES))
    layers = [x for x in find_backbone(model).attention_layers if x.active]
    times = []
    for batch in batches[:1] * 2:  # the first time is slower
        start = time.perf_counter()
        loss_of(model.eval(), batch)
        times.append(time.perf_counter() - start)
    # One pass with all layers, one without each, perhaps one as decided.
    expected = min(times, default=0) * len(batches) * (len(layers) + 2)
    if expected > effort.seconds:
        raise UsageError(
            f'trying the network without each of its {len(layers)} layers '
            f'would take some {expected / 60:.0f} minutes; python '
            'tools/analyze.py ablate CONFIG CHECKPOINT does it')
    found = ablate(
        model,
        batches,
        recorded_criterion(run.record['criterion']),
        accuracy=False,
        redundancy=run.record.get('redundancy') or 'paper',
        skip=run.record.get('skip') or 'layer')
    return ablation_section(found, sample_of(cfg), cost)


def _what_if(run: Run, cost: Optional[Cost]) -> List[Section]:
    seconds = cost and cost.attention_seconds
    windows = [recorded_window(d, run.unit) for d in run.decisions]
    return [
        whatif_section(window, compare(window, seconds),
                       cost and cost.conditions) for window in windows
        if window.names
    ]


def footer() -> List[str]:
    """Say which versions made a page."""
    return [
        f'Made by ela_mm {__version__} with PyTorch {torch.__version__}, '
        f'mmengine {mmengine.__version__} and Python '
        f'{platform.python_version()}. Method: Efficient Layer Attention, '
        'arXiv 2503.06473.',
    ]
