"""What ELAPruneHook leaves in a checkpoint, and how a run goes on from it."""
from typing import Any, Dict, Optional

from ..errors import UsageError
from .journal.record import decision_from_json, decision_to_json


def hook_state(hook, runner) -> Dict[str, Any]:
    """Form the state of a hook for a checkpoint.

    Args:
        hook (ELAPruneHook): While it trains; on the main rank.
        runner (Runner): Its runner.

    Returns:
        Dict[str, Any]: Plain values and tensors.
    """
    statistics = hook._statistics_before
    if statistics is None:
        statistics = hook.statistics.state_dict()
        if hook.statistics.is_scattered:
            runner.logger.warning(
                'this checkpoint is saved within a window at a point where '
                'the ranks do not meet: a run that resumes from it lacks the '
                "other ranks' samples since the last regular checkpoint")
    # Else mmengine will start this epoch over: what it has measured so far is
    # going to be measured again.
    window = hook.statistics.window
    return dict(
        statistics=statistics,
        window=None if window is None else list(window),
        decisions=[decision_to_json(d) for d in hook.decisions])


def restore(hook, runner, state: Optional[Dict[str, Any]]) -> None:
    """Take up what went before a training starts or goes on.

    Args:
        hook (ELAPruneHook): Its weights are loaded.
        runner (Runner): Its runner.
        state (Dict[str, Any], optional): From :func:`hook_state`; empty where
            a checkpoint has none, None without resuming.

    Raises:
        UsageError: If the state is none that this version can read.
    """
    hook.backbone.observe(None)  # an error may have left an observer behind
    device = next(hook.backbone.parameters()).device
    if state is None:
        # In a process that trains once more, an epoch that an error has cut
        # off starts over.
        if hook._statistics_before is not None:
            hook.statistics.load_state_dict(hook._statistics_before, device)
        return
    if state:
        try:
            hook.journal.decisions = [
                decision_from_json(d) for d in state['decisions']
            ]
            hook.statistics.load_state_dict(state['statistics'], device)
            window = state.get('window')
            hook.statistics.window = None if window is None else tuple(window)
            fresh = state.get('fresh_norms')  # of a time before the buffer
            if fresh is not None and hook.backbone.fresh_norms is None:
                hook.backbone.fresh_norms = fresh
        except (KeyError, TypeError, ValueError, AttributeError,
                RuntimeError) as error:
            raise UsageError(
                'the checkpoint has a state of ELAPruneHook that cannot be '
                f'read ({type(error).__name__}: {error}): it was changed or '
                'is of a newer version; resume from another checkpoint, or '
                'fine-tune from this one with load_from') from None
        _drop_other_windows(hook, runner)
        last = hook.decisions[-1] if hook.decisions else None
        if last is not None and last.times.after is None:
            hook._gain.wait_for(last)
    _warn_of_missed_windows(hook, runner)


def _drop_other_windows(hook, runner) -> None:
    """Sums of a window that this run does not have decide nothing."""
    saved = hook.statistics.window
    current = hook._windows.containing(hook._count(runner))
    if saved is not None and saved != current:
        hook.statistics.reset()
        runner.logger.warning(
            f'the checkpoint has statistics of window {saved}, which is none '
            f'of this run\'s at this point ({current}): they are left out')


def _warn_of_missed_windows(hook, runner) -> None:
    done = hook._count(runner) - 1
    decided = [decision.window for decision in hook.decisions]
    for window in hook.windows:
        if window[1] <= done and window not in decided:
            runner.logger.warning(
                f'window {window} ended before this run was resumed at '
                f'{done} and was not decided then: it is left out')
