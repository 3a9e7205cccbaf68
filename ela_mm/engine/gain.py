"""Times training steps: all along the training, and around a pruning."""
import statistics
import time
from collections import deque
from typing import Deque, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch

from ..pruning.decision import Decision
from ..pruning.step_times import LEAST_STEPS

# Steps right after a pruning that are not timed, while allocators settle.
WARM_UP_STEPS = 2
# For iteration-based trainings: least number of steps behind a point of the
# timeline, and largest number of points.
STRETCH, MOST_POINTS = 50, 400


def quartiles(seconds: Sequence[float]) -> Tuple[float, float, float]:
    """Compute the first quartile, the median and the third quartile."""
    first, median, third = np.percentile(seconds, [25, 50, 75])
    return float(first), float(median), float(third)


class StepTimer:
    """Times the last training steps, without data loading.

    Args:
        size (int): Number of steps to keep; older ones are dropped.
    """

    def __init__(self, size: int) -> None:
        self._seconds: Deque[float] = deque(maxlen=size)
        self._start: Optional[float] = None

    def start(self) -> None:
        """Start timing; to be called right before a step."""
        self._start = now()

    def stop(self) -> None:
        """Stop timing and add the step; without a start, do nothing."""
        if self._start is not None:
            self.add(now() - self._start)
            self._start = None

    def add(self, seconds: float) -> None:
        """Add the seconds of a step that was timed elsewhere."""
        self._seconds.append(seconds)

    def reset(self) -> None:
        """Drop all steps."""
        self._seconds.clear()

    def __len__(self) -> int:
        return len(self._seconds)

    @property
    def median(self) -> Optional[float]:
        """Median in seconds; None before the first step."""
        return statistics.median(self._seconds) if self._seconds else None

    @property
    def spread(self) -> Optional[Tuple[float, float]]:
        """First and third quartile in seconds; None before the first step."""
        return quartiles(self._seconds)[::2] if self._seconds else None


def now(waits: bool = True) -> float:
    """Read the clock in seconds.

    Args:
        waits (bool): Whether to synchronise with the GPU before. Defaults to
            True.
    """
    if waits and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Point(NamedTuple):
    """Step times of an epoch, or of a stretch of iterations, in seconds.

    Attributes:
        at (int): The epoch, or the last iteration of the stretch, from 1.
        first (float): First quartile of the step times.
        median (float): Median of the step times.
        third (float): Third quartile of the step times.
    """
    at: int
    first: float
    median: float
    third: float


class Timeline:
    """Step times of every epoch, or of every stretch of iterations.

    Attributes:
        points (List[Point]): Epochs or stretches that have ended.
    """

    def __init__(self) -> None:
        self.points: List[Point] = []
        self._seconds: List[float] = []

    def __len__(self) -> int:
        return len(self._seconds)

    def add(self, seconds: float) -> None:
        """Add the seconds of a step."""
        self._seconds.append(seconds)

    def begin(self) -> None:
        """Begin an epoch; drop the steps of one that was interrupted."""
        self._seconds.clear()

    def end(self, at: int, least: int = 1) -> None:
        """Turn the steps since the last point into a new point.

        Args:
            at (int): The epoch, or the last iteration, from 1. Points there or
                later, from before the run was resumed, are replaced.
            least (int): Least number of steps behind a point; fewer are kept
                for the next one. Defaults to 1.
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
            at (int): Number of iterations done.
            last (int): Number of iterations of the whole training.

        Returns:
            bool: Whether a point was added.
        """
        if len(self) < max(STRETCH, -(-last // MOST_POINTS)):
            return False
        self.end(at)
        return True


class PruningGain:
    """Times all steps, and compares those before and after a pruning.

    In a window and right after a pruning it synchronises with the GPU before
    and after a step. Other steps are timed by the clock alone: MMEngine reads
    the losses of every step, which synchronises as well.

    Args:
        size (int): Largest number of steps behind each of the two medians.

    Attributes:
        timeline (Timeline): Timeline of all steps.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._before, self._after = StepTimer(size), StepTimer(size)
        # Decision whose steps afterwards are being timed, and their number.
        self._waiting: Optional[Decision] = None
        self._measuring = False
        self._steps = 0
        self._start: Optional[float] = None
        self.timeline = Timeline()

    def begin_step(self, measuring: bool, window_starts: bool) -> None:
        """Start timing a training step; to be called right before it.

        Args:
            measuring (bool): Whether the step lies in a window.
            window_starts (bool): Whether it is the first of a window.
        """
        if window_starts:
            self._before.reset()
        self._measuring = measuring
        self._start = now(self._waits)

    @property
    def _waits(self) -> bool:
        return self._measuring or self._waiting is not None

    def end_step(self) -> Optional[Decision]:
        """Stop timing a training step; to be called right after it.

        Returns:
            Decision | None: Decision whose step times are complete now, if
            any.
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
        """Take the median of the steps after a pruning, if there are enough.

        Args:
            least (int): Least number of steps; 1 if no more will follow.
                Defaults to 10.

        Returns:
            Decision | None: Decision whose step times are complete now, if
            any.
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
        """Note the step times before a decision; time the steps after it."""
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
