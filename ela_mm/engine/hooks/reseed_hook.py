"""Gives all runs of a seed the same random numbers, resumed or not."""
from typing import Optional

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import DataLoader, IterableDataset

from ..lifetime import is_another_run
from ..randomness import (
    EPOCH,
    VALIDATION,
    FetchSeeds,
    SeededBatches,
    WorkerSeeds,
    seed_all,
    seed_workers,
)


@HOOKS.register_module()
class ReseedHook(Hook):
    """Seeds each epoch or batch by the run's seed and its number.

    mmengine seeds once. Every number that a network draws, for drop path for
    instance, then shifts all later ones: runs with the same seed but different
    attention see different crops, so they cannot be compared in pairs, and a
    resumed run differs from one without an interruption. With this hook, what
    was drawn before does not matter (:mod:`ela_mm.engine.randomness`).

    ``tools/train.py`` and ``tools/ablation.py`` register it for every run, and
    ``ELAPruneHook`` registers it if nobody has. For other tools, add it to the
    ``custom_hooks`` of the config.
    """

    # As ELAPruneHook: before all hooks that may draw random numbers.
    priority = 'ABOVE_NORMAL'

    def __init__(self) -> None:
        self._workers: Optional[WorkerSeeds] = None
        self._fetches: Optional[FetchSeeds] = None
        self._trains = False

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Warn if the data loader has another seed than before."""
        seed = checkpoint.get('meta', {}).get('seed')
        if runner._resume and seed not in (None, runner.seed):
            runner.logger.warning(
                f'the run that is resumed has the seed {seed}, the data loader '
                f'of this process {runner.seed}: batches will differ from '
                'those of a run without an interruption. Set randomness='
                f'dict(seed={seed}) to go on with the same')

    def before_train(self, runner) -> None:
        """Replace what loads the data, before its workers start."""
        if is_another_run(self, runner):
            self._workers = self._fetches = None
        self._trains = True
        loop = runner.train_loop
        if not isinstance(loop, IterBasedTrainLoop):
            self._workers = seed_workers(loop.dataloader, runner.seed)
            if self._fetches is None and _loads_here(loop.dataloader):
                self._fetches = FetchSeeds(loop.dataloader.dataset,
                                           runner.seed)
        elif not isinstance(loop.dataloader_iterator, SeededBatches):
            loop.dataloader_iterator = SeededBatches(loop.dataloader_iterator,
                                                     runner.seed)

    def before_train_epoch(self, runner) -> None:
        """Seed the epoch; iteration-based loops are seeded by batch."""
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            return
        seed_all(runner.seed, EPOCH, runner.epoch)
        if self._workers is not None:
            self._workers.epoch.fill_(runner.epoch)
        if self._fetches is not None:
            self._fetches.begin(runner.epoch)

    def before_train_iter(self,
                          runner,
                          batch_idx: int,
                          data_batch=None) -> None:
        """Seed again after persistent workers may have been started."""
        if batch_idx == 0 and self._workers is not None:
            # Starting them draws a number, in a process' first epoch alone.
            seed_all(runner.seed, EPOCH, runner.epoch)

    def before_val(self, runner) -> None:
        """Seed a validation within a training, which may be repeated."""
        if self._trains:
            seed_all(runner.seed, VALIDATION, runner.iter)


def _loads_here(loader: DataLoader) -> bool:
    """Return whether a loader loads batches in this process."""
    return (loader.num_workers == 0 and loader.batch_sampler is not None
            and not isinstance(loader.dataset, IterableDataset))


def ensure_reseeding(runner) -> None:
    """Register a :class:`ReseedHook` unless the runner has one.

    Args:
        runner (Runner): Runner before training.
    """
    if not any(isinstance(hook, ReseedHook) for hook in runner.hooks):
        runner.register_hook(ReseedHook())


__all__ = ['ReseedHook', 'ensure_reseeding']
