"""Takes some samples of a set, evenly spaced in it."""
from collections.abc import Mapping
from typing import Any, Iterator, Optional, Sized

from torch.utils.data import Sampler

from ..config_types import type_name


def in_order(loader: Any) -> bool:
    """Return whether a loader takes its set from the first to the last sample.

    Args:
        loader (Any): Config of a loader, or a loader.

    Returns:
        bool: False for a built loader, and for a sampler other than MMEngine's
        ``DefaultSampler``, which may rely on the order of what it is given.
    """
    sampler = loader.get('sampler') if isinstance(loader, Mapping) else None
    return (isinstance(sampler, Mapping) and not sampler.get('shuffle', True)
            and type_name(sampler) == 'DefaultSampler')


class EvenlySpaced(Sampler):
    """Samples some of a set, evenly spaced: many sets are sorted by class.

    Args:
        dataset (Sized): The set.
        images (int): Number of samples; all if the set has fewer.
        seed (int, optional): Not used; MMEngine gives it to all samplers.
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
