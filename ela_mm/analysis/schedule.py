"""Reads from a config, without running it, when things happen in a training."""
import math
from bisect import bisect
from typing import List, NamedTuple, Optional, Sequence, Tuple

from mmengine.config import Config
from mmengine.runner.utils import calc_dynamic_intervals

from ..apis.loading import prune_hook_of
from ..config_types import type_name
from ..engine.warm_up import end_of, rise_of
from ..pruning.windows import AFTER_WARMUP, Course, Windows

# Windows of fewer iterations are too short: this project's choice.
FEW_ITERATIONS = 30
# mmengine's defaults.
_VAL_INTERVAL = dict(epoch=1, iteration=1000)
_PATIENCE = 5


class Clock(NamedTuple):
    """Converts positions in a training.

    A position is the number of iterations done, or of epochs done if the number
    of iterations per epoch is unknown.

    Attributes:
        per_epoch (int | None): Number of iterations per epoch; None if it is
            unknown, or if the loop has no epochs.
        by_epoch (bool): Whether the training loop counts epochs.
        length (int): Length of the training, in the unit of the loop.
    """
    per_epoch: Optional[int]
    by_epoch: bool
    length: int

    @property
    def in_iterations(self) -> bool:
        """Whether positions are iterations."""
        return not self.by_epoch or self.per_epoch is not None

    @property
    def end(self) -> int:
        """Position of the end."""
        return self.at(self.length, self.by_epoch)

    def at(self, count: float, epochs: bool) -> Optional[float]:
        """Return the position after a number of epochs or iterations.

        Args:
            count (float): The number.
            epochs (bool): Whether it counts epochs; if False, iterations.

        Returns:
            float | None: The position; None if it is unknown.
        """
        if epochs == (not self.in_iterations):
            return count
        if epochs:
            return count * self.per_epoch if self.per_epoch else None
        return count / self.per_epoch if self.per_epoch else None

    def in_units(self, position: float, epochs: bool) -> Optional[float]:
        """Convert a position to epochs or iterations; None if unknown."""
        if epochs == (not self.in_iterations):
            return position
        if not self.per_epoch:
            return None
        return position / self.per_epoch if epochs else (
            position * self.per_epoch)

    def words(self, position: float) -> str:
        """Put a position into words, in epochs and iterations if known."""
        if not self.in_iterations:
            return f'epoch {math.ceil(position)}'
        text = f'iteration {int(position)}'
        if self.per_epoch and self.by_epoch:
            text += f' (epoch {math.ceil(position / self.per_epoch)})'
        return text


class Span(NamedTuple):
    """A part of a training, such as a window.

    Attributes:
        label (str): What it is, in words.
        begin (float): Position where it begins.
        end (float): Position where it ends.
    """
    label: str
    begin: float
    end: float


