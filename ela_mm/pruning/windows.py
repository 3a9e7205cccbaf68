"""The windows in which redundancy is measured."""
import math
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..errors import UsageError

Window = Tuple[int, int]
# A window as configs give it: (first, last), two shares of the training, or
# (AFTER_WARMUP, number of epochs or iterations).
Given = Tuple[Any, Any]
AFTER_WARMUP = 'after_warmup'
FORMS = ('expected a pair (first, last) of whole numbers, which count from 1, '
         'such as (1, 1); or of two shares of the training, such as (0.0, 0.1); '
         "or ('after_warmup', 1), so many after the warm-up of the learning "
         'rate')


class Course(NamedTuple):
    """The course of a training, from which relative windows are resolved.

    Attributes:
        length (int): Number of epochs, or of iterations if windows count
            those.
        warm_up (int | None): How many of them the warm-up of the learning rate
            takes, rounded up; None if there is no warm-up.
    """
    length: int
    warm_up: Optional[int] = None


class Windows:
    """Windows in which redundancy is measured, each decided on at its end.

    A window is a span of epochs or iterations, counted from 1, both ends
    included.

    Args:
        windows (Sequence): Pairs, mixed freely: ``(first, last)``; two shares
            of the training, such as ``(0.0, 0.1)``; or ``('after_warmup', n)``,
            the n epochs or iterations after the warm-up of the learning rate.
            A window with a criterion of its own is
            ``dict(window=PAIR, criterion=dict(...))`` or
            ``dict(first=1, last=1, criterion=dict(...))``.
        by_epoch (bool): Whether whole numbers are epochs; if False, they are
            iterations. Defaults to True.

    Attributes:
        given (List[Given]): Pairs as they were given; in the order of time
            once they are resolved.
        spans (List[Window]): First and last epoch or iteration of each window
            in this training, in order; empty before :meth:`resolve` if any
            window depends on the training.
        criteria (Dict[Given, dict]): Configs of the windows' own criteria.
        begun (Dict[Given, Window]): Spans of windows that an earlier part of
            this run has begun. They keep them, even if the training has become
            longer.

    Raises:
        UsageError: If there are no windows, one is malformed, or they overlap
            or are out of order.
    """

    def __init__(self, windows: Sequence[Any], by_epoch: bool = True) -> None:
        self.by_epoch = by_epoch
        self.given: List[Given] = []
        self.criteria: Dict[Given, dict] = {}
        self.begun: Dict[Given, Window] = {}
        for window in _listed(windows):
            pair, criterion = _taken_apart(window)
            self.given.append(_checked(pair))
            if criterion is not None:
                self.criteria[self.given[-1]] = criterion
        self.spans: List[Window] = []
        if not self.are_relative:
            self.spans = list(self.given)
            self._check_order()

    @property
    def are_relative(self) -> bool:
        """Whether any window depends on the training."""
        return any(map(is_relative, self.given))

    @property
    def unit(self) -> str:
        """What windows count: ``'epoch'`` or ``'iteration'``."""
        return 'epoch' if self.by_epoch else 'iteration'

    def containing(self, count: int) -> Optional[Window]:
        """Find the window that contains an epoch or iteration, from 1."""
        return window_of(self.spans, count)

    def given_of(self, window: Window) -> Given:
        """Find how a window was given."""
        return self.given[self.spans.index(window)]

    def name(self, window: Window) -> str:
        """Put a window into words, with how it was given if that differs."""
        given = self.given_of(window)
        return window_name(window, self.unit) + (
            f' {given}' if is_relative(given) else '')

    def resolve(self, course: Course) -> None:
        """Compute the spans of all windows, in the order of time.

        Args:
            course (Course): Course of the training.

        Raises:
            UsageError: If a window does not fit the training, or two overlap.
        """
        if self.are_relative:
            found = [(self.begun.get(given) or _placed(given, course), given)
                     for given in self.given]
            found.sort(key=lambda pair: pair[0])
            self.spans = [span for span, _ in found]
            self.given = [given for _, given in found]
            self._check_order()
        last = self.spans[-1]
        if last[1] > course.length:
            raise UsageError(
                f'window {self._words(-1)} lies past the last {self.unit} of '
                f'the training, {course.length}: it would never be decided. '
                'Expected windows that end by then; shares of the training, '
                'such as (0.0, 0.1), follow its length')

    def check_loop(self, counts_epochs: bool) -> None:
        """Raise a UsageError if windows count epochs and the loop does not."""
        if self.by_epoch and not counts_epochs:
            raise UsageError(
                f'windows={self.given} count epochs, but the train loop is '
                'iteration-based: set by_epoch=False; whole numbers in windows '
                'are iterations then')

    def _check_order(self) -> None:
        for i, (first, second) in enumerate(zip(self.spans, self.spans[1:])):
            if second[0] <= first[1]:
                raise UsageError(
                    f'windows {self._words(i)} and {self._words(i + 1)} overlap '
                    'or are out of order: each must start after the last one '
                    'ends')

    def _words(self, i: int) -> str:
        """Put window i into words: as given, and its span if that differs."""
        if not is_relative(self.given[i]):
            return str(self.given[i])
        return f'{self.given[i]}, {window_name(self.spans[i], self.unit)},'


