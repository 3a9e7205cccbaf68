"""What a pruning gained: seconds of steps, and how sure they are."""
from dataclasses import dataclass
from typing import Optional, Tuple

# With fewer on a side, the two medians are not compared.
LEAST_STEPS = 10


@dataclass
class StepTimes:
    """Seconds of a training step, before and after a pruning.

    Attributes:
        before (float | None): Median at the window's end, measuring included.
        after (float | None): Median right after it; None until timed.
        steps (Tuple[int, int]): Steps behind the two medians.
        before_quartiles (Tuple[float, float] | None): First and third.
        after_quartiles (Tuple[float, float] | None): First and third.
        ratio (Tuple[float, float, float] | None): Quartiles of the time
            without the skipped layers over that with them, taken in turns
            right after the pruning; None where that was not done.
        rounds (int): Pairs of steps behind ``ratio``.
    """
    before: Optional[float] = None
    after: Optional[float] = None
    steps: Tuple[int, int] = (0, 0)
    before_quartiles: Optional[Tuple[float, float]] = None
    after_quartiles: Optional[Tuple[float, float]] = None
    ratio: Optional[Tuple[float, float, float]] = None
    rounds: int = 0

    @property
    def are_enough(self) -> bool:
        """Whether steps were timed on both sides, and enough to compare.

        Records of earlier versions do not say how many they were.
        """
        return bool(self.before and self.after) and (
            self.steps == (0, 0) or min(self.steps) >= LEAST_STEPS)

    @property
    def differ(self) -> bool:
        """Whether the middle halves of both lie apart, as far as is known."""
        if self.before_quartiles is None or self.after_quartiles is None:
            return True
        first, second = sorted([self.before_quartiles, self.after_quartiles])
        return first[1] < second[0]

    def medians(self) -> str:
        """Say both medians, with quartiles, and whether they differ."""
        steps = '' if self.steps == (0, 0) else (
            f' of {self.steps[0]} and {self.steps[1]} steps')
        quartiles = ' and quartiles' if self.after_quartiles else ''
        return (f'{_seconds(self.before, self.before_quartiles)} -> '
                f'{_seconds(self.after, self.after_quartiles)} '
                f'(medians{quartiles}{steps})' +
                ('' if self.differ else
                 ': they differ by less than their spread'))

    def in_turns(self) -> str:
        """Say what was measured in turns; only where it was."""
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
