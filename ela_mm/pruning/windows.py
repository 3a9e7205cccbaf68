"""The windows in which redundancy is measured."""
from typing import List, Optional, Sequence, Tuple

from ..errors import UsageError

Window = Tuple[int, int]


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
