"""What the ranks of a distributed run have to agree on."""
import math
from typing import Any, TypeVar

import torch
from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_world_size,
)
from torch import nn

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


# Sums of parameters that differ by more, as a share of their size, are no
# rounding: this project's choice.
DRIFT = 1e-5


@torch.no_grad()
def check_weights(model: nn.Module) -> None:
    """Check that the ranks train one network; every rank must call it.

    Parameters that DDP does not exchange drift apart without a word.

    Args:
        model (nn.Module): Wrapped or not; nothing happens on one rank.

    Raises:
        UsageError: On every rank, if their parameters differ.
    """
    if get_world_size() < 2:
        return
    sums = torch.stack([
        torch.stack([p.float().sum(), p.float().abs().sum()])
        for p in model.parameters()
    ]).double().sum(0).tolist()
    everywhere = all_gather_object(sums)
    for rank, theirs in enumerate(everywhere):
        for first, other in zip(everywhere[0], theirs):
            if not abs(first - other) <= DRIFT * everywhere[0][1] and (
                    math.isfinite(first)):
                raise UsageError(
                    f'the parameters of rank {rank} have drifted apart from '
                    f'those of rank 0 (sums {other:.9g} and {first:.9g}): '
                    'something trains that DDP does not exchange, such as '
                    'parameters released by hand. Release them before the '
                    'model is wrapped, or start from the last checkpoint '
                    'without what did it')


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
