"""What a hook adds to a model lasts as long as the training, however it ends."""
from typing import Callable, Optional

from mmengine.runner import BaseLoop


def when_over(loop: BaseLoop,
              action: Callable[[Optional[BaseException]], None]) -> None:
    """Do something when a train loop ends, also by an exception.

    mmengine calls ``after_train`` and ``after_run`` of a training that ends
    well alone, so that what a hook undoes there stays in a model whose
    training was interrupted, and a second ``runner.train()`` finds it.

    Args:
        loop (BaseLoop): Not running yet: to be called in ``before_run``.
        action (Callable): Called once, with what was raised or None.
    """
    run = loop.run

    def run_and_act():
        loop.run = run  # for the next training
        try:
            result = run()
        except BaseException as error:  # Ctrl-C, too
            action(error)
            raise
        action(None)
        return result

    loop.run = run_and_act
