"""Saves the state of ELAPruneHook in checkpoints, and resumes from it.

A run may also be resumed in the same process, after an error or Ctrl-C.
"""
from typing import Any, Dict, Optional

from mmengine.runner import EpochBasedTrainLoop

from ..errors import UsageError
from ..pruning.windows import Given, Window, window_name
from .checkpoints import DEPLOY_KEY, is_within_epoch
from .gain import Point
from .journal.record import (
    decision_from_json,
    decision_to_json,
    edit_from_json,
    edit_to_json,
)
from .sanity import resolve_windows

# Key of the hook's state in mmengine's checkpoints.
STATE_KEY = 'ela_prune_hook'


def hook_state(hook, runner) -> Dict[str, Any]:
    """Collect the state of a hook for a checkpoint; called on rank 0.

    Args:
        hook (ELAPruneHook): Hook in training.
        runner (Runner): Runner of the hook.

    Returns:
        Dict[str, Any]: Plain values and tensors.
    """
    return dict(
        **hook.measurement.state_dict(runner),
        windows=[[list(given), list(span)] for given, span in zip(
            hook.journal.windows.given, hook.windows)],
        decisions=[decision_to_json(d) for d in hook.decisions],
        edits=[edit_to_json(e) for e in hook.journal.edits],
        step_times=[list(point) for point in hook.journal.step_times])


def state_to_resume(runner, checkpoint: dict) -> Optional[Dict[str, Any]]:
    """Take the hook's state from a checkpoint that is being loaded.

    Args:
        runner (Runner): Runner that loads it.
        checkpoint (dict): Checkpoint of mmengine.

    Returns:
        Dict[str, Any] | None: The state, empty if the checkpoint has none;
        None if only the weights are loaded.

    Raises:
        UsageError: If it is a deploy checkpoint, which cannot be resumed.
    """
    if not runner._resume:
        return None
    # mmengine saves configs as 'cfg', but would run what it finds here as code.
    checkpoint.get('meta', {}).pop('config', None)
    if DEPLOY_KEY in checkpoint.get('meta', {}):
        raise UsageError(
            'a deploy checkpoint holds no state of training to resume '
            'from; to fine-tune it, set load_from to it and resume to '
            'False')
    if isinstance(runner.train_loop,
                  EpochBasedTrainLoop) and is_within_epoch(checkpoint):
        runner.logger.warning(
            'the checkpoint was taken within epoch '
            f'{checkpoint["meta"]["epoch"] + 1}, which mmengine starts '
            'over: this run will differ from one without an '
            'interruption. Save checkpoints by epoch, or train with '
            'an IterBasedTrainLoop')
    return checkpoint.get(STATE_KEY, {})


def restore(hook, runner, state: Optional[Dict[str, Any]]) -> None:
    """Restore the state of a hook, right before a training starts or goes on.

    Args:
        hook (ELAPruneHook): Hook whose backbone has its weights loaded.
        runner (Runner): Runner of the hook.
        state (Dict[str, Any], optional): State from :func:`state_to_resume`;
            None if there is nothing to resume from. Then only what an
            interrupted epoch of this process has measured is dropped.

    Raises:
        UsageError: If this version cannot read the state.
    """
    if state is None:
        hook.measurement.start_over(runner.epoch,
                                    hook.window_of(hook.count(runner)))
        return
    if state:
        try:
            _load(hook, state)
            begun = begun_windows(state, hook.count(runner) - 1)
        except (LookupError, TypeError, ValueError, AttributeError,
                RuntimeError) as error:
            raise UsageError(
                'the checkpoint has a state of ELAPruneHook that cannot be '
                f'read ({type(error).__name__}: {error}): it was changed or '
                'is of a newer version; resume from another checkpoint, or '
                'fine-tune from this one with load_from') from None
        _keep_begun_windows(hook, runner, begun)
        if hook.decisions:
            hook.clock.go_on(hook.decisions[-1])
    _leave_out_other_windows(hook, runner)
    _warn_of_missed_windows(hook, runner)
    _say_what_was_edited(hook, runner)
    _say_what_was_taken_up(hook, runner)


def begun_windows(state: Dict[str, Any], done: int) -> Dict[Given, Window]:
    """Read from a state which windows the run has begun.

    Args:
        state (Dict[str, Any]): State of the hook, from a checkpoint.
        done (int): Number of epochs or iterations done by then, whichever
            windows count.

    Returns:
        Dict[Given, Window]: Spans of these windows, by how they were given;
        empty if an earlier version did not save them.
    """
    spans = {tuple(given): tuple(span)
             for given, span in state.get('windows', [])}
    return {given: span for given, span in spans.items() if span[0] <= done}


def _load(hook, state: Dict[str, Any]) -> None:
    hook.journal.decisions = [
        decision_from_json(d) for d in state['decisions']
    ]
    # Earlier versions saved neither edits nor step times.
    hook.journal.edits = [edit_from_json(e) for e in state.get('edits', [])]
    hook.measurement.load_state_dict(state)
    hook.journal.step_times[:] = [
        Point(*point) for point in state.get('step_times', [])
    ]
    fresh = state.get('fresh_norms')  # earlier versions had no buffer for it
    if fresh is not None and hook.backbone.fresh_norms is None:
        hook.backbone.fresh_norms = fresh


def _keep_begun_windows(hook, runner, begun: Dict[Given, Window]) -> None:
    """Keep the spans of begun windows, even if the training is longer now."""
    windows = hook.journal.windows
    before = dict(zip(windows.given, windows.spans))
    windows.begun = begun
    resolve_windows(windows, runner)
    for given, span in zip(windows.given, windows.spans):
        if before[given] != span:
            runner.logger.info(
                f'window {given} stays {window_name(span, windows.unit)}, as '
                'it was when this run began it')


def _say_what_was_edited(hook, runner) -> None:
    for edit in hook.journal.edits:
        if edit.iter == runner.iter:  # earlier ones are known to this run
            runner.logger.info(
                f'the mask of this checkpoint was edited by hand: {edit}')


def _say_what_was_taken_up(hook, runner) -> None:
    statistics, windows = hook.statistics, hook.journal.windows
    if statistics.is_empty:
        return
    window, count = hook.window_of(hook.count(runner)), hook.count(runner)
    runner.logger.info(
        f'{statistics.samples} samples of '
        f'{window_name((window[0], count - 1), windows.unit)} are taken up: '
        f'measuring {window_name(window, windows.unit)} goes on')


def _leave_out_other_windows(hook, runner) -> None:
    """Drop statistics of a window that this run is not in, with a warning."""
    statistics, count = hook.statistics, hook.count(runner)
    window = hook.window_of(count)
    begun = window is not None and window[0] < count
    if not statistics.is_empty:
        if begun and statistics.window in (None, window):
            return
        runner.logger.warning(
            'the checkpoint has statistics of '
            f'{statistics.window or "an unknown window"}, in which this run '
            'is not: they are left out')
        statistics.reset()
    if begun:
        runner.logger.warning(
            f'window {window} began before the checkpoint was saved, which '
            'has no statistics of it: only what follows counts')


def _warn_of_missed_windows(hook, runner) -> None:
    done = hook.count(runner) - 1
    decided = [decision.window for decision in hook.decisions]
    for window in hook.windows:
        if window[1] <= done and window not in decided:
            runner.logger.warning(
                f'window {window} ended before this run was resumed at '
                f'{done} and was not decided then: it is left out')