def is_relative(given: Given) -> bool:
    """Return whether a window depends on the training."""
    return not all(type(bound) is int for bound in given)


def check_windows(windows: Sequence[Sequence[int]]) -> List[Window]:
    """Check windows as far as is possible without a training.

    Args:
        windows (Sequence[Sequence[int]]): Windows, as in :class:`Windows`.

    Returns:
        List[Window]: The windows as tuples; empty if any depends on the
        training.

    Raises:
        UsageError: As in :class:`Windows`.
    """
    return Windows(windows).spans


def _listed(windows: Any) -> Sequence[Any]:
    """Return the windows; raise a UsageError unless they are a list."""
    if isinstance(windows, (str, bytes)) or not isinstance(windows, Sequence):
        raise UsageError(f'windows={windows!r}: expected a list of pairs '
                         '(first, last), such as [(1, 1), (7, 7)]')
    if not windows:
        raise UsageError('windows is empty: expected pairs (first, last) of '
                         'epochs or iterations, such as [(1, 1), (7, 7)]')
    pairs = [window for window in windows if isinstance(window, Mapping) or (
        isinstance(window, Sequence) and not isinstance(window, str))]
    if len(windows) == 2 and not pairs:
        raise UsageError(f'windows={windows!r} is a single pair: expected a '
                         f'list of them, windows=[{tuple(windows)!r}]')
    return windows


def _taken_apart(window: Any) -> Tuple[Any, Optional[dict]]:
    """Return the pair of a window, and the config of its own criterion."""
    if not isinstance(window, Mapping):
        return window, None
    keys = set(window) - {'criterion'}
    if keys == {'window'}:
        pair = window['window']
    elif keys == {'first', 'last'}:
        pair = window['first'], window['last']
        if isinstance(pair[0], str):
            raise UsageError(f'window {dict(window)!r}: expected it as '
                             f'window={pair!r}')
    else:
        raise UsageError(
            f'window {dict(window)!r}: expected the keys first and last, or '
            'window, and criterion if it is to have its own')
    return pair, window.get('criterion')


def _checked(window: Any) -> Given:
    """Return a window as a tuple; raise a UsageError if it is malformed."""
    if (isinstance(window, (str, bytes)) or not isinstance(window, Sequence)
            or len(window) != 2):
        raise UsageError(f'window {window!r}: {FORMS}')
    given = first, last = tuple(window)
    if isinstance(first, str):
        if first != AFTER_WARMUP or type(last) is not int or last < 1:
            raise UsageError(f'window {given}: {FORMS}')
    elif all(type(bound) is int for bound in given):
        if first < 1:
            raise UsageError(f'window {given}: counting starts at 1; shares of '
                             'the training have a decimal point, such as '
                             '(0.0, 0.1)')
        if last < first:
            raise UsageError(
                f'window {given} is reversed: expected first <= last')
    elif all(type(bound) is float for bound in given):
        if not 0 <= first < last <= 1:
            raise UsageError(
                f'window {given}: expected two shares of the training, '
                '0.0 <= first < last <= 1.0; epochs and iterations are whole '
                'numbers, without a decimal point')
    elif {type(bound) for bound in given} == {int, float}:
        shares = float(first), float(last)
        example = shares if 0 <= shares[0] < shares[1] <= 1 else (0., .1)
        raise UsageError(
            f'window {given} mixes a count with a share: expected two whole '
            'numbers, such as (1, 2), or two shares of the training, such as '
            f'{example}')
    else:
        raise UsageError(f'window {given}: {FORMS}')
    return given


def _placed(given: Given, course: Course) -> Window:
    """Compute the span of a window in a training."""
    first, last = given
    if first == AFTER_WARMUP:
        if course.warm_up is None:
            raise UsageError(
                f'window {given}: the schedule of the learning rate has no '
                'warm-up (LinearLR or ConstantLR from a lower rate, '
                'QuadraticWarmupLR, OneCycleLR): expected one, or a window '
                'like (1, 1)')
        return course.warm_up + 1, course.warm_up + last
    if not is_relative(given):
        return given
    # All bounds are rounded half up, so that shares that meet do not overlap.
    begin, end = (math.floor(share * course.length + .5) for share in given)
    begin = max(0, min(begin, course.length - 1))
    return begin + 1, max(begin + 1, end)


def window_of(windows: Sequence[Window], count: int) -> Optional[Window]:
    """Find the window that contains an epoch or iteration, from 1."""
    return next((w for w in windows if w[0] <= count <= w[1]), None)


def window_name(window: Sequence[int], unit: str) -> str:
    """Put a window into words.

    Args:
        window (Sequence[int]): First and last epoch or iteration, inclusive.
        unit (str): What it counts, ``'epoch'`` or ``'iteration'``.

    Returns:
        str: The words, such as ``'epoch 1'`` or ``'epochs 1 to 3'``.
    """
    first, last = window
    return f'{unit} {first}' if first == last else (
        f'{unit}s {first} to {last}')
