"""Random numbers that depend on the seed and the step alone.

mmengine seeds once, when a run starts, and a resumed run starts again: from
then on stochastic depth, dropout, samplers of boxes and augmentation differ
from those of the run that was never interrupted. Here every epoch (of an
epoch-based loop) or batch (of an iteration-based one) starts from seeds made
of the run's seed and its own number. That needs nothing in the checkpoint and
no communication, whatever the number of ranks; and it does not matter what a
validation, which a resumed run may not repeat, has drawn in between. A
generator's saved state would have to be collected from every rank at each
checkpoint, would not fit another number of ranks, and those of persistent
workers cannot be reached at all.
"""
import random
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, get_worker_info

# What the seeds are for; no two purposes share a stream.
EPOCH, BATCH, VALIDATION, WORKER, FETCH, HELD_OUT = range(6)


def seed_all(seed: int, *purpose: int) -> None:
    """Seed python, numpy and torch (all devices).

    Args:
        seed (int): The run's seed, as mmengine gave it to this rank: equal on
            all ranks unless ``randomness=dict(diff_rank_seed=True)``.
        purpose (int): Numbers >= 0 that tell this stream from all others.
    """
    first, second, third = _words(seed, *purpose)
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed(third)


def _words(seed: int, *purpose: int) -> List[int]:
    return np.random.SeedSequence([seed,
                                   *purpose]).generate_state(3).tolist()


@contextmanager
def own_stream(seed: int, *purpose: int) -> Iterator[None]:
    """Draw from a stream of its own within this context.

    Afterwards the generators of python, numpy and torch (CPU) go on where
    they were.

    Args:
        seed (int): As for :func:`seed_all`.
        purpose (int): As for :func:`seed_all`.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first, second, third = _words(seed, *purpose)
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(third)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class SeededBatches:
    """Seeds before each batch of an iteration-based loop.

    It stands in for the loop's iterator, because no hook runs between the
    batches that mmengine skips when it resumes and the first that it trains:
    transforms that run in this process (``num_workers=0``) draw there.

    Args:
        batches (Iterator): mmengine's endless iterator, none taken yet.
        seed (int): The run's.
    """

    def __init__(self, batches: Iterator, seed: int) -> None:
        self.batches = batches
        self.seed = seed
        self.taken = 0

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        seed_all(self.seed, BATCH, self.taken)
        self.taken += 1
        return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        """Pass over batches, which onedl-mmengine asks for when it resumes.

        They are loaded, as with mmengine: a sampler that jumps would leave
        the workers' generators behind those of an uninterrupted run.

        Args:
            num_iters (int): Batches that are trained already.
        """
        for _ in range(num_iters):
            next(self)


class WorkerSeeds:
    """Seeds the persistent workers of a data loader anew in each epoch.

    Other workers start with each epoch, and mmengine seeds them alike each
    time. Persistent ones go on with their generators, which ended with the
    process that was interrupted. It stands in for ``worker_init_fn``.

    Args:
        seed (int): The run's.
        rank (int): Of this process: as in mmengine, ranks differ.
        init_fn (Callable, optional): The loader's own; called first.
    """

    def __init__(self, seed: int, rank: int,
                 init_fn: Optional[Callable[[int], None]]) -> None:
        self.seed = seed
        self.rank = rank
        self.init_fn = init_fn
        # Written here, read by the workers.
        self.epoch = torch.zeros(1, dtype=torch.long).share_memory_()

    def __call__(self, worker: int) -> None:
        """Prepare the worker's own copy of the dataset."""
        if self.init_fn is not None:
            self.init_fn(worker)
        dataset = get_worker_info().dataset
        fetch = getattr(dataset, '__getitems__', None)
        seeded = -1

        def fetch_seeded(indices: List[int]) -> List[Any]:
            nonlocal seeded
            epoch = int(self.epoch)
            if epoch != seeded:
                seed_all(self.seed, WORKER, epoch, self.rank, worker)
                seeded = epoch
            return fetch(indices) if fetch else [dataset[i] for i in indices]

        # torch asks for whole batches through it: no other code of a worker
        # runs between two epochs.
        dataset.__getitems__ = fetch_seeded


class FetchSeeds:
    """Gives what this process loads itself (no workers) a stream of its own.

    Otherwise transforms would draw between the steps of the network, and see
    how much it has drawn: two networks of one seed would get other crops.

    Args:
        dataset (Dataset): Of a loader without workers; changed in place.
        seed (int): The run's.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.seed = seed
        self.epoch = 0
        self.number = 0  # of the batch within the epoch
        fetch = getattr(dataset, '__getitems__', None)

        def fetch_seeded(indices: List[int]) -> List[Any]:
            with own_stream(self.seed, FETCH, self.epoch, self.number):
                self.number += 1
                return fetch(indices) if fetch else [
                    dataset[i] for i in indices
                ]

        dataset.__getitems__ = fetch_seeded

    def begin(self, epoch: int) -> None:
        """Begin an epoch."""
        self.epoch, self.number = epoch, 0


def seed_workers(loader: DataLoader, seed: int) -> Optional[WorkerSeeds]:
    """Let a loader's persistent workers depend on the seed and the epoch.

    Args:
        loader (DataLoader): Changed in place; its workers must not run yet.
        seed (int): The run's.

    Returns:
        WorkerSeeds | None: Its ``epoch`` is to be set before each epoch; None
        where no workers persist.
    """
    if not loader.persistent_workers:
        return None
    if not isinstance(loader.worker_init_fn, WorkerSeeds):
        loader.worker_init_fn = WorkerSeeds(seed, get_rank(),
                                            loader.worker_init_fn)
    return loader.worker_init_fn
