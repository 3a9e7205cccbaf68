"""What the ranks of a distributed run have to agree on."""
from typing import Any, TypeVar

from mmengine.dist import all_gather_object, broadcast_object_list

from ..errors import UsageError

T = TypeVar('T')


def check_agreement(**values: Any) -> None:
    """Check that values are the same on all ranks; every rank must call it.

    Ranks that differ in what they are going to do wait for each other for
    good, or mix up what they exchange.

    Args:
        **values: What has to be equal, by name.

    Raises:
        UsageError: On every rank, naming the first value that differs.
    """
    everywhere = all_gather_object(values)
    for name, first in everywhere[0].items():
        for rank, theirs in enumerate(everywhere):
            if theirs[name] != first:
                raise UsageError(
                    f'the ranks differ in {name.replace("_", " ")}: {first!r} '
                    f'on rank 0, {theirs[name]!r} on rank {rank}. Start all '
                    'ranks with one config, resume them from the same '
                    'checkpoint, which all can read, and use a sampler that '
                    'gives them equally many batches')


def from_main_rank(value: T) -> T:
    """The first rank's value, on every rank; every rank must call it.

    Args:
        value (T): Anything that can be pickled.

    Returns:
        T: The first rank's.
    """
    values = [value]
    broadcast_object_list(values, src=0)
    return values[0]
