"""How long training steps take: over the training, and around a pruning."""
import statistics
import time
from collections import deque
from typing import Deque, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch

from ..pruning.decision import Decision
from ..pruning.step_times import LEAST_STEPS

# Steps right after a pruning that are not timed: allocators settle.
WARM_UP_STEPS = 2
# Of a training that counts iterations: steps behind a point of its timeline,
# and the most points that it has.
STRETCH, MOST_POINTS = 50, 400


def quartiles(seconds: Sequence[float]) -> Tuple[float, float, float]:
    """Find the first, the second (the median) and the third quartile."""
    first, median, third = np.percentile(seconds, [25, 50, 75])
    return float(first), float(median), float(third)


class StepTimer:
    """Times the last training steps, data loading excluded.

    Args:
        size (int): Steps that the median is taken over.
    """

    def __init__(self, size: int) -> None:
        self._seconds: Deque[float] = deque(maxlen=size)
        self._start: Optional[float] = None

    def start(self) -> None:
        """Call right before a step."""
        self._start = now()

    def stop(self) -> None:
        """Call right after it; does nothing without a start."""
        if self._start is not None:
            self.add(now() - self._start)
            self._start = None

    def add(self, seconds: float) -> None:
        """Add a step that was timed elsewhere."""
        self._seconds.append(seconds)

    def reset(self) -> None:
        """Forget all steps."""
        self._seconds.clear()

    def __len__(self) -> int:
        return len(self._seconds)

    @property
    def median(self) -> Optional[float]:
        """Seconds per step; None before the first."""
        return statistics.median(self._seconds) if self._seconds else None

    @property
    def spread(self) -> Optional[Tuple[float, float]]:
        """First and third quartile; None before the first step."""
        return quartiles(self._seconds)[::2] if self._seconds else None


def now(waits: bool = True) -> float:
    """Read the clock, by default once the GPU has done its work."""
    if waits and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Point(NamedTuple):
    """Steps of an epoch, or of a stretch of iterations.

    Attributes:
        at (int): The epoch, or the stretch's last iteration, from 1.
        first (float): Quartile of the seconds of a step.
        median (float): Of the same.
        third (float): Quartile of the same.
    """
    at: int
    first: float
    median: float
    third: float


class Timeline:
    """The median step of every epoch, or of every stretch of iterations.

    Attributes:
        points (List[Point]): Of what has ended.
    """

    def __init__(self) -> None:
        self.points: List[Point] = []
        self._seconds: List[float] = []

    def __len__(self) -> int:
        return len(self._seconds)

    def add(self, seconds: float) -> None:
        """Add a step."""
        self._seconds.append(seconds)

    def begin(self) -> None:
        """Forget the steps of an epoch that was cut off."""
        self._seconds.clear()

    def end(self, at: int, least: int = 1) -> None:
        """Turn the steps since the last point into one.

        Args:
            at (int): The epoch, or the last iteration, from 1. It replaces
                what an earlier start has measured there or later.
            least (int): Steps; fewer join those that follow. Defaults to 1.
        """
        if len(self) < least:
            return
        kept = [point for point in self.points if point.at < at]
        self.points[:] = [*kept, Point(at, *(
            float(f'{x:.6g}') for x in quartiles(self._seconds)))]
        self._seconds.clear()

    def end_if_long(self, at: int, last: int) -> bool:
        """End a stretch of iterations if it is long enough.

        Args:
            at (int): Iterations done.
            last (int): Those of the whole training.

        Returns:
            bool: Whether there is a new point.
        """
        if len(self) < max(STRETCH, -(-last // MOST_POINTS)):
            return False
        self.end(at)
        return True


class PruningGain:
    """Times all steps; those around a pruning with care.

    At the end of a window and right after a pruning it waits for the GPU on
    both sides of a step. All others take what the clock says: MMEngine reads
    the losses of every step, which waits for it as well.

    Args:
        size (int): Steps behind each of the two medians, at most.

    Attributes:
        timeline (Timeline): Of all steps.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._before, self._after = StepTimer(size), StepTimer(size)
        self._waiting: Optional[Decision] = None  # for its steps afterwards
        self._measuring = False
        self._steps = 0  # since it was taken
        self._start: Optional[float] = None
        self.timeline = Timeline()

    def begin_step(self, measuring: bool, window_starts: bool) -> None:
        """Call right before a training step.

        Args:
            measuring (bool): Whether it lies in a window.
            window_starts (bool): Whether it is a window's first.
        """
        if window_starts:
            self._before.reset()
        self._measuring = measuring
        self._start = now(self._waits)

    @property
    def _waits(self) -> bool:
        return self._measuring or self._waiting is not None

    def end_step(self) -> Optional[Decision]:
        """Call right after it.

        Returns:
            Decision | None: That whose gain is known now.
        """
        if self._start is None:
            return None
        seconds = now(self._waits) - self._start
        self._start = None
        self.timeline.add(seconds)
        if self._measuring:
            self._before.add(seconds)
        if self._waiting is None:
            return None
        self._steps += 1
        if self._steps > WARM_UP_STEPS:
            self._after.add(seconds)
        return self.conclude(self._size)

    def conclude(self, least: int = LEAST_STEPS) -> Optional[Decision]:
        """Take the steps so far for all, if they are enough.

        Args:
            least (int): Steps. Defaults to 10; 1 where no
                more will follow.

        Returns:
            Decision | None: That whose gain is known now.
        """
        decision = self._waiting
        if decision is None or len(self._after) < least:
            return None
        self._waiting = None
        times = decision.times
        times.after, times.after_quartiles = (self._after.median,
                                              self._after.spread)
        times.steps = times.steps[0], len(self._after)
        return decision

    def decided(self, decision: Decision) -> None:
        """Note the steps before a decision; time those after a pruning."""
        times = decision.times
        times.before, times.before_quartiles = (self._before.median,
                                                self._before.spread)
        times.steps = len(self._before), 0
        self._before.reset()
        self.wait_for(decision)

    def wait_for(self, decision: Decision) -> None:
        """Time the steps that follow, if the decision skips any layer."""
        self._waiting = decision if decision.skipped else None
        self._after.reset()
        self._steps = 0
