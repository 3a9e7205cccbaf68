"""Finds out from a record what other criteria or measures would skip."""
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import numpy as np

from ..errors import UsageError
from ..pruning import ebqm
from ..pruning.build import build_criterion
from ..pruning.criteria import CRITERIA, Criterion
from ..pruning.stability import DRAWS, bootstrap, shares  # noqa: F401
from .window import Window, measured_window, recorded_window  # noqa: F401  earlier place

# The paper's settings of EBQM; gamma is this project's choice.
PAPER = {
    'paper on COCO': dict(alpha=2., beta=5., mu=.2),
    'paper on ImageNet': dict(alpha=2., beta=5., mu=.25),
    'paper on CIFAR': dict(alpha=5., beta=1., mu=.3),
}
GAMMAS = (.25, .5, .6, .75, .9, 1.)
MUS = (.05, .1, .15, .2, .25, .3, .4, .5)
SHAPES = ((2., 5.), (5., 1.))  # (alpha, beta), the paper's
# Label instead of 'this run' where the run did not do what its criterion says.
CRITERION_ALONE = "this run's criterion"
# Maps names of active layers to seconds that attention adds to a step.
Seconds = Callable[[Sequence[str]], float]


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
    decided = window.criterion and window.as_decided and own.note is None
    if decided and window.skipped is not None and set(own.skipped) != set(
            window.skipped):  # see uninformative
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
