"""Times a run's steps, and tells of what a pruning has bought."""
from typing import Any, Optional

from ..errors import UsageError
from ..pruning.decision import Decision
from ..pruning.step_times import LEAST_STEPS
from .gain import PruningGain
from .in_turns import LEAST_ROUNDS, time_pruning
from .journal.journal import Journal


class StepClock:
    """The steps over the training, around prunings, and in turns.

    Args:
        journal (Journal): Of the run, which is told.
        steps (int): Behind each of the two medians around a pruning, at most.
        rounds (int): Pairs of steps in turns after a pruning; 0: none.

    Raises:
        UsageError: On numbers that measure nothing.
    """

    def __init__(self, journal: Journal, steps: int, rounds: int) -> None:
        if steps < 1:
            raise UsageError(f'timing_steps={steps}: expected at least 1 step')
        if rounds and rounds < LEAST_ROUNDS:
            raise UsageError(f'timing_rounds={rounds}: expected 0, or at least '
                             f'{LEAST_ROUNDS} pairs of steps')
        self._journal, self._rounds = journal, rounds
        self._gain = PruningGain(steps)
        self._by_epoch = journal.windows.by_epoch
        self._last_batch: Any = None  # to time steps on
        journal.step_times = self._gain.timeline.points

    def begin_epoch(self) -> None:
        """Forget the steps of an epoch that was cut off."""
        self._gain.timeline.begin()

    def begin_step(self, measuring: bool, window_starts: bool) -> None:
        """Call right before a training step.

        Args:
            measuring (bool): Whether it lies in a window.
            window_starts (bool): Whether it is a window's first.
        """
        self._gain.begin_step(measuring, window_starts)

    def end_step(self, runner, batch: Any) -> None:
        """Call right after it, with its batch."""
        self._tell(runner, self._gain.end_step())
        if self._rounds:
            self._last_batch = batch
        if not self._by_epoch and self._gain.timeline.end_if_long(
                runner.iter + 1, runner.max_iters):
            self._journal.write(runner)

    def end_epoch(self, runner) -> None:
        """Call at the end of an epoch, before anything is decided."""
        self._tell(runner, self._gain.conclude())
        if self._by_epoch:
            self._gain.timeline.end(runner.epoch + 1)

    def end_window(self, runner) -> None:
        """Tell of the pruning before, whose last step this was."""
        self._tell(runner, self._gain.conclude(least=1))
        # No stretch of iterations has steps from before and after a pruning.
        if not self._by_epoch:
            self._gain.timeline.end(runner.iter + 1, LEAST_STEPS)

    def decided(self, decision: Decision) -> None:
        """Note the steps before a decision; time those after a pruning."""
        self._gain.decided(decision)

    def go_on(self, decision: Decision) -> None:
        """Time the steps after a pruning that an earlier process has done."""
        if decision.times.after is None:
            self._gain.wait_for(decision)

    def time_in_turns(self, runner, decision: Decision) -> None:
        """Time steps with and without the layers that it skips, if wanted."""
        if decision.skipped and self._rounds:
            time_pruning(runner, decision, self._last_batch, self._rounds)
            self._journal.write(runner)
        self._last_batch = None

    def end(self, runner) -> None:
        """Tell of the last pruning; the training has ended."""
        self._last_batch = None
        self._tell(runner, self._gain.conclude(least=1))

    def _tell(self, runner, decision: Optional[Decision]) -> None:
        if decision is not None:
            self._journal.tell_gain(runner, decision)
