"""A sampler of images that are evenly spaced in a set."""
from collections.abc import Mapping
from typing import Any, Iterator, Optional, Sized

from torch.utils.data import Sampler

from ..config_types import type_name


def in_order(loader: Any) -> bool:
    """Return whether a loader's config takes its set from first to last sample.

    Args:
        loader (Any): Config of a loader, or a loader.

    Returns:
        bool: True for MMEngine's ``DefaultSampler`` without shuffling. False
        for a built loader, and for other samplers, which may choose or order
        samples in their own way.
    """
    sampler = loader.get('sampler') if isinstance(loader, Mapping) else None
    return (isinstance(sampler, Mapping) and not sampler.get('shuffle', True)
            and type_name(sampler) == 'DefaultSampler')


class EvenlySpaced(Sampler):
    """Chooses samples that are evenly spaced in a set.

    Many sets are sorted by class, so that the first samples are of one class.

    Args:
        dataset (Sized): Set to choose from.
        images (int): Number of samples; all if the set has fewer.
        seed (int, optional): Not used; MMEngine passes it to all samplers.
    """

    def __init__(self, dataset: Sized, images: int,
                 seed: Optional[int] = None) -> None:
        total = len(dataset)
        count = min(images, total)
        self.indices = [i * total // count for i in range(count)]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
