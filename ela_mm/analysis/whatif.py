"""What another criterion or measure would have skipped, from a record."""
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
# From names of active layers to seconds of their attention.
Seconds = Callable[[Sequence[str]], float]


class Window(NamedTuple):
    """The candidates of one window, measured.

    Attributes:
        label (str): Such as ``'epoch 1'``.
        names (List[str]): L candidates, in the network's order.
        kl (np.ndarray): (L, ), nats: KL divergences, or the measure of
            ``redundancy``.
        series (np.ndarray | None): (steps, L), the same of single training
            steps; None where these were not recorded.
        active (List[str]): Layers that were active meanwhile, those that are
            no candidates included.
        skipped (List[str] | None): What was skipped then; None where nothing
            has been decided.
        criterion (dict | None): What decided.
        step_time (float | None): Seconds of a step before the decision.
        step_time_after (float | None): And after it, if enough were timed.
        steps (int | None): Training steps that were measured, recorded one by
            one or not.
        samples (np.ndarray | None): (steps, ), of the recorded steps; None
            where they are equal or unknown.
        short (Dict[str, str]): Names in few letters, by name.
        redundancy (str): What to rank by, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`.
        as_decided (bool): Whether the decision has ranked by it, if there is
            one.
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


class Stability(NamedTuple):
    """How a decision stands against noise of the measured size.

    Attributes:
        same (float): Share of resampled windows that skip the same layers.
        skipped (Dict[str, float]): By name, the share that skips the layer.
    """
    same: float
    skipped: Dict[str, float]


class Proposal(NamedTuple):
    """What one criterion would do in one window.

    Attributes:
        label (str): What it is called in tables.
        config (dict): ``type`` and all parameters.
        skipped (List[str]): Names.
        stability (Stability | None): None without single steps.
        step_time (float | None): Expected seconds of a step afterwards; None
            without costs of the layers.
        note (str | None): Why it cannot decide.
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
    """Take a window from a run's decisions.

    Args:
        decision (Decision): Taken, or read back from a record.
        unit (str): What it counts. Defaults to ``'epoch'``.
        redundancy (str, optional): Rank by another measure, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`. Defaults to None: the run's.

    Returns:
        Window: Without layers of which the measure is unknown.

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
        # More than half of what is kept stays of a series that was thinned: a
        # shorter one is whole. Records of earlier versions count the
        # iterations of every rank instead of steps.
        steps=decision.steps if recorded > ITERATIONS_KEPT / 2 else recorded,
        samples=np.array(decision.step_samples) if weighted else None,
        short={layer.name: layer.short for layer in layers},
        redundancy=redundancy,
        as_decided=redundancy == decision.redundancy)


def measured_window(kl: Mapping[str, LayerKL],
                    active: Sequence[str],
                    label: str,
                    redundancy: str = 'paper') -> Window:
    """A window from KL divergences that were measured without training.

    Args:
        kl (Mapping[str, LayerKL]): From
            :func:`ela_mm.analysis.attention.measure`.
        active (Sequence[str]): All layers that are not skipped.
        label (str): Such as ``'64 pictures'``.
        redundancy (str): What to rank by, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`. Defaults to ``'paper'``.

    Returns:
        Window: A step is a batch.
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
    """Decide on resampled windows.

    Args:
        window (Window): With its single steps.
        criterion (Criterion): As the hook uses it.
        draws (int): Resampled windows. Defaults to 500.

    Returns:
        Stability | None: Against the decision on the window itself; None
        without single steps.
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
    """What a criterion would do in a window.

    Args:
        window (Window): Measured.
        config (Dict[str, Any]): ``type`` and parameters.
        label (str, optional): Defaults to the type.
        seconds (Callable, optional): From the names of active layers to what
            attention adds to a step, for the expected step time; see
            :meth:`ela_mm.analysis.cost.Cost.attention_seconds`.
        draws (int): See :func:`stability`.

    Returns:
        Proposal: Ready for a table.

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
    except Exception as error:  # a fit that fails
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
    """What is known of a criterion that a record cannot answer."""
    skipped = window.skipped or [] if own else []
    names = ', '.join(window.short.get(name, name) for name in skipped)
    return Proposal(
        label, criterion.config, skipped, None, None,
        (f'skipped {names or "nothing"}; ' if own else '') +
        'it asks the network, which a record does not hold: see '
        'tools/analyze.py ablate')


def recorded_criterion(config: Dict[str, Any]) -> Criterion:
    """Build the criterion of a record, which comes from outside.

    Args:
        config (Dict[str, Any]): ``type`` and parameters.

    Returns:
        Criterion: It is registered.

    Raises:
        UsageError: If it is not, or its type names a module.
    """
    if '.' in config['type']:
        raise UsageError(
            f'the record names {config["type"]!r}, which would be imported '
            'and called: register the criterion, and name it without dots')
    return build_criterion(config)


def candidates(window: Window) -> Dict[str, Dict[str, Any]]:
    """The criteria that are worth comparing in a window.

    Args:
        window (Window): Its own criterion comes first, where it has one.

    Returns:
        Dict[str, Dict[str, Any]]: Config by label: the run's, the paper's
        settings of EBQM, and the criteria of its tables 4, 6 and 7 with the
        run's gamma and mu.
    """
    own = window.criterion or dict(type='EBQM')
    # To a user's own, the same names may mean anything.
    known = own if own['type'] in CRITERIA else {}
    shared = {
        key: known[key] for key in ('gamma', 'mu')
        if own['type'] not in ('threshold', 'fixed') and key in known
    }
    shapes = {key: known[key] for key in ('alpha', 'beta') if key in known}
    label = 'this run' if window.as_decided else "this run's criterion"
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
    """What each of the :func:`candidates` would do, and what more is asked.

    Args:
        window (Window): Measured.
        seconds (Callable, optional): See :func:`outcome`.
        more (Sequence[Dict[str, Any]]): Configs of further criteria.
        draws (int): See :func:`stability`.

    Returns:
        List[Proposal]: The run's own first.
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
        except Exception as error:  # a user's own, which is not registered
            note = f'{type(error).__name__}: {error}'
            outcomes.append(
                Proposal(label, config, window.skipped or [], None, None,
                        str(error) if isinstance(error, UsageError) else note))
    return outcomes


def counts(window: Window,
           alpha: float,
           beta: float,
           gammas: Sequence[float] = GAMMAS,
           mus: Sequence[float] = MUS) -> np.ndarray:
    """How many layers EBQM would skip, over a grid.

    Args:
        window (Window): Measured.
        alpha (float): Of the Beta distribution.
        beta (float): The same.
        gammas (Sequence[float]): G quantiles.
        mus (Sequence[float]): M thresholds.

    Returns:
        np.ndarray: (G, M) int.
    """
    return np.array([[
        int(ebqm(window.kl, g, alpha, beta, mu).sum()) for mu in mus
    ] for g in gammas])


def parse_criterion(text: str) -> Dict[str, Any]:
    """A criterion as written on a command line.

    Args:
        text (str): ``EBQM,gamma=0.9,mu=0.1``.

    Returns:
        Dict[str, Any]: Its config.

    Raises:
        UsageError: If it is not written so.
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
