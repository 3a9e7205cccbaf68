"""The report of a run: one file that says all that is known of it."""
import os.path as osp
import platform
import time
from typing import Callable, List, NamedTuple, Optional, Sequence

import mmengine
import torch
from mmengine.config import Config
from torch import nn

from ...apis.data import annotated_batches, dataset_batches, set_of
from ...apis.loading import load_model, read_config
from ...engine.journal.record import windows_of, write_whole
from ...engine.trial import loss_of
from ...errors import UsageError
from ...models.backbones.layer_attention_mixin import find_backbone
from ...version import __version__
from ..ablate import ablate
from ..attention import measure
from ..cost import Cost, cost_of_config
from ..features import choose_layers, look
from ..history import Run, read_run
from ..schedule import read_schedule
from ..similarity import compare_features
from ..whatif import compare, recorded_criterion, recorded_window
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
SAMPLES = 8  # compared at a time, as in CKA-SR


class Effort(NamedTuple):
    """How much is measured for a report.

    Attributes:
        images (int): Pictures behind the attention weights.
        rounds (int): Timed rounds behind the costs.
        batch (int | None): Pictures of a timed step; None: the config's.
        channels (int): Channels that Score-CAM weighs.
        seconds (float): That trying the network without its layers may take;
            where it would take longer, it is left out.
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

    What needs the model is measured anew from the work dir's config and its
    latest checkpoint; what does not apply is left out, and the page says why.

    Args:
        work_dir (str): Of a run with ELAPruneHook.
        out (str, optional): The file. Defaults to ``ela_report.html`` in the
            work dir.
        config (str, optional): Instead of the work dir's.
        checkpoint (str, optional): Instead of the work dir's latest.
        without (Sequence[str]): Parts to leave out: ``attention``,
            ``similarity``, ``cost``, ``features``, ``ablation``.
        effort (Effort, optional): How much to measure.
        device (str): Where. Defaults to ``'cpu'``.
        cfg_options (dict, optional): Override settings of the config.
        say (Callable): Told what is being done. Defaults to print.
        progress (Callable): From what is being worked on to what wraps the
            list of work, to show a bar. Defaults to none.

    Returns:
        str: Path of the file, written whole or not at all.

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
        """A part that fails leaves a sentence, not a report undone."""
        if what in without:
            return None
        say(f'{what} ...')
        try:
            return make()
        except UsageError as error:
            reason = str(error)
        except Exception as error:  # whatever a user's model does
            reason = f'{type(error).__name__}: {error}'
        left_out.append(f'{what} is left out: {reason}')
        say(left_out[-1])
        return None

    paths = config or run.config, checkpoint or run.checkpoint
    loaded = None
    if set(PARTS) - set(without):
        loaded = attempt('the model',
                         lambda: _load(run, *paths, cfg_options, device))
    measured = similar = cost = features = ablated = None
    if loaded is not None:
        cfg, model = loaded
        pictures = progress('pictures')
        measured = attempt(
            'attention', lambda: attention_section(
                measure(model, pictures(dataset_batches(cfg, effort.images))),
                f'the first of {set_of(cfg)}'))
        similar = attempt(
            'similarity', lambda: similarity_section(
                compare_features(
                    model,
                    pictures(dataset_batches(cfg, effort.images, SAMPLES))),
                f'the first of {set_of(cfg)}'))
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
    name = osp.basename(osp.abspath(work_dir))
    page = render(f'ELA: what was pruned in {name}', summarize(run, cost),
                  sections,
                  ['Config: {}. Checkpoint: {}.'.format(*paths), *left_out,
                   *footer()])
    write_whole(page, osp.abspath(path))
    return path


def _schedule(run: Run, config: Optional[str]) -> Section:
    """What was to happen when, as the config has it."""
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
    return cfg, load_model(cfg, checkpoint)[0].to(device)


def _features(cfg: Config, model: nn.Module, channels: int,
              progress: Callable) -> Section:
    """Of the first picture of the validation set."""
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
    """Where it is quick: each layer takes a pass over the pictures."""
    batches = list(annotated_batches(cfg, effort.images, SAMPLES))
    layers = [x for x in find_backbone(model).attention_layers if x.active]
    times = []
    for batch in batches[:1] * 2:  # the first time takes longer
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
    return ablation_section(found, f'the first of {set_of(cfg)}', cost)


def _what_if(run: Run, cost: Optional[Cost]) -> List[Section]:
    seconds = cost and cost.attention_seconds
    windows = [recorded_window(d, run.unit) for d in run.decisions]
    return [
        whatif_section(window, compare(window, seconds),
                       cost and cost.conditions) for window in windows
        if window.names
    ]


def footer() -> List[str]:
    """Say what made a page."""
    return [
        f'Made by ela_mm {__version__} with PyTorch {torch.__version__}, '
        f'mmengine {mmengine.__version__} and Python '
        f'{platform.python_version()}. Method: Efficient Layer Attention, '
        'arXiv 2503.06473.',
    ]
