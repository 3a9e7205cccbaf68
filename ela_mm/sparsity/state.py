"""State of sparse training in a checkpoint, which is checked when it is read."""
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor

from ..errors import UsageError, check_numbers
from .scheme import Tensors


def form_state(density: float, scheme: dict, masks: Tensors,
               updates: List[dict]) -> Dict[str, Any]:
    """Form the state of a training for its checkpoint.

    Args:
        density (float): Share of the weights that should exist.
        scheme (dict): ``type`` and parameters of the scheme.
        masks (Dict[str, Tensor]): Masks, by name of the parameter.
        updates (List[dict]): ``iter``, ``fraction`` and ``exchanged`` of each
            update so far.

    Returns:
        Dict[str, Any]: The state, of plain values and tensors on the CPU.
    """
    return dict(
        density=density,
        scheme=scheme,
        masks={name: mask.cpu() for name, mask in masks.items()},
        updates=updates)


def read_state(state: Any, density: float, scheme: dict,
               weights: Tensors) -> Tuple[Tensors, List[dict]]:
    """Read the masks of a run that is resumed.

    Args:
        state (Any): State that was read from the checkpoint, which
            :func:`form_state` formed if it is intact.
        density (float): Density of the run now.
        scheme (dict): Scheme of the run now.
        weights (Dict[str, Tensor]): Weights that the run masks now, by name.

    Returns:
        tuple: The masks, on their weights' devices, and the updates.

    Raises:
        UsageError: If the state cannot be read, or belongs to other settings.
    """
    try:
        masks, updates = state['masks'], [dict(x) for x in state['updates']]
        theirs = dict(
            density=state['density'],
            scheme=state['scheme'],
            layers={name: tuple(m.shape) for name, m in masks.items()})
        wrong = [name for name, mask in masks.items()
                 if not isinstance(mask, Tensor) or mask.dtype != torch.bool]
        if wrong:
            raise TypeError(f'the mask of {wrong[0]} is no bool tensor')
        if not isinstance(state['scheme'], dict):
            raise TypeError('the scheme is no dict')
        check_numbers(density=state['density'])
        for update in updates:
            check_numbers(**update)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            'the checkpoint has a state of SparseTrainingHook that cannot be '
            f'read ({type(error).__name__}: {error}): it was changed or is of '
            'a newer version; resume from another checkpoint, or start anew '
            'from its weights (load_from without resume)') from None
    ours = dict(
        density=density,
        scheme=scheme,
        layers={name: tuple(w.shape) for name, w in weights.items()})
    for name in ours:
        if ours[name] != theirs[name]:
            raise UsageError(
                f'the checkpoint to resume is of a run with another {name} of '
                f'SparseTrainingHook: {_short(theirs[name])}, now '
                f'{_short(ours[name])}. Resume with the settings that it was '
                'begun with, or start anew from its weights (load_from '
                'without resume)')
    return {name: masks[name].to(weight.device)
            for name, weight in weights.items()}, updates


def count_lost(masks: Tensors, weights: Tensors) -> Tuple[int, int]:
    """Count the weights that masks set to 0.

    Args:
        masks (Dict[str, Tensor]): Masks, by name.
        weights (Dict[str, Tensor]): Weights before they are masked, by name.

    Returns:
        tuple: Number of nonzero weights that are masked, and number of all
        nonzero weights.
    """
    exist = {name: weight.detach() != 0 for name, weight in weights.items()}
    lost = sum(int((exist[name] & ~mask).sum()) for name, mask in masks.items())
    return lost, sum(int(x.sum()) for x in exist.values())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f'{text[:200]} ...'
