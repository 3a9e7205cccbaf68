"""Checks what the ranks of a distributed run have to agree on."""
from typing import Any, TypeVar

import torch
from mmengine.dist import (
    all_gather_object,
    all_reduce,
    broadcast_object_list,
    get_world_size,
)
from mmengine.model import is_model_wrapper
from torch import nn

from ..errors import UsageError

T = TypeVar('T')


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of a DDP wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def check_agreement(**values: Any) -> None:
    """Check that values are equal on all ranks; every rank must call this.

    Ranks that do different things would hang, or mix up what they exchange.

    Args:
        **values: Values that have to be equal, by name.

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


# Number of elements of each parameter that are compared, and the difference,
# relative to the largest of them, above which it is not rounding: this
# project's choice.
COMPARED = 16
DRIFT = 1e-4


@torch.no_grad()
def check_weights(model: nn.Module) -> None:
    """Check that ranks have equal parameters; every rank must call this.

    Parameters that DDP does not exchange would silently drift apart.

    Args:
        model (nn.Module): Model, in its DDP wrapper or not.

    Raises:
        UsageError: On every rank, if a parameter differs between them.
    """
    if get_world_size() < 2:
        return
    ignored = getattr(model, 'parameters_to_ignore', ())
    model = unwrapped(model)
    parameters = {
        name: p for name, p in model.named_parameters()
        if p.numel() and name not in ignored
    }
    # Evenly spaced elements. NaN becomes a number, so that it has to be on all
    # ranks alike.
    samples = [
        p.flatten()[::-(-p.numel() // COMPARED)].double().nan_to_num(1e30)
        for p in parameters.values()
    ]
    numbers = torch.cat(samples)
    extremes = torch.stack([numbers, -numbers])
    all_reduce(extremes, 'max')
    highest, lowest = extremes.cpu()
    sizes = [len(sample) for sample in samples]
    for name, high, low in zip(parameters, highest.split(sizes),
                               (-lowest).split(sizes)):
        apart = float((high - low).max())
        size = float(torch.maximum(high.abs(), low.abs()).max())
        if apart > DRIFT * size:
            raise UsageError(
                f'the ranks no longer train one network: {name} differs by '
                f'{apart:.3g} between them, and is {size:.3g} at most. '
                'Something trains that DDP does not exchange, such as '
                'parameters that were unfrozen by hand on some ranks. Remove '
                'the cause, and resume from the last checkpoint')


def from_main_rank(value: T) -> T:
    """Return the value of rank 0 on every rank; every rank must call this.

    Args:
        value (T): Value that can be pickled; ignored on other ranks.

    Returns:
        T: The value of rank 0.
    """
    values = [value]
    broadcast_object_list(values, src=0)
    return values[0]
