"""What the test of sparse training on several ranks adds to the toy."""
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

import ela_mm.engine.hooks.cka_regularization_hook  # noqa: F401  registers
from ela_mm.engine.hooks.sparse_training_hook import SparseTrainingHook


@HOOKS.register_module(force=True)
class SparseWitness(Hook):
    """Every rank writes its masks at the start, and what it ended with."""
    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        hook = next(h for h in runner.hooks
                    if isinstance(h, SparseTrainingHook))
        self.start = {name: mask.clone() for name, mask in hook.masks.items()}
        self.hook, self.losses = hook, []

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None) -> None:
        self.losses.append(float(outputs['loss_cka']))

    def after_train(self, runner) -> None:
        torch.save(
            dict(
                start=self.start,
                masks=self.hook.masks,
                updates=self.hook.updates,
                losses=self.losses,
                state=runner.model.module.state_dict()),
            Path(runner.work_dir) / f'rank{get_rank()}.pth')
