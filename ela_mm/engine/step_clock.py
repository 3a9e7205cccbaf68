"""Times the steps of a run, and reports how much a pruning has gained."""
from typing import Any, Optional

from ..errors import UsageError, check_numbers
from ..pruning.decision import Decision
from ..pruning.step_times import LEAST_STEPS
from .gain import PruningGain
from .in_turns import LEAST_ROUNDS, time_pruning
from .journal.journal import Journal


class StepClock:
    """Times steps all along the training, around prunings, and in turns.

    Args:
        journal (Journal): Journal of the run, which reports the times.
        steps (int): Largest number of steps behind each of the two medians,
            before and after a pruning.
        rounds (int): Number of pairs of steps to time in turns after a
            pruning; 0: none.

    Raises:
        UsageError: On numbers too small to measure anything.
    """

    def __init__(self, journal: Journal, steps: int, rounds: int) -> None:
        check_numbers(whole=True, timing_steps=steps, timing_rounds=rounds)
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
        """Begin an epoch; drop the steps of one that was interrupted."""
        self._gain.timeline.begin()

    def begin_step(self, measuring: bool, window_starts: bool) -> None:
        """Start timing a training step; to be called right before it.

        Args:
            measuring (bool): Whether the step lies in a window.
            window_starts (bool): Whether it is the first of a window.
        """
        self._gain.begin_step(measuring, window_starts)

    def end_step(self, runner, batch: Any) -> None:
        """Stop timing a training step; to be called right after it."""
        self._tell(runner, self._gain.end_step())
        if self._rounds:
            self._last_batch = batch
        if not self._by_epoch and self._gain.timeline.end_if_long(
                runner.iter + 1, runner.max_iters):
            self._journal.write(runner)

    def end_epoch(self, runner) -> None:
        """End an epoch; to be called before anything is decided."""
        self._tell(runner, self._gain.conclude())
        if self._by_epoch:
            self._gain.timeline.end(runner.epoch + 1)

    def end_window(self, runner) -> None:
        """End a window: report the gain of the previous pruning."""
        self._tell(runner, self._gain.conclude(least=1))
        # No stretch of iterations mixes steps from before and after a pruning.
        if not self._by_epoch:
            self._gain.timeline.end(runner.iter + 1, LEAST_STEPS)

    def decided(self, decision: Decision) -> None:
        """Note the step times before a decision; time the steps after it."""
        self._gain.decided(decision)

    def go_on(self, decision: Decision) -> None:
        """Time the steps after a pruning done before the run was resumed."""
        if decision.times.after is None:
            decision.times.resumed = True
            self._gain.wait_for(decision)

    def time_in_turns(self, runner, decision: Decision) -> None:
        """Time steps with and without the skipped layers, if configured."""
        if decision.skipped and self._rounds:
            time_pruning(runner, decision, self._last_batch, self._rounds)
            self._journal.write(runner)
        self._last_batch = None

    def end(self, runner) -> None:
        """Report the gain of the last pruning; the training has ended."""
        self._last_batch = None
        self._tell(runner, self._gain.conclude(least=1))

    def _tell(self, runner, decision: Optional[Decision]) -> None:
        if decision is not None:
            self._journal.tell_gain(runner, decision)
