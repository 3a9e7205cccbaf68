"""Finds out from a record what other criteria or measures would skip."""
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from ..errors import UsageError
from ..pruning import Decision, LayerKL, ebqm
from ..pruning.build import build_criterion
from ..pruning.criteria import CRITERIA, Criterion
from ..pruning.kl import check_redundancy
from ..pruning.stability import DRAWS, bootstrap, shares  # noqa: F401
from ..pruning.statistics import ITERATIONS_KEPT
from ..pruning.windows import window_name

# The paper's settings of EBQM; gamma is this project's choice.
PAPER = {
    'paper on COCO': dict(alpha=2., beta=5., mu=.2),
    'paper on ImageNet': dict(alpha=2., beta=5., mu=.25),
    'paper on CIFAR': dict(alpha=5., beta=1., mu=.3),
}
GAMMAS = (.25, .5, .6, .75, .9, 1.)
MUS = (.05, .1, .15, .2, .25, .3, .4, .5)
SHAPES = ((2., 5.), (5., 1.))  # (alpha, beta), the paper's
# Where the run's criterion does not say what the run did.
CRITERION_ALONE = "this run's criterion"
# From names of active layers to seconds that attention adds to a step.
Seconds = Callable[[Sequence[str]], float]


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


class Stability(NamedTuple):
    """How stable a decision is under resampling of the window.

    Attributes:
        same (float): Share of resampled windows that skip the same layers.
        skipped (Dict[str, float]): Share of resampled windows that skip each
            layer, by name.
    """
    same: float
    skipped: Dict[str, float]


class Proposal(NamedTuple):
    """What one criterion would do in one window.

    Attributes:
        label (str): Name of the criterion in tables.
        config (dict): ``type`` and all parameters of the criterion.
        skipped (List[str]): Names of the layers that it would skip.
        stability (Stability | None): Stability of this decision; None if
            single steps are unknown.
        step_time (float | None): Expected seconds of a step afterwards; None
            if the costs of layers are unknown.
        note (str | None): Reason why it cannot decide, if so.
    """
    label: str
    config: Dict[str, Any]
    skipped: List[str]
    stability: Optional[Stability]
    step_time: Optional[float]
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


def stability(window: Window, criterion: Criterion,
              draws: int = DRAWS) -> Optional[Stability]:
    """Decide on resampled windows and compare with the window itself.

    Args:
        window (Window): The window.
        criterion (Criterion): Criterion to decide by.
        draws (int): Number of resampled windows. Defaults to 500.

    Returns:
        Stability | None: The stability; None if single steps are unknown.
    """
    if window.series is None:
        return None
    found = shares(criterion, window.kl, window.series, window.samples, draws)
    return Stability(found.same,
                     dict(zip(window.names, found.skipped.tolist())))


def outcome(window: Window,
            config: Dict[str, Any],
            label: Optional[str] = None,
            seconds: Optional[Seconds] = None,
            draws: int = DRAWS) -> Proposal:
    """Find out what a criterion would do in a window.

    Args:
        window (Window): The window.
        config (Dict[str, Any]): ``type`` and parameters of the criterion.
        label (str, optional): Name for tables. Defaults to the type.
        seconds (Callable, optional): Function that predicts from the names of
            active layers how many seconds attention adds to a step, see
            :meth:`ela_mm.analysis.cost.Cost.attention_seconds`. Defaults to
            None: step times are not predicted.
        draws (int): Number of resampled windows. Defaults to 500.

    Returns:
        Proposal: What it would do.

    Raises:
        UsageError: On a wrong type or parameter.
    """
    criterion = build_criterion(config)
    label = label or criterion.config['type']
    if criterion.asks_network:
        return _of_the_network(window, criterion, label,
                               config == window.criterion)
    if len(window.names) < 2:
        return Proposal(label, criterion.config, [], None, window.step_time,
                       f'{len(window.names)} candidates; ranking needs 2')
    try:
        skip, _ = criterion(window.kl)
    except Exception as error:  # a failed fit
        return Proposal(label, criterion.config, [], None, window.step_time,
                       f'{type(error).__name__}: {error}')
    skipped = [n for n, gone in zip(window.names, skip) if gone]
    step_time = None
    if seconds is not None and window.step_time is not None:
        left = [name for name in window.active if name not in skipped]
        step_time = max(
            0., window.step_time - seconds(window.active) + seconds(left))
    return Proposal(label, criterion.config, skipped,
                   stability(window, criterion, draws), step_time)


def _of_the_network(window: Window, criterion: Criterion, label: str,
                    own: bool) -> Proposal:
    """Say what is known of a criterion that measures on the network."""
    skipped = window.skipped or [] if own else []
    names = ', '.join(window.short.get(name, name) for name in skipped)
    return Proposal(
        label, criterion.config, skipped, None, None,
        (f'skipped {names or "nothing"}; ' if own else '') +
        'it asks the network, which a record does not hold: see '
        'tools/analyze.py ablate')


