"""Finds out what a training will do, without training."""
import statistics
import tempfile
from copy import deepcopy
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.runner import IterBasedTrainLoop, Runner

from ..apis.data import check_data, prepare_config
from ..apis.downloads import weights_to_fetch
from ..apis.launch import build_runner, check_checkpoint
from ..apis.loading import build_model, prune_hook_of, skip_mode_of
from ..config_types import imports_package
from ..engine.hooks.ela_prune_hook import ELAPruneHook
from ..engine.resumption import STATE_KEY, begun_windows
from ..engine.sanity import resolve_windows
from ..engine.surgery import random_attention_of
from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import (
    LayerAttentionMixin,
    find_backbone,
)
from ..pruning.build import build_criterion
from ..pruning.windows import Windows
from ..timing import ratio, seconds_of, time_in_turns
from .planned_criteria import (  # noqa: F401
    criteria_in_words,
    describe_criterion,
    most_of,
    rules_in_words,
)
from .rehearsal import (
    FirstBatchError,
    begin,
    first,
    first_batch,
    preparing_hooks,
    try_samples,
    try_validation,
)
from .schedule import Schedule, read_schedule

# Seconds that timing may take, if the number of rounds is not given.
PATIENCE = 60


class PlannedLayer(NamedTuple):
    """An attention layer before a training.

    Attributes:
        name (str): Name of the layer.
        stage (int): Number of its stage, from 1.
        active (bool): Whether the checkpoint to start from has not skipped it.
        frozen (bool): Whether its parameters are frozen.
        inert (bool): Whether it adds exactly 0 and cannot learn; such layers
            are skipped before the first step.
        first (bool): Whether it is the first active layer of its stage, which
            has no predecessor and is never skipped.
    """
    name: str
    stage: int
    active: bool
    frozen: bool
    inert: bool
    first: bool

    @property
    def prunable(self) -> bool:
        """Whether a window can skip it."""
        return self.active and not (self.inert or self.first)


class StepTime(NamedTuple):
    """The time of whole training steps, from forward to optimizer.

    Attributes:
        label (str): Which layers are active, in words.
        layers (int): Number of active layers.
        seconds (List[float]): Seconds in each round.
        ratio (float): Ratio to the time with all layers, median over rounds.
    """
    label: str
    layers: int
    seconds: List[float]
    ratio: float

    @property
    def median(self) -> float:
        """Median over rounds, seconds."""
        return statistics.median(self.seconds)


class Plan(NamedTuple):
    """What a training will do.

    Attributes:
        layers (List[PlannedLayer]): Attention layers, in order.
        schedule (Schedule | None): Timeline; None if the config does not say.
        criteria (List[str]): Criteria of the run and of single windows, in
            words.
        times (List[StepTime]): Step times with all layers, with half of the
            prunable ones skipped, and with as many skipped as the criterion
            can skip in a window; empty if not measured.
        refused (List[str]): Reasons why the training would not start, or
            would end at its first batch or at that of its first validation.
        notes (List[str]): Sentences on what could not be found out.
        rules (Sequence[str]): When a criterion is not followed, in words.
    """
    layers: List[PlannedLayer]
    schedule: Optional[Schedule]
    criteria: List[str]
    times: List[StepTime]
    refused: List[str]
    notes: List[str]
    rules: Sequence[str] = ()


