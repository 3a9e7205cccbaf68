"""What a pruning gains: the median training step before and after it."""
import statistics
import time
from collections import deque
from typing import Deque, Optional

import torch

from ..pruning.decision import Decision

# Steps right after a pruning that are not timed: allocators settle.
WARM_UP_STEPS = 2


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
        self._start = self._now()

    def stop(self) -> None:
        """Call right after it; does nothing without a start."""
        if self._start is not None:
            self._seconds.append(self._now() - self._start)
            self._start = None

    def reset(self) -> None:
        """Forget all steps."""
        self._seconds.clear()

    def __len__(self) -> int:
        return len(self._seconds)

    @property
    def median(self) -> Optional[float]:
        """Seconds per step; None before the first."""
        return statistics.median(self._seconds) if self._seconds else None

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class PruningGain:
    """Times steps at the end of a window and right after a pruning.

    Timing waits for the GPU, so only steps that are going to be reported are
    timed.

    Args:
        size (int): Steps behind each median, at most.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._timer = StepTimer(size)
        self._waiting: Optional[Decision] = None  # for its steps afterwards
        self._steps = 0  # since it was taken

    def begin_step(self, measuring: bool, window_starts: bool) -> None:
        """Call right before a training step.

        Args:
            measuring (bool): Whether it lies in a window.
            window_starts (bool): Whether it is a window's first.
        """
        if self._waiting is None and window_starts:
            self._timer.reset()  # of steps timed after another pruning
        if measuring or self._waiting is not None:
            self._timer.start()

    def end_step(self) -> Optional[Decision]:
        """Call right after it.

        Returns:
            Decision | None: That whose gain is known now.
        """
        self._timer.stop()
        if self._waiting is None:
            return None
        self._steps += 1
        if self._steps <= WARM_UP_STEPS:
            self._timer.reset()
        return self.conclude() if len(self._timer) == self._size else None

    def conclude(self) -> Optional[Decision]:
        """Take the steps so far for all, since no more will follow.

        Returns:
            Decision | None: That whose gain is known now.
        """
        decision = self._waiting
        if decision is None or not len(self._timer):
            return None
        self._waiting = None
        decision.times.after = self._timer.median
        decision.times.steps = decision.times.steps[0], len(self._timer)
        return decision

    def decided(self, decision: Decision) -> None:
        """Note the steps before a decision; time those after a pruning."""
        decision.times.before = self._timer.median
        decision.times.steps = len(self._timer), 0
        self._timer.reset()
        self.wait_for(decision)

    def wait_for(self, decision: Decision) -> None:
        """Time the steps that follow, if the decision skips any layer."""
        self._waiting = decision if decision.skipped else None
        self._steps = 0
