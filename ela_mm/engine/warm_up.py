"""Finds the end of the learning rate's warm-up."""
import math
from typing import Any, Iterable, Mapping, Optional, Tuple

from mmengine.runner import IterBasedTrainLoop


def rise_of(kind: str, options: Mapping[str, Any]) -> Optional[Tuple]:
    """Find when a scheduler raises the learning rate to its full value.

    Args:
        kind (str): Name of the scheduler's class, such as ``'LinearLR'``.
        options (Mapping[str, Any]): Arguments given to the scheduler.

    Returns:
        tuple | None: Begin and end, in epochs or iterations, whichever the
        scheduler counts; the end is infinite if none is given. None if the
        scheduler is not a warm-up.
    """
    if options.get('param_name', 'lr') != 'lr':
        return None
    begin, end = options.get('begin', 0), options.get('end', math.inf)
    if kind == 'OneCycleLR':
        total = options.get('total_steps') or end - begin
        return begin, begin + options.get('pct_start', .3) * total
    rises = (
        kind == 'LinearLR' and
        options.get('start_factor', 1 / 3) < options.get('end_factor', 1.)
        or kind == 'ConstantLR' and options.get('factor', 1 / 3) < 1
        or kind == 'QuadraticWarmupLR')
    return (begin, end) if rises else None


def end_of(rises: Iterable[Tuple[float, float]]) -> Optional[float]:
    """Find the end of the warm-up that begins with the training.

    Args:
        rises (Iterable): Pairs (begin, end) in the same unit. One that begins
            before or when another ends prolongs it.

    Returns:
        float | None: The end; None if none begins with the training.
    """
    over = 0.
    for begin, end in sorted(rises):
        if begin <= over:
            over = max(over, end)
    return over or None


def warm_up_of(runner, by_epoch: bool) -> Optional[int]:
    """Count the epochs or iterations that the warm-up of a run takes.

    Args:
        runner (Runner): Runner whose train loop and schedulers are built.
        by_epoch (bool): Whether to count epochs; if False, iterations.

    Returns:
        int | None: The number, rounded up; None if the learning rate has no
        warm-up.
    """
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, Mapping):  # of several optimizers
        schedulers = [x for own in schedulers.values() for x in own]
    endless = isinstance(runner.train_loop, IterBasedTrainLoop)
    per_epoch = None if endless else len(runner.train_dataloader)
    rises = []
    for scheduler in schedulers:
        rise = rise_of(type(scheduler).__name__, _options(scheduler))
        scale = per_epoch if scheduler.by_epoch else 1
        if rise is not None and scale:  # else it counts epochs that never end
            rises.append((rise[0] * scale, rise[1] * scale))
    over = end_of(rises)
    if over is None:
        return None
    return math.ceil(over / per_epoch if by_epoch else over)


def _options(scheduler) -> Mapping[str, Any]:
    """Return the arguments of a scheduler, as far as it keeps them."""
    options = dict(vars(scheduler))
    phases = options.get('_schedule_phases')
    if phases:  # OneCycleLR keeps its phases and not pct_start
        options['pct_start'] = (phases[0]['end_step'] + 1) / options[
            'total_steps']
    return options