def make_plan(cfg: Config,
              rounds: Optional[int] = None,
              progress: Callable = iter) -> Plan:
    """Find out what a training will do.

    Network, data and Runner are built, the first batches of training and
    validation are tried, and a few steps with a learning rate of 0 are timed.
    Nothing is kept or written. Of the hooks, only this package's are asked.

    Args:
        cfg (Config): Config of the training; not changed.
        rounds (int, optional): Number of timed rounds of steps; 0: none, and
            the first batches are loaded, but the network does not see them.
            Defaults to 3, or to 1 if these would take longer than a minute.
        progress (Callable): Function that wraps the list of rounds, to show a
            bar. Defaults to ``iter``.

    Returns:
        Plan: The plan, for one process.

    Raises:
        UsageError: If the config has no ELA backbone.
    """
    cfg = prepare_config(deepcopy(cfg))
    refused: List[str] = []
    notes = weights_to_fetch(cfg)
    try:
        check_checkpoint(cfg.get('load_from'))
    except UsageError as error:
        refused.append(str(error))
        cfg.load_from = None
    if not imports_package(cfg):
        notes.append("the config lacks custom_imports = dict(imports=['ela_mm'], "
                     'allow_failed_imports=False): without that line the '
                     "hosts' own tools cannot build it")
    backbone = start_of(cfg, notes)
    noise = random_attention_of(backbone)
    if noise is not None:
        notes.append(f'unless init_cfg brings trained attention, {noise}')
    layers = planned_layers(backbone)
    try:
        check_data(cfg, 'train_dataloader', 'val_dataloader')
    except UsageError as error:
        refused.append(str(error))
    times, per_epoch, windows = [], None, None
    hook = prune_hook_of(cfg)
    criteria = _attempt(
        lambda: criteria_in_words(hook, sum(x.prunable for x in layers)),
        refused) or []
    if not refused:
        with tempfile.TemporaryDirectory(prefix='ela_plan_') as folder:
            runner = _attempt(lambda: _rehearse(cfg, folder), refused)
            if isinstance(runner, Runner):
                _ask_hooks(runner, refused)
                per_epoch, windows = _lengths(runner)
                if windows is not None and cfg.get('resume'):
                    _attempt(lambda: _go_on(windows, runner, cfg.load_from),
                             refused)
                if not refused:
                    _attempt(lambda: try_samples(runner), refused)
                if rounds != 0 and not refused:
                    _attempt(lambda: try_validation(runner), refused,
                             'validation is not tried: ', notes)
                    times = _attempt(
                        lambda: _step_times(runner, layers, _most(cfg, layers),
                                            skip_mode_of(cfg), rounds,
                                            progress), refused,
                        'step times are not known: ', notes) or []
            elif runner is not None:
                notes.append(f'{type(runner).__name__} is built, but not '
                             'rehearsed')
    try:
        schedule = read_schedule(cfg, per_epoch, windows)
    except UsageError as error:
        schedule = None
        if not any(text.endswith(str(error)) for text in refused):
            refused.append(str(error))  # unless the hook has said it before
    if schedule is not None and not schedule.clock.in_iterations:
        notes.append('iterations per epoch are not known')
    return Plan(layers, schedule, criteria, times,
                list(dict.fromkeys(refused)), notes,
                rules_in_words(hook) if criteria else ())


def _attempt(make: Callable[[], Any],
             told: List[str],
             what: str = '',
             unknown: Optional[List[str]] = None) -> Any:
    """Call a function; if it fails, note why and return None.

    Args:
        make (Callable): Function that may raise anything.
        told (List[str]): List to append a sentence to if it does.
        what (str): Begin of that sentence, unless the first batch is to blame.
            Defaults to ``''``.
        unknown (List[str], optional): List for errors that the training need
            not raise: all but those of the first batch. Defaults to ``told``.
    """
    try:
        return make()
    except FirstBatchError as error:
        told.append(str(error))
    except Exception as error:
        (told if unknown is None else unknown).append(what + (
            '' if isinstance(error, UsageError) else
            f'{type(error).__name__}: ') + str(error))
    return None


# --- layers ------------------------------------------------------------------


def start_of(cfg: Config, notes: List[str]) -> LayerAttentionMixin:
    """Build the backbone that a training starts with, its mask included.

    Args:
        cfg (Config): Config of the training, whose ``load_from`` is loaded if
            it is a local file.
        notes (List[str]): List to append a sentence to, if it is not, or if
            the run is resumed.

    Returns:
        LayerAttentionMixin: The backbone.
    """
    model = build_model(cfg)
    path = cfg.get('load_from')
    if path is not None and '://' in path:
        notes.append(f'{path} is not looked at: layers are taken to be fresh')
    elif path is not None:
        check_checkpoint(path)
        state = torch.load(path, map_location='cpu')
        meta = state.get('meta') or {}
        if cfg.get('resume'):
            notes.append(f'the run goes on from {path}, after epoch '
                         f'{meta.get("epoch")} and iteration '
                         f'{meta.get("iter")}: what lies before is done')
        model.load_state_dict(state.get('state_dict', state), strict=False)
    return find_backbone(model)


def planned_layers(backbone: LayerAttentionMixin) -> List[PlannedLayer]:
    """Find out what each attention layer will be before the first window.

    Args:
        backbone (LayerAttentionMixin): Backbone at the start of training; set
            to training mode.

    Returns:
        List[PlannedLayer]: Attention layers, in order.
    """
    backbone.train()
    inert, begun = set(backbone.inert_layers), set()
    layers = []
    for layer in backbone.attention_layers:
        attends = layer.active and layer.name not in inert
        layers.append(
            PlannedLayer(layer.name, layer.stage, layer.active,
                         backbone.is_frozen(layer), layer.name in inert,
                         attends and layer.stage not in begun))
        if attends:
            begun.add(layer.stage)
    return layers


