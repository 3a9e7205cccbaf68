"""Makes up for a validation that an interruption may have prevented."""
from typing import Any, Dict, List, Optional

from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from .. import validations
from ..checkpoints import is_within_epoch
from ..ranks import from_main_rank


@HOOKS.register_module()
class ValidateResumedHook(Hook):
    """Validates a resumed run first, unless its checkpoint was validated.

    mmengine saves a checkpoint before it validates the same epoch. A run that
    dies in that validation is resumed at the next epoch, and its metrics are
    missing: for the best checkpoint, for a schedule that depends on them, and
    at the end of the training altogether. If the run died later, the metrics
    are in ``ela_validated.json`` in the work dir; then all hooks are given
    these, and nothing is validated again. A checkpoint that was saved by a
    validation, since its metric was the best, needs neither.
    ``EarlyStoppingHook``, which keeps no state in checkpoints, is given the
    metrics of the run so far.

    ``tools/train.py`` adds this hook.
    """

    # After all hooks have prepared for training and handled a validation.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._resumed = False
        self._validates = False
        self._loaded: Optional[str] = None  # name of the checkpoint
        # Name of the last checkpoint, and the number of iterations it has.
        self._saved: Optional[str] = None
        self._saved_at = -1

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Note whether the checkpoint was saved before a validation."""
        if not runner._resume:
            return
        self._resumed = True
        self._loaded = checkpoint.get(validations.KEY)
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
        """Validate if the train loop would have done so here."""
        if not self._resumed:
            return
        self._resumed = False  # this process may train once more
        _tell_early_stopping(runner)
        if not self._validates or not _is_due(runner):
            return
        self._saved, self._saved_at = self._loaded, runner.iter
        metrics = from_main_rank(
            validations.recall(runner.work_dir, self._loaded))
        if metrics is None:
            runner.logger.info('validating the resumed checkpoint: the '
                               'interruption may have cut its validation off')
            runner.val_loop.run()
        else:
            runner.logger.info('the resumed checkpoint was validated before: '
                               'the results of that validation are used')
            _give(runner, metrics)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Name the checkpoint, unless a validation saves it."""
        hub = runner.message_hub.runtime_info
        if hub.get('loop_stage') == 'train':
            self._saved, self._saved_at = validations.new_name(), (
                checkpoint['meta']['iter'])
            checkpoint[validations.KEY] = self._saved

    def after_val_epoch(self,
                        runner,
                        metrics: Optional[Dict[str, Any]] = None) -> None:
        """Record that the checkpoint saved right before is validated."""
        if self._saved is not None and self._saved_at == runner.iter:
            validations.remember(runner.work_dir, self._saved, metrics or {})


def _is_due(runner) -> bool:
    """Return whether the train loop would have validated at this point."""
    loop = runner.train_loop
    if runner.val_loop is None or not runner.iter:
        return False
    done, last = runner.iter, runner.max_iters
    if isinstance(loop, EpochBasedTrainLoop):
        done, last = runner.epoch, runner.max_epochs
    loop._decide_current_val_interval()
    return done >= loop.val_begin and (done % loop.val_interval == 0
                                       or done == last)


def _give(runner, metrics: Dict[str, float]) -> None:
    """Call all hooks as a validation with these metrics would."""
    runner.call_hook('before_val')
    runner.call_hook('before_val_epoch')
    runner.model.eval()
    runner.call_hook('after_val_epoch', metrics=metrics)
    runner.call_hook('after_val')


def _state_of(runner) -> List[str]:
    """List the keys that a checkpoint needs for resuming, besides weights."""
    return ['optimizer'] + ['param_schedulers'] * bool(runner.param_schedulers)


def _tell_early_stopping(runner) -> None:
    """Give early stopping the metrics from before the interruption."""
    for hook in runner.hooks:
        if isinstance(hook, EarlyStoppingHook):
            name = f'val/{hook.monitor}'
            if name in runner.message_hub.log_scalars:
                values, _ = runner.message_hub.get_scalar(name).data
                for value in values.tolist():
                    hook.after_val_epoch(runner, {hook.monitor: value})
