"""A validation that an interruption may have cut off is run again."""
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ..checkpoints import is_within_epoch


@HOOKS.register_module()
class ValidateResumedHook(Hook):
    """Validates a resumed run first, if it is at a point of validation.

    mmengine saves a checkpoint before it validates the same epoch. A run that
    dies in that validation goes on with the next epoch: the metrics are
    missing, for a best checkpoint too, and after the last epoch there would be
    none at all. Whether that validation ended cannot be told from the
    checkpoint, so it may be run twice, with the same result.
    ``tools/train.py --resume`` adds this hook.
    """

    # After all hooks have prepared for training.
    priority = 'LOWEST'
    within_epoch = False

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """See whether it was saved at the end of an epoch."""
        self.within_epoch = runner._resume and is_within_epoch(checkpoint)

    def before_train(self, runner) -> None:
        """Validate where the train loop would have."""
        loop = runner.train_loop
        if not runner._resume or runner.val_loop is None or not runner.iter:
            return
        done, last = runner.iter, runner.max_iters
        if isinstance(loop, EpochBasedTrainLoop):
            if self.within_epoch:
                return
            done, last = runner.epoch, runner.max_epochs
        loop._decide_current_val_interval()
        if done >= loop.val_begin and (done % loop.val_interval == 0
                                       or done == last):
            runner.logger.info('validating the resumed checkpoint: the '
                               'interruption may have cut that off')
            runner.val_loop.run()
