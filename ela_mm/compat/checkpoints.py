"""Lets mmengine's own checkpoints pass torch's ``weights_only`` check.

torch >= 2.6 loads with ``weights_only=True`` and refuses every type that is
not on its list. mmengine 0.10 saves its ``MessageHub`` in each checkpoint:
``HistoryBuffer`` objects, which hold numpy arrays and references to their own
statistics methods. Its ``OneCycleLR`` saves the function of its curve. Those
types, and nothing else, are added to torch's list; the check itself stays on,
so a checkpoint that runs code is still refused.
"""
from typing import Any, Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.utils import digit_version

# A pickled method is ``getattr(HistoryBuffer, 'mean')``. These are those that
# mmengine saves: statistics, and the two curves of OneCycleLR.
_METHODS = {
    HistoryBuffer: ('mean', 'max', 'min', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}

# A metric, which may be of any of these, is saved as the best score so far.
_NUMBERS = '?bhilqBHILQefd'


def restricted_getattr(obj: Any, name: str) -> Callable:
    """Replace ``getattr`` in unpickling; only methods that mmengine saves.

    The real ``getattr`` would let a checkpoint reach every function of the
    process.

    Args:
        obj (Any): Has to be one of the two classes itself.
        name (str): Name of a statistic of ``HistoryBuffer`` (``mean``,
            ``max``, ``min``, ``current``) or of a curve of
            ``OneCycleParamScheduler``.

    Returns:
        Callable: The method.

    Raises:
        ValueError: On any other object or name.
    """
    if not any(obj is owner and name in names
               for owner, names in _METHODS.items()):
        may = '; '.join(f'{", ".join(names)} of {owner.__name__}'
                        for owner, names in _METHODS.items())
        raise ValueError(
            f'the checkpoint asks for {name!r} of {obj!r}; only {may} may be '
            'loaded: this file was not written by mmengine, do not trust it')
    return getattr(obj, name)


def install() -> None:
    """Add mmengine's checkpoint types to torch's list of safe globals."""
    if digit_version(torch.__version__) < digit_version('2.6'):
        return  # has no check, or none whose list takes names
    # numpy 2 moved its core, and pickles have the name of their time.
    multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray
    allowed = [
        *_METHODS, np.ndarray, np.dtype,
        *(type(np.dtype(kind)) for kind in _NUMBERS),
        (restricted_getattr, 'builtins.getattr')
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
