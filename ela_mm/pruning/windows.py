"""The windows in which redundancy is measured."""
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..errors import UsageError

Window = Tuple[int, int]


class Windows:
    """Inclusive spans of epochs or iterations, counted from 1.

    Args:
        windows (Sequence): Pairs (first, last), or mappings
            ``dict(first=1, last=1, criterion=dict(...))`` where a window is
            to be decided by a criterion of its own.
        by_epoch (bool): Whether they count epochs; if False, iterations.
            Defaults to True.

    Attributes:
        spans (List[Window]): Pairs, in order.
        criteria (Dict[Window, dict]): Configs of criteria of their own.

    Raises:
        UsageError: If there is none, one is no such window, or they overlap
            or are out of order.
    """

    def __init__(self, windows: Sequence[Any], by_epoch: bool = True) -> None:
        self.by_epoch = by_epoch
        self.criteria: Dict[Window, dict] = {}
        if isinstance(windows, (str, bytes)) or not isinstance(
                windows, Sequence):
            raise UsageError(f'windows={windows!r}: expected a list of pairs '
                             '(first, last), such as [(1, 1), (7, 7)]')
        spans = []
        for window in windows:
            if isinstance(window, dict):
                unknown = set(window) - {'first', 'last', 'criterion'}
                if unknown or not {'first', 'last'} <= set(window):
                    raise UsageError(
                        f'window {dict(window)!r}: expected the keys first and '
                        'last, and criterion if it is to have its own')
                span = window['first'], window['last']
                if window.get('criterion') is not None:
                    self.criteria[span] = window['criterion']
                window = span
            spans.append(window)
        self.spans = check_windows(spans)

    @property
    def unit(self) -> str:
        """What windows count: ``'epoch'`` or ``'iteration'``."""
        return 'epoch' if self.by_epoch else 'iteration'

    def containing(self, count: int) -> Optional[Window]:
        """Find the window of an epoch or iteration, counted from 1."""
        return window_of(self.spans, count)

    def check(self, limit: int, counts_epochs: bool) -> None:
        """Check them against a training.

        Args:
            limit (int): Its epochs or iterations, whichever windows count.
            counts_epochs (bool): Whether its loop knows epochs.

        Raises:
            UsageError: If a window would never be decided.
        """
        if self.by_epoch and not counts_epochs:
            raise UsageError(
                f'windows={self.spans} count epochs, but the train loop is '
                'iteration-based: set by_epoch=False and count iterations')
        last = self.spans[-1]
        if last[1] > limit:
            raise UsageError(
                f'window {last} lies past the last {self.unit} of the '
                f'training, {limit}: it would never be decided')


def check_windows(windows: Sequence[Sequence[int]]) -> List[Window]:
    """Check windows for what can be known without a training schedule.

    Args:
        windows (Sequence[Sequence[int]]): Pairs (first, last), inclusive,
            counted from 1.

    Returns:
        List[Window]: The same as tuples.

    Raises:
        UsageError: If there is none, one is no such pair, or they overlap or
            are out of order.
    """
    if not windows:
        raise UsageError('windows is empty: expected pairs (first, last) of '
                         'epochs or iterations, such as [(1, 1), (7, 7)]')
    checked: List[Window] = []
    for window in windows:
        if (not isinstance(window, Sequence) or len(window) != 2
                or not all(type(bound) is int for bound in window)):
            raise UsageError(f'window {window!r}: expected a pair (first, '
                             'last) of whole numbers')
        first, last = window
        if first < 1:
            raise UsageError(f'window ({first}, {last}): counting starts at 1')
        if last < first:
            raise UsageError(f'window ({first}, {last}) is reversed: expected '
                             'first <= last')
        if checked and first <= checked[-1][1]:
            raise UsageError(
                f'windows {checked[-1]} and ({first}, {last}) overlap or are '
                'out of order: each must start after the last one ends')
        checked.append((first, last))
    return checked


def window_of(windows: Sequence[Window], count: int) -> Optional[Window]:
    """The window that contains an epoch or iteration, counted from 1."""
    return next((w for w in windows if w[0] <= count <= w[1]), None)


def window_name(window: Sequence[int], unit: str) -> str:
    """A window in words.

    Args:
        window (Sequence[int]): First and last, inclusive.
        unit (str): ``'epoch'`` or ``'iteration'``.

    Returns:
        str: Such as ``'epoch 1'`` or ``'epochs 1 to 3'``.
    """
    first, last = window
    return f'{unit} {first}' if first == last else (
        f'{unit}s {first} to {last}')
