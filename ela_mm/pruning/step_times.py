"""Step times before and after a pruning, and how certain they are."""
from dataclasses import dataclass
from typing import Optional, Tuple

# Medians of fewer steps than this are not compared.
LEAST_STEPS = 10


@dataclass
class StepTimes:
    """Seconds of a training step, before and after a pruning.

    Attributes:
        before (float | None): Median at the end of the window, measuring of KL
            included.
        after (float | None): Median right after the window; None until timed.
        steps (Tuple[int, int]): Number of steps behind the two medians;
            (0, 0) in records of earlier versions, which do not say.
        before_quartiles (Tuple[float, float] | None): First and third
            quartile, seconds.
        after_quartiles (Tuple[float, float] | None): First and third
            quartile, seconds.
        ratio (Tuple[float, float, float] | None): Quartiles of the time
            without the skipped layers over that with them, timed in turns
            right after the pruning; None if that was not done.
        rounds (int): Number of pairs of steps behind ``ratio``.
        resumed (bool): Whether the run was resumed between the two medians,
            which then are of two processes, perhaps on two machines.
    """
    before: Optional[float] = None
    after: Optional[float] = None
    steps: Tuple[int, int] = (0, 0)
    before_quartiles: Optional[Tuple[float, float]] = None
    after_quartiles: Optional[Tuple[float, float]] = None
    ratio: Optional[Tuple[float, float, float]] = None
    rounds: int = 0
    resumed: bool = False

    @property
    def are_enough(self) -> bool:
        """Whether enough steps were timed before and after to compare them."""
        return bool(self.before and self.after) and (
            self.steps == (0, 0) or min(self.steps) >= LEAST_STEPS)

    @property
    def differ(self) -> bool:
        """Whether the interquartile ranges do not overlap, or are unknown."""
        if self.before_quartiles is None or self.after_quartiles is None:
            return True
        first, second = sorted([self.before_quartiles, self.after_quartiles])
        return first[1] < second[0]

    def medians(self) -> str:
        """Put both medians into words, and whether they differ."""
        steps = '' if self.steps == (0, 0) else (
            f' of {self.steps[0]} and {self.steps[1]} steps')
        quartiles = ' and quartiles' if self.after_quartiles else ''
        return (f'{_seconds(self.before, self.before_quartiles)} -> '
                f'{_seconds(self.after, self.after_quartiles)} '
                f'(medians{quartiles}{steps})' +
                ('' if self.differ else
                 ': they differ by less than their spread') +
                ('; the run was resumed in between, and two processes may '
                 'differ in speed without any pruning' if self.resumed else ''))

    def in_turns(self) -> str:
        """Put ``ratio`` into words; it must have been measured."""
        first, median, third = self.ratio
        return (f'{median:.3f} times as long without the skipped layers as '
                f'with them (quartiles {first:.3f} to {third:.3f}, '
                f'{self.rounds} pairs of steps in turns on one batch)' +
                ('' if third < 1 or first > 1 else
                 ': they differ by less than the spread'))


def _seconds(median: float, quartiles: Optional[Tuple[float, float]]) -> str:
    spread = '' if quartiles is None else ' ({:.3g} to {:.3g})'.format(
        *quartiles)
    return f'{median:.3g} s{spread}'