class Schedule(NamedTuple):
    """The timeline of a training; see :class:`Clock` for positions.

    Attributes:
        clock (Clock): Converter of positions.
        windows (List[Span]): Windows of ELAPruneHook, in order.
        warm_up (Span | None): Warm-up of the learning rate, if any.
        lr_steps (List[float]): Positions where the learning rate drops.
        lr_others (List[str]): Other schedulers of the learning rate, in words.
        validations (List[float]): Positions of validations.
        checkpoints (List[float]): Positions of checkpoints.
        earliest_stop (float | None): Position before which EarlyStoppingHook
            cannot end the run; None without that hook.
    """
    clock: Clock
    windows: List[Span]
    warm_up: Optional[Span]
    lr_steps: List[float]
    lr_others: List[str]
    validations: List[float]
    checkpoints: List[float]
    earliest_stop: Optional[float]

    @property
    def warnings(self) -> List[str]:
        """Warnings of windows that are allowed but seldom intended."""
        return [
            text for window in self.windows
            for text in (self._too_early(window), self._too_short(window),
                         self._too_late(window), self._last(window)) if text
        ]

    def _too_early(self, window: Span) -> Optional[str]:
        if self.warm_up is None or window.begin >= self.warm_up.end:
            return None
        how = ('lies in' if window.end <= self.warm_up.end else 'begins in')
        return (f'{window.label} {how} the warm-up of the learning rate, which '
                f'ends at {self.clock.words(self.warm_up.end)}: attention has '
                'hardly learned by then, and layers go by their position')

    def _too_short(self, window: Span) -> Optional[str]:
        length = int(window.end - window.begin)
        if not self.clock.in_iterations or length >= FEW_ITERATIONS:
            return None
        return (f'{window.label} has {length} iterations, fewer than '
                f'{FEW_ITERATIONS}: its averages rest on little, and another '
                'seed may decide otherwise')

    def _too_late(self, window: Span) -> Optional[str]:
        if self.earliest_stop is None or window.end <= self.earliest_stop:
            return None
        return (f'{window.label} ends after early stopping could end the run, '
                f'at {self.clock.words(self.earliest_stop)} at the earliest: '
                'then it decides nothing')

    def _last(self, window: Span) -> Optional[str]:
        if not self.clock.end or window.end < self.clock.end:
            return None
        return (f'{window.label} ends with the training: skipping layers then '
                'saves no training time, and the network is not trained '
                'without them')


def read_schedule(cfg: Config,
                  per_epoch: Optional[int] = None,
                  windows: Optional[Windows] = None) -> Schedule:
    """Read the timeline of a training from its config.

    Args:
        cfg (Config): Config of the training.
        per_epoch (int, optional): Number of iterations per epoch, if known.
        windows (Windows, optional): Resolved windows of ELAPruneHook. By
            default they are resolved here, as far as the config allows.

    Returns:
        Schedule: The timeline on one process.

    Raises:
        UsageError: On wrong windows.
    """
    train = cfg.get('train_cfg') or {}
    by_epoch = train.get('by_epoch', 'max_epochs' in train)
    length = train.get('max_epochs' if by_epoch else 'max_iters') or 0
    clock = Clock(per_epoch if by_epoch else None, by_epoch, length)
    validations = _validations(cfg, clock)
    warm_up, steps, others = _learning_rate(cfg, clock)
    return Schedule(
        clock=clock,
        windows=_windows(cfg, clock, windows, warm_up),
        warm_up=warm_up,
        lr_steps=steps,
        lr_others=others,
        validations=validations,
        checkpoints=_checkpoints(cfg, clock),
        earliest_stop=_earliest_stop(cfg, validations))


def _hooks(cfg: Config, name: str):
    for hook in cfg.get('custom_hooks') or []:
        if isinstance(hook, dict) and type_name(hook) == name:
            yield hook


def _windows(cfg: Config, clock: Clock, windows: Optional[Windows],
             warm_up: Optional[Span]) -> List[Span]:
    hook = prune_hook_of(cfg)
    if hook is None:
        return []
    if windows is None or not windows.spans:
        windows = Windows(hook['windows'], hook.get('by_epoch', True))
        _resolve(windows, clock, warm_up)
    found = []
    for window in windows.spans:
        begin = clock.at(window[0] - 1, windows.by_epoch)
        end = clock.at(window[1], windows.by_epoch)
        if begin is not None:
            found.append(Span(f'window {windows.name(window)}', begin, end))
    return found


def _resolve(windows: Windows, clock: Clock, warm_up: Optional[Span]) -> None:
    """Resolve windows, unless the config does not say enough."""
    waits = any(given[0] == AFTER_WARMUP for given in windows.given)
    length = clock.in_units(clock.end, windows.by_epoch)
    if (not windows.are_relative or length is None
            or waits and not clock.in_iterations):
        return
    windows.check_loop(clock.by_epoch)
    after = warm_up and math.ceil(
        clock.in_units(warm_up.end, windows.by_epoch))
    windows.resolve(Course(round(length), after))