def _most(cfg: Config, layers: Sequence[PlannedLayer]) -> int:
    """Compute the largest number of layers the first window can skip."""
    hook = prune_hook_of(cfg)
    if hook is None:
        return 0
    windows = Windows(hook.get('windows'), hook.get('by_epoch', True))
    config = windows.criteria.get(windows.given[0], hook.get('criterion'))
    return most_of(build_criterion(config).config,
                   sum(layer.prunable for layer in layers))


# --- a rehearsal -------------------------------------------------------------


def _rehearse(cfg: Config, folder: str) -> Runner:
    """Build the Runner, with a work dir that will be deleted."""
    cfg = deepcopy(cfg)
    cfg.work_dir, cfg.launcher = folder, 'none'
    cfg.load_from, cfg.resume, cfg.log_level = None, False, 'ERROR'
    if cfg.get('visualizer'):
        cfg.visualizer.vis_backends = None  # report nothing to anybody
    cfg.experiment_name = f'plan_{folder}'
    runner = build_runner(cfg, trains=False)
    if isinstance(runner, Runner):  # FlexibleRunner's strategy does this itself
        runner.optim_wrapper = runner.build_optim_wrapper(
            runner.optim_wrapper)
        runner.train_loop  # noqa: B018  builds loop and data
        if runner.param_schedulers is not None:
            runner.param_schedulers = runner.build_param_scheduler(
                runner.param_schedulers)
    return runner


def _lengths(runner: Runner) -> Tuple[Optional[int], Optional[Windows]]:
    """Return iterations per epoch, and the windows that the hook resolved."""
    hook = next((h for h in runner.hooks if isinstance(h, ELAPruneHook)), None)
    windows = hook.journal.windows if hook is not None else None
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        return None, windows
    try:
        return len(runner.train_dataloader), windows
    except TypeError:  # an iterable dataset need not know
        return None, windows


def _go_on(windows: Windows, runner: Runner, path: str) -> None:
    """Resolve windows as on resuming: those begun keep their spans."""
    if '://' in path:
        return
    checkpoint = torch.load(path, map_location='cpu')
    meta = checkpoint.get('meta') or {}
    done = meta.get('epoch' if windows.by_epoch else 'iter') or 0
    windows.begun = begun_windows(checkpoint.get(STATE_KEY) or {}, done)
    resolve_windows(windows, runner)


def _ask_hooks(runner: Runner, refused: List[str]) -> None:
    """Let this package's hooks check the run; others might do something."""
    for hook in runner.hooks:
        if type(hook).__module__.startswith('ela_mm.'):
            try:
                hook.before_run(runner)
            except UsageError as error:
                refused.append(f'{type(hook).__name__}: {error}')


def _step_times(runner: Runner, layers: Sequence[PlannedLayer], most: int,
                skip: str, rounds: Optional[int],
                progress: Callable) -> List[StepTime]:
    """Time steps on the first batch, in turns; the learning rate is 0."""
    backbone = find_backbone(runner.model)
    batch = first_batch(runner.train_dataloader)
    begin(runner)
    runner.optim_wrapper.initialize_count_status(runner.model, 0,
                                                 runner.max_iters)
    for group in runner.optim_wrapper.optimizer.param_groups:
        group['lr'] = 0.
    gone = [x.name for x in layers if not x.active or x.inert]
    prunable = [x.name for x in layers if x.prunable]
    wanted = {'all layers': [], 'half of the prunable skipped': prunable[::2]}
    if most:
        step = max(1, len(prunable) // most)
        rest = [n for n in prunable if n not in prunable[::step]]
        wanted[f'{most} skipped, the most that a window can'] = (
            prunable[::step] + rest)[:most]

    def step_with(names: List[str]) -> Callable[[], None]:

        def step() -> None:
            backbone.restore_layers()
            backbone.skip_layers(gone)
            backbone.skip_layers(names, skip)
            runner.model.train()
            runner.model.train_step(deepcopy(batch), runner.optim_wrapper)
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        return step

    steps = {label: step_with(names) for label, names in wanted.items()}
    with first('the first training step', preparing_hooks(runner, 'train')):
        taken = seconds_of(steps['all layers']) * len(steps)
    warm_up = 1
    if rounds is None:
        rounds = 3
        if taken * (warm_up + rounds) > PATIENCE:
            rounds, warm_up = 1, 0
    times = time_in_turns(steps, rounds, warm_up, progress)
    backbone.restore_layers()
    return [
        StepTime(label, len(layers) - len(gone) - len(names), times[label],
                 ratio(times[label], times['all layers']))
        for label, names in wanted.items()
    ]
