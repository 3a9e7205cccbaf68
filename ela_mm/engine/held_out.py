"""Pictures of the training set that a network is tried on, not trained on."""
import copy
from typing import Any, Callable, Iterator, List, Sequence, Tuple

import numpy as np
from mmengine.dataset import (
    BaseDataset,
    ClassBalancedDataset,
    ConcatDataset,
    RepeatDataset,
)
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop
from torch import nn
from torch.utils.data import Dataset

from ..errors import UsageError
from .randomness import HELD_OUT, own_stream
from .trial import Trial

# Wrappers that load the pictures of the dataset in them, one by one: as they
# are, or with transforms of their own.
_PLAIN = (RepeatDataset, ClassBalancedDataset)
_PLAIN_BY_NAME = ('KFoldDataset', )
_MIXING_BY_NAME = ('MultiImageMixDataset', )


class HeldOut:
    """Pictures of a training set that are held out of it.

    They are evenly spaced in the set. Where the training asks for one of them,
    it gets the next that is not held out: the set keeps its length, so that
    samplers, schedules and ranks go on as they were.

    Args:
        runner (Runner): Before its workers load anything. Its training set is
            changed in place, alike on all ranks.
        images (int): How many.

    Attributes:
        sizes (List[int]): Pictures of each batch.

    Raises:
        UsageError: If the set is too small, or no picture can be held out of
            such a dataset.
    """

    def __init__(self, runner, images: int) -> None:
        loader = runner.train_dataloader
        self.loader = loader
        self._seed = runner.seed
        self._parts = _hold_out(loader.dataset, images)
        size = getattr(loader.batch_sampler, 'batch_size', None) or 1
        count = sum(map(len, self._parts))
        self._batches = [range(i, min(i + size, count))
                         for i in range(0, count, size)]
        self.sizes = list(map(len, self._batches))
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop) and loader.num_workers:
            # Its workers have started, with the set as it was.
            loader._iterator = None
            loop.dataloader_iterator = type(loop.dataloader_iterator)(loader)

    def __iter__(self) -> Iterator[Any]:
        """Load the batches, with the same crops and flips each time."""
        places = [(part, i) for part in self._parts for i in range(len(part))]
        for number, batch in enumerate(self._batches):
            with own_stream(self._seed, HELD_OUT, number):
                samples = [part[i] for part, i in (places[j] for j in batch)]
            yield self.loader.collate_fn(samples)

    def trial(self, model: nn.Module, candidates: List[str],
              skip: str) -> Trial:
        """Prepare to try a network on them.

        Args:
            model (nn.Module): Wrapped or not.
            candidates (List[str]): Names of active layers.
            skip (str): How they are skipped.

        Returns:
            Trial: Nothing is computed yet.
        """
        module = model.module if is_model_wrapper(model) else model
        return Trial(module, self, self.sizes, candidates, skip)


def _hold_out(dataset: Dataset, images: int) -> List[Dataset]:
    """Take pictures out of a set in place; return them as sets."""
    bases = list(_bases(dataset))
    sizes = [len(base) for base, _ in bases]
    total = sum(sizes)
    if 2 * images > total:
        raise UsageError(
            f'images={images} are to be held out of a training set of {total}: '
            f'expected {total // 2} at most; lower images of the criterion')
    positions = (np.arange(images) * total) // images
    parts = []
    for (base, loading), start in zip(bases, np.cumsum([0, *sizes])):
        held = positions[(positions >= start)
                         & (positions < start + len(base))] - start
        if not len(held):
            continue
        part = copy.copy(base)
        part.get_subset_(held.tolist())
        # Some transforms keep pictures, to mix them with later ones.
        part.pipeline = copy.deepcopy(base.pipeline)
        parts.append(loading(part))
        base.get_subset_(_without(len(base), held))
    return parts


def _without(size: int, held: Sequence[int]) -> List[int]:
    """Positions in a set, with the next in place of those held out."""
    kept = np.setdiff1d(np.arange(size), held)
    if not len(kept):
        raise UsageError(f'all {size} pictures of a training set would be held '
                         'out: lower images of the criterion')
    after = np.searchsorted(kept, np.arange(size)).clip(max=len(kept) - 1)
    return kept[after].tolist()


def _bases(dataset: Dataset) -> Iterator[Tuple[BaseDataset, Callable]]:
    """The innermost sets, each with what loads a part of it as training does."""
    kind = type(dataset).__name__
    if isinstance(dataset, BaseDataset):
        yield dataset, lambda part: part
    elif isinstance(dataset, ConcatDataset):
        for member in dataset.datasets:
            yield from _bases(member)
    elif isinstance(dataset, _PLAIN) or kind in _PLAIN_BY_NAME:
        yield from _bases(dataset.dataset)
    elif kind in _MIXING_BY_NAME:
        for base, loading in _bases(dataset.dataset):
            yield base, lambda part, loading=loading: _mixing(
                dataset, loading(part))
    else:
        raise UsageError(
            f'the criterion holds pictures out of the training set, which a '
            f'{kind} does not offer: expected a dataset of mmengine '
            '(BaseDataset, or a wrapper of one such as RepeatDataset or '
            'ConcatDataset)')


def _mixing(wrapper: Dataset, part: Dataset) -> Dataset:
    """A wrapper that mixes pictures, of a part of its set."""
    other = copy.copy(wrapper)
    other.dataset, other.num_samples = part, len(part)
    other.pipeline = copy.deepcopy(wrapper.pipeline)
    return other
