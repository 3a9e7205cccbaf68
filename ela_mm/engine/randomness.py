"""Random numbers that depend only on the seed and the step.

mmengine seeds once, when a run starts. A resumed run is seeded anew, so from
then on its stochastic depth, dropout, box samplers and augmentation differ from
those of a run without an interruption. Here every epoch (of an epoch-based
loop) or batch (of an iteration-based loop) is seeded with the run's seed and
its own number. That needs nothing in the checkpoint and no communication, works
for any number of ranks, and does not depend on what a validation has drawn in
between, which a resumed run may not repeat. Saving the generators' states
instead would mean collecting them from every rank at each checkpoint; they
would not fit another number of ranks; and those of persistent workers cannot be
reached at all.
"""
import random
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, get_worker_info

# Purposes of seeds; each has its own stream.
EPOCH, BATCH, VALIDATION, WORKER, FETCH, HELD_OUT = range(6)


def seed_all(seed: int, *purpose: int) -> None:
    """Seed python, numpy and torch (all devices).

    Args:
        seed (int): Seed of the run on this rank; equal on all ranks unless
            ``randomness=dict(diff_rank_seed=True)``.
        purpose (int): Numbers >= 0 that identify the stream.
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
    """Draw from a separate stream within this context.

    Afterwards the generators of python, numpy and torch (CPU) continue where
    they were.

    Args:
        seed (int): Seed, as in :func:`seed_all`.
        purpose (int): Numbers that identify the stream, as in
            :func:`seed_all`.
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

    It replaces the loop's iterator. A hook would not do: on resuming, mmengine
    skips batches without calling any, and transforms that run in this process
    (``num_workers=0``) draw random numbers for them.

    Args:
        batches (Iterator): mmengine's endless iterator, at its start.
        seed (int): Seed of the run.
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
        """Skip batches; onedl-mmengine calls this when it resumes.

        The batches are loaded, as mmengine does. If the sampler jumped ahead
        instead, the generators of workers would lag behind those of an
        uninterrupted run.

        Args:
            num_iters (int): Number of batches that were trained before.
        """
        for _ in range(num_iters):
            next(self)


class WorkerSeeds:
    """Seeds the persistent workers of a data loader anew in each epoch.

    Other workers are started in each epoch and seeded by mmengine. Persistent
    workers keep their generators, whose states are lost if the process is
    interrupted. An object of this class replaces ``worker_init_fn``.

    Args:
        seed (int): Seed of the run.
        rank (int): Rank of this process; as in mmengine, ranks are seeded
            differently.
        init_fn (Callable, optional): The loader's own ``worker_init_fn``, to
            be called first.
    """

    def __init__(self, seed: int, rank: int,
                 init_fn: Optional[Callable[[int], None]]) -> None:
        self.seed = seed
        self.rank = rank
        self.init_fn = init_fn
        # Shared memory: written by this process, read by the workers.
        self.epoch = torch.zeros(1, dtype=torch.long).share_memory_()

    def __call__(self, worker: int) -> None:
        """Make the worker's copy of the dataset seed itself in each epoch."""
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

        # torch fetches batches through this method; no other code of ours runs
        # in a worker between two epochs.
        dataset.__getitems__ = fetch_seeded


class FetchSeeds:
    """Gives data loading without workers a random stream of its own.

    Otherwise transforms and network would draw from one stream, and two
    different networks with the same seed would see different crops.

    Args:
        dataset (Dataset): Dataset of a loader without workers, changed in
            place.
        seed (int): Seed of the run.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.seed = seed
        self.epoch = 0
        self.number = 0  # of the batch within the epoch
        fetch = getattr(dataset, '__getitems__', None)
        if hasattr(fetch, 'seeds'):  # of another run with the same dataset
            fetch = fetch.seeds.fetch
        self.fetch = fetch

        def fetch_seeded(indices: List[int]) -> List[Any]:
            with own_stream(self.seed, FETCH, self.epoch, self.number):
                self.number += 1
                return fetch(indices) if fetch else [
                    dataset[i] for i in indices
                ]

        fetch_seeded.seeds = self
        dataset.__getitems__ = fetch_seeded

    def begin(self, epoch: int) -> None:
        """Begin an epoch, counted from 0."""
        self.epoch, self.number = epoch, 0


def seed_workers(loader: DataLoader, seed: int) -> Optional[WorkerSeeds]:
    """Seed the persistent workers of a loader by seed and epoch.

    Args:
        loader (DataLoader): Loader whose workers have not started, changed in
            place.
        seed (int): Seed of the run.

    Returns:
        WorkerSeeds | None: Seeds of the workers, whose ``epoch`` has to be set
        before each epoch; None if the loader has no persistent workers.
    """
    if not loader.persistent_workers:
        return None
    if not isinstance(loader.worker_init_fn, WorkerSeeds):
        loader.worker_init_fn = WorkerSeeds(seed, get_rank(),
                                            loader.worker_init_fn)
    return loader.worker_init_fn