def recorded_criterion(config: Dict[str, Any]) -> Criterion:
    """Build the criterion of a record, which cannot be trusted.

    Args:
        config (Dict[str, Any]): ``type`` and parameters of the criterion.

    Returns:
        Criterion: The criterion.

    Raises:
        UsageError: If it is not registered, or if its type is a dotted path,
            which would be imported.
    """
    if '.' in config['type']:
        raise UsageError(
            f'the record names {config["type"]!r}, which would be imported '
            'and called: register the criterion, and name it without dots')
    return build_criterion(config)


def candidates(window: Window) -> Dict[str, Dict[str, Any]]:
    """List the criteria that are worth comparing in a window.

    Args:
        window (Window): The window.

    Returns:
        Dict[str, Dict[str, Any]]: Configs by label: that of the run, if any;
        the paper's settings of EBQM; and the criteria of its tables 4, 6 and 7
        with gamma and mu of the run.
    """
    own = window.criterion or dict(type='EBQM')
    # In a user's criterion, the same names may mean anything.
    known = own if own['type'] in CRITERIA else {}
    shared = {
        key: known[key] for key in ('gamma', 'mu')
        if own['type'] not in ('threshold', 'fixed') and key in known
    }
    shapes = {key: known[key] for key in ('alpha', 'beta') if key in known}
    label = 'this run' if window.as_decided else CRITERION_ALONE
    configs = {label: own} if window.criterion else {}
    configs.update((f'EBQM, {label}', dict(type='EBQM', **values))
                   for label, values in PAPER.items())
    number = len(window.skipped) if window.skipped else 1
    configs.update({
        'threshold (table 4)': dict(type='threshold', t=.3),
        'fixed (table 4)': dict(type='fixed', n=number),
        'normal (table 6)': dict(type='normal', **shared, **shapes),
        'gamma (table 6)': dict(type='gamma', **shared, **shapes),
        'softmax (table 6)': dict(type='softmax', **shared),
        'sigmoid (table 6)': dict(type='sigmoid', **shared),
        'GQM (table 7)': dict(type='GQM', **shared),
        'EQM (table 7)': dict(type='EQM', **shared),
    })
    return configs


def compare(window: Window,
            seconds: Optional[Seconds] = None,
            more: Sequence[Dict[str, Any]] = (),
            draws: int = DRAWS) -> List[Proposal]:
    """Find out what all :func:`candidates` and further criteria would do.

    Args:
        window (Window): The window.
        seconds (Callable, optional): Function that predicts the cost of
            attention, see :func:`outcome`.
        more (Sequence[Dict[str, Any]]): Configs of further criteria.
        draws (int): Number of resampled windows. Defaults to 500.

    Returns:
        List[Proposal]: What each would do, the criterion of the run first.
    """
    configs = candidates(window)
    for config in more:
        label = ', '.join([config['type']] + [
            f'{key}={value:g}' for key, value in config.items()
            if key != 'type'
        ])
        configs[label] = config
    outcomes = []
    for label, config in configs.items():
        try:
            if config is window.criterion:
                recorded_criterion(config)
            outcomes.append(outcome(window, config, label, seconds, draws))
        except Exception as error:  # a user's criterion that is not registered
            note = f'{type(error).__name__}: {error}'
            outcomes.append(
                Proposal(label, config, window.skipped or [], None, None,
                        str(error) if isinstance(error, UsageError) else note))
    own = outcomes[0]
    if window.criterion and window.as_decided and own.note is None and set(
            own.skipped) != set(window.skipped):  # see uninformative
        outcomes[0] = own._replace(label=CRITERION_ALONE)
    return outcomes


def counts(window: Window,
           alpha: float,
           beta: float,
           gammas: Sequence[float] = GAMMAS,
           mus: Sequence[float] = MUS) -> np.ndarray:
    """Count the layers that EBQM would skip, over a grid of gamma and mu.

    Args:
        window (Window): The window.
        alpha (float): First shape of the Beta distribution.
        beta (float): Second shape.
        gammas (Sequence[float]): G quantiles.
        mus (Sequence[float]): M thresholds.

    Returns:
        np.ndarray: (G, M) int, number of skipped layers.
    """
    return np.array([[
        int(ebqm(window.kl, g, alpha, beta, mu).sum()) for mu in mus
    ] for g in gammas])


def parse_criterion(text: str) -> Dict[str, Any]:
    """Parse a criterion from a command line.

    Args:
        text (str): Type and parameters, such as ``EBQM,gamma=0.9,mu=0.1``.

    Returns:
        Dict[str, Any]: Config of the criterion.

    Raises:
        UsageError: If it is malformed, or the criterion is unknown.
    """
    name, *pairs = text.split(',')
    config: Dict[str, Any] = dict(type=name.strip())
    for pair in pairs:
        key, equals, value = pair.partition('=')
        try:
            number = float(value)
        except ValueError:
            equals = ''
        if not equals:
            raise UsageError(f'criterion {text!r}: expected a type and pairs '
                             'such as EBQM,gamma=0.9,mu=0.1')
        config[key.strip()] = int(number) if number.is_integer(
        ) and '.' not in value else number
    build_criterion(config)
    return config
