"""Tells hooks where a run begins, and when its training ends."""
import weakref
from typing import Callable, Optional

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop


def is_another_run(hook: Hook, runner) -> bool:
    """Return whether a hook had another runner before this one.

    A hook that goes on after an interruption keeps what it knows of the run.
    If the same object is given to a second runner, it has to forget it.

    Args:
        hook (Hook): Hook, which remembers the runner.
        runner (Runner): Its runner now.

    Returns:
        bool: False for the first runner of the hook.
    """
    known = vars(hook).get('_last_runner')
    hook._last_runner = weakref.ref(runner)
    return known is not None and known() is not runner


def when_over(loop: BaseLoop,
              action: Callable[[Optional[BaseException]], None]) -> None:
    """Call a function when a train loop ends, also by an exception.

    mmengine calls ``after_train`` and ``after_run`` only if the training ends
    without an exception. After an interruption, what a hook removes there
    would stay in the model, and a second ``runner.train()`` would find it.

    Args:
        loop (BaseLoop): Train loop that is not running yet; hooks have it in
            ``before_run``.
        action (Callable): Function to call once, with the exception that ended
            the loop or None.
    """
    run = loop.run

    def run_and_act():
        loop.run = run  # for the next training
        try:
            result = run()
        except BaseException as error:  # includes Ctrl-C
            action(error)
            raise
        action(None)
        return result

    loop.run = run_and_act
