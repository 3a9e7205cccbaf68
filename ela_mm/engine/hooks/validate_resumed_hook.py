"""What an interruption may have cut off of a validation is made good."""
from typing import List

from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ..checkpoints import is_within_epoch


@HOOKS.register_module()
class ValidateResumedHook(Hook):
    """Validates a resumed run first, if its checkpoint came before that.

    mmengine saves a checkpoint before it validates the same epoch. A run that
    dies in that validation goes on with the next epoch: the metrics are
    missing, for a best checkpoint and for a schedule that waits for them, and
    after the last epoch there would be none at all. A checkpoint that was
    saved by a validation, since its metric was the best, is not validated
    again: all that counts metrics has counted them. What counts them outside
    of checkpoints, ``EarlyStoppingHook``, hears those of the run so far.

    ``tools/train.py --resume`` adds this hook.
    """

    # After all hooks have prepared for training.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._resumed = False
        self._validates = False

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """See whether it was saved at the end of an epoch, or later."""
        if not runner._resume:
            return
        self._resumed = True
        info = checkpoint.get('message_hub', {}).get('runtime_info', {})
        self._validates = info.get('loop_stage') != 'val' and not (
            isinstance(runner.train_loop, EpochBasedTrainLoop)
            and is_within_epoch(checkpoint))
        lacking = [name for name in _state_of(runner)
                   if name not in checkpoint]
        if lacking:
            runner.logger.warning(
                f'the checkpoint has no {" and no ".join(lacking)}, as a best '
                'checkpoint of CheckpointHook has none: they start anew, and '
                'this run differs from one without an interruption. '
                '--resume without a value takes the latest that has all')

    def before_train(self, runner) -> None:
        """Validate where the train loop would have."""
        if not self._resumed:
            return
        self._resumed = False  # this process may train once more
        _tell_early_stopping(runner)
        loop = runner.train_loop
        if not self._validates or runner.val_loop is None or not runner.iter:
            return
        done, last = runner.iter, runner.max_iters
        if isinstance(loop, EpochBasedTrainLoop):
            done, last = runner.epoch, runner.max_epochs
        loop._decide_current_val_interval()
        if done >= loop.val_begin and (done % loop.val_interval == 0
                                       or done == last):
            runner.logger.info('validating the resumed checkpoint: the '
                               'interruption may have cut that off')
            runner.val_loop.run()


def _state_of(runner) -> List[str]:
    """What a checkpoint needs beside the weights to go on."""
    return ['optimizer'] + ['param_schedulers'] * bool(runner.param_schedulers)


def _tell_early_stopping(runner) -> None:
    """Let hooks that count metrics count those of before the interruption."""
    for hook in runner.hooks:
        if isinstance(hook, EarlyStoppingHook):
            name = f'val/{hook.monitor}'
            if name in runner.message_hub.log_scalars:
                values, _ = runner.message_hub.get_scalar(name).data
                for value in values.tolist():
                    hook.after_val_epoch(runner, {hook.monitor: value})