def _learning_rate(cfg: Config, clock: Clock) -> Tuple:
    """Return warm-up, steps, and other schedulers in words."""
    configs = cfg.get('param_scheduler') or []
    if isinstance(configs, dict):  # a single one, or those by optimizer
        configs = [configs] if 'type' in configs else [
            x for value in configs.values()
            for x in (value if isinstance(value, list) else [value])
        ]
    rises, steps, others = [], [], []
    for config in configs:
        kind = type_name(config)
        epochs = config.get('by_epoch', True)
        begin = config.get('begin', 0)
        last = config.get('end', math.inf)
        end = clock.end if last == math.inf else clock.at(last, epochs)
        start = clock.at(begin, epochs)
        rise = rise_of(kind, config)
        if start is None or end is None:
            others.append(f'{kind} of {"epochs" if epochs else "iterations"} '
                          f'{begin + 1} to {last}')
        elif kind == 'OneCycleLR':
            share = config.get('pct_start', .3)
            rises.append(Span(kind, start, start + share * (end - start)))
        elif rise is not None and last != math.inf:
            # Also if the training ends before its warm-up.
            rises.append(Span(kind, start, end))
        elif kind in ('MultiStepLR', 'StepLR'):
            marks = (config.get('milestones') if kind == 'MultiStepLR' else
                     range(config['step_size'],
                           int(min(last, clock.length)) + 1,
                           config['step_size']))
            found = [clock.at(begin + mark, epochs) for mark in marks]
            steps += [x for x in found if x < clock.end]
        else:
            others.append(f'{kind} from {clock.words(start + 1)} to '
                          f'{clock.words(end)}')
    over = end_of(rise[1:] for rise in rises) or -1
    warm_up = None
    if over > 0:
        kinds = ', '.join(rise.label for rise in rises if rise.begin <= over)
        warm_up = Span(f'warm-up ({kinds})', 0, over)
    others += [f'{kind} from {clock.words(begin + 1)} to {clock.words(end)}'
               for kind, begin, end in rises if begin > over]
    return warm_up, sorted(set(steps)), others


def _validations(cfg: Config, clock: Clock) -> List[float]:
    if not (cfg.get('val_dataloader') and cfg.get('val_cfg') is not None):
        return []
    train = cfg.train_cfg
    unit = 'epoch' if clock.by_epoch else 'iteration'
    first = train.get('val_interval', _VAL_INTERVAL[unit])
    milestones, intervals = calc_dynamic_intervals(
        first, train.get('dynamic_intervals'))
    begin = train.get('val_begin', 1)
    counts = [
        count for count in range(1, clock.length + 1)
        if count >= begin and (
            count == clock.length or
            count % intervals[bisect(milestones, count + 1) - 1] == 0)
    ]
    return [clock.at(count, clock.by_epoch) for count in counts]


def _checkpoints(cfg: Config, clock: Clock) -> List[float]:
    hook = (cfg.get('default_hooks') or {}).get(
        'checkpoint', dict(type='CheckpointHook'))
    if hook is None:
        return []
    epochs = hook.get('by_epoch', True)
    interval, found = hook.get('interval', -1), set()
    total = clock.length if epochs == clock.by_epoch else (
        clock.length * (clock.per_epoch or 0))
    if interval > 0 and (epochs or clock.in_iterations):
        found = {clock.at(count, epochs)
                 for count in range(interval, total + 1, interval)}
    if hook.get('save_last', True):
        found.add(clock.end)
    return sorted(x for x in found if x is not None and x <= clock.end)


def _earliest_stop(cfg: Config,
                   validations: Sequence[float]) -> Optional[float]:
    """Find the validation that is the first plus ``patience`` worse ones."""
    stops = []
    for hook in _hooks(cfg, 'EarlyStoppingHook'):
        waits = hook.get('patience', _PATIENCE)
        if hook.get('stopping_threshold') is not None:
            waits = 0
        if waits < len(validations):
            stops.append(validations[waits])
    return min(stops, default=None)
