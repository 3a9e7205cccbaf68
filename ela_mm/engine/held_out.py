"""Holds images out of the training set, to measure the network's loss on."""
import copy
from typing import Any, Callable, Iterator, List, Sequence, Tuple

import numpy as np
from mmengine.dataset import (
    BaseDataset,
    ClassBalancedDataset,
    ConcatDataset,
    RepeatDataset,
)
from mmengine.runner import IterBasedTrainLoop
from torch import nn
from torch.utils.data import Dataset

from ..errors import UsageError
from .randomness import HELD_OUT, own_stream
from .ranks import unwrapped
from .trial import Trial

# Dataset wrappers that return the images of the wrapped dataset as they are,
# and wrappers that apply transforms of their own, such as mixing images.
_PLAIN = (RepeatDataset, ClassBalancedDataset)
_PLAIN_BY_NAME = ('KFoldDataset', )
_MIXING_BY_NAME = ('MultiImageMixDataset', )


class HeldOut:
    """Images that are held out of a training set, evenly spaced in it.

    If the training asks for one of them, it gets the next image that is not
    held out. So the set keeps its length, and samplers, schedules and ranks
    are not affected.

    Args:
        runner (Runner): Runner whose workers have not loaded anything yet. Its
            training set is changed in place, equally on all ranks.
        images (int): Number of images to hold out.

    Attributes:
        sizes (List[int]): Number of images in each batch.

    Raises:
        UsageError: If the set is too small, or if its type does not allow to
            hold out images.
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
            # Its workers have started with the unchanged set: start new ones.
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
        """Prepare to measure a network's loss on these images.

        Args:
            model (nn.Module): Model, in its DDP wrapper or not.
            candidates (List[str]): Names of the active layers to choose from.
            skip (str): How layers are skipped, ``'layer'`` or ``'retrieval'``.

        Returns:
            Trial: The trial; nothing is computed yet.
        """
        return Trial(unwrapped(model), self, self.sizes, candidates, skip)


def _hold_out(dataset: Dataset, images: int) -> List[Dataset]:
    """Take images out of a dataset in place; return them as datasets."""
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
        # A copy: some transforms cache images, to mix them with later ones.
        part.pipeline = copy.deepcopy(base.pipeline)
        parts.append(loading(part))
        base.get_subset_(_without(len(base), held))
    return parts


def _without(size: int, held: Sequence[int]) -> List[int]:
    """List all positions, with the next free one in place of those held out."""
    kept = np.setdiff1d(np.arange(size), held)
    if not len(kept):
        raise UsageError(f'all {size} pictures of a training set would be held '
                         'out: lower images of the criterion')
    after = np.searchsorted(kept, np.arange(size)).clip(max=len(kept) - 1)
    return kept[after].tolist()


def _bases(dataset: Dataset) -> Iterator[Tuple[BaseDataset, Callable]]:
    """Yield the innermost datasets, each with a function that wraps a part.

    The function puts the wrappers of the training around a part of the dataset.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, BaseDataset):
        yield dataset, lambda part: part
    elif isinstance(dataset, ConcatDataset):
        for member in dataset.datasets:
            yield from _bases(member)
    elif isinstance(dataset, _PLAIN) or kind in _PLAIN_BY_NAME:
        yield from _bases(dataset.dataset)
    elif kind == '_SlicedDataset':  # Runner's, for num_batch_per_epoch
        yield from _bases(dataset._dataset)
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
    """Copy a wrapper that mixes images, around a part of its dataset."""
    other = copy.copy(wrapper)
    other.dataset, other.num_samples = part, len(part)
    other.pipeline = copy.deepcopy(wrapper.pipeline)
    return other
