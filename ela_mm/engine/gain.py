"""Median wall-clock time of training steps."""
import statistics
import time
from collections import deque
from typing import Deque, Optional

import torch


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
