"""Takes the measurements of a window from a record, or from a network."""
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from ..errors import UsageError
from ..pruning import Decision, LayerKL
from ..pruning.kl import check_redundancy
from ..pruning.statistics import ITERATIONS_KEPT
from ..pruning.windows import window_name


class Window(NamedTuple):
    """The measurements of one window, for its candidates.

    Attributes:
        label (str): Name of the window, such as ``'epoch 1'``.
        names (List[str]): Names of the L candidates, in order.
        kl (np.ndarray): (L, ), values of the measure ``redundancy``, nats.
        series (np.ndarray | None): (steps, L), values of single training
            steps; None if they were not recorded.
        active (List[str]): Names of all layers that were active in the window,
            candidates or not.
        skipped (List[str] | None): Names of layers that were skipped at its
            end; None if nothing was decided.
        criterion (dict | None): Config of the criterion that decided.
        step_time (float | None): Seconds of a step before the decision.
        step_time_after (float | None): Seconds of a step after it, if enough
            steps were timed.
        steps (int | None): Number of measured training steps, whether recorded
            one by one or not.
        samples (np.ndarray | None): (steps, ), number of samples in each
            recorded step; None if equal or unknown.
        short (Dict[str, str]): Short names of layers, by name.
        redundancy (str): Measure to rank by, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`.
        as_decided (bool): Whether the decision ranked by this measure, if
            there is a decision.
        note (str | None): Why the decision skipped nothing.
    """
    label: str
    names: List[str]
    kl: np.ndarray
    series: Optional[np.ndarray]
    active: List[str]
    skipped: Optional[List[str]] = None
    criterion: Optional[Dict[str, Any]] = None
    step_time: Optional[float] = None
    step_time_after: Optional[float] = None
    steps: Optional[int] = None
    samples: Optional[np.ndarray] = None
    short: Mapping[str, str] = {}
    redundancy: str = 'paper'
    as_decided: bool = True
    note: Optional[str] = None


def recorded_window(decision: Decision,
                    unit: str = 'epoch',
                    redundancy: Optional[str] = None) -> Window:
    """Take the measurements of a window from a decision.

    Args:
        decision (Decision): Decision of a run.
        unit (str): What windows count, ``'epoch'`` or ``'iteration'``.
            Defaults to ``'epoch'``.
        redundancy (str, optional): Measure to rank by, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`. Defaults to None: that of the
            run.

    Returns:
        Window: The window, without layers whose value is unknown.

    Raises:
        UsageError: If the measure was not recorded.
    """
    asked = redundancy
    redundancy = check_redundancy(asked or decision.redundancy)
    label = window_name(decision.window, unit)
    known = [layer for layer in decision.layers if layer.kl is not None]
    layers = [x for x in known if x.measured(redundancy).mean is not None]
    if asked and len(layers) < len(known):
        raise UsageError(
            f'redundancy={redundancy!r} is not recorded of {label}: it was '
            'measured by an earlier version of ela_mm, which knew '
            "redundancy='paper' alone")
    measured = [layer.measured(redundancy) for layer in layers]
    series = [list(x.iterations) for x in measured]
    lengths = {len(values) for values in series}
    complete = len(lengths) == 1 and min(lengths) > 1 and not any(
        value is None for values in series for value in values)
    recorded = max(lengths, default=0)
    weighted = complete and len(decision.step_samples) == recorded
    return Window(
        label=label,
        names=[layer.name for layer in layers],
        kl=np.array([x.mean for x in measured]),
        series=np.array(series).T if complete else None,
        active=[
            layer.name for layer in decision.layers if layer.was_active
        ],
        skipped=decision.skipped,
        criterion=decision.criterion,
        step_time=decision.times.before,
        step_time_after=(
            decision.times.after if decision.times.are_enough else None),
        # A thinned series has more than ITERATIONS_KEPT / 2 values, so a
        # shorter one is complete. Its length is better than decision.steps,
        # which in records of earlier versions counts every rank's iterations.
        steps=decision.steps if recorded > ITERATIONS_KEPT / 2 else recorded,
        samples=np.array(decision.step_samples) if weighted else None,
        short={layer.name: layer.short for layer in layers},
        redundancy=redundancy,
        as_decided=redundancy == decision.redundancy,
        note=decision.note)


def measured_window(kl: Mapping[str, LayerKL],
                    active: Sequence[str],
                    label: str,
                    redundancy: str = 'paper') -> Window:
    """Make a window of KL divergences that were measured without training.

    Args:
        kl (Mapping[str, LayerKL]): Measurements by name, from
            :func:`ela_mm.analysis.attention.measure`.
        active (Sequence[str]): Names of all active layers.
        label (str): Name of the window, such as ``'64 pictures'``.
        redundancy (str): Measure to rank by, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`. Defaults to ``'paper'``.

    Returns:
        Window: The window, in which batches take the role of steps.
    """
    check_redundancy(redundancy)
    kl = {name: layer.by(redundancy) for name, layer in kl.items()}
    series = [layer.series for layer in kl.values()]
    several = bool(series) and min(map(len, series)) > 1
    first = next(iter(kl.values()), None)
    return Window(
        label=label,
        names=list(kl),
        kl=np.array([layer.mean for layer in kl.values()]),
        series=np.array(series).T if several else None,
        active=list(active),
        steps=first.steps if first else 0,
        samples=np.array(first.weights) if several else None,
        redundancy=redundancy)
