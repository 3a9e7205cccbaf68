"""Lets mmengine's own checkpoints pass torch's ``weights_only`` check.

torch >= 2.6 loads with ``weights_only=True`` and refuses every type that is
not on its list. mmengine 0.10 saves its ``MessageHub`` in each checkpoint:
``HistoryBuffer`` objects, which hold numpy arrays and references to their own
statistics methods. Those types, and nothing else, are added to torch's list;
the check itself stays on, so a checkpoint that runs code is still refused.
"""
from typing import Any, Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

# A pickled method is ``getattr(HistoryBuffer, 'mean')``. These are the ones
# that HistoryBuffer registers as statistics.
_STATISTICS = ('mean', 'max', 'min', 'current')


def restricted_getattr(obj: Any, name: str) -> Callable:
    """Replace ``getattr`` in unpickling; only HistoryBuffer's statistics.

    The real ``getattr`` would let a checkpoint reach every function of the
    process.

    Args:
        obj (Any): Has to be the class ``HistoryBuffer`` itself.
        name (str): Name of a statistic: ``mean``, ``max``, ``min`` or
            ``current``.

    Returns:
        Callable: The method.

    Raises:
        ValueError: On any other object or name.
    """
    if obj is not HistoryBuffer or name not in _STATISTICS:
        raise ValueError(
            f'the checkpoint asks for {name!r} of {obj!r}; only the '
            f'statistics {_STATISTICS} of HistoryBuffer may be loaded: this '
            'file was not written by mmengine, do not trust it')
    return getattr(obj, name)


def install() -> None:
    """Add mmengine's checkpoint types to torch's list of safe globals."""
    if digit_version(torch.__version__) < digit_version('2.6'):
        return  # has no check, or none whose list takes names
    # numpy 2 moved its core, and pickles have the name of their time.
    multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray
    allowed = [
        HistoryBuffer, np.ndarray, np.dtype,
        type(np.dtype(np.float64)),
        type(np.dtype(np.int64)), (restricted_getattr, 'builtins.getattr')
    ]
    for function in (multiarray._reconstruct, multiarray.scalar):
        for module in ('numpy._core.multiarray', 'numpy.core.multiarray'):
            allowed.append((function, f'{module}.{function.__name__}'))
    # As pairs with names: onedl-mmengine removes bare types from the list again
    # after it has loaded a checkpoint.
    torch.serialization.add_safe_globals([
        entry if isinstance(entry, tuple) else
        (entry, f'{entry.__module__}.{entry.__qualname__}')
        for entry in allowed
    ])
