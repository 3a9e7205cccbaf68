"""Lets hooks clean up when a training ends, also by an exception."""
from typing import Callable, Optional

from mmengine.runner import BaseLoop


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
