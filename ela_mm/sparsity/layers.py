"""Selects the weights of a network that are masked."""
from typing import Dict, Sequence, Tuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..errors import UsageError


def sparse_layers(
    model: nn.Module, leave_out: Sequence[str] = ()
) -> Tuple[Dict[str, nn.Parameter], Dict[str, str]]:
    """Find the weights that sparse training masks.

    These are the weights of torch's convolutions and linear layers. Norms,
    biases and other parameters are never masked. Neither are kernels with one
    input and one output channel, such as those for queries and keys of layer
    attention, which have only three to seven elements.

    Args:
        model (nn.Module): Model, or a part of one.
        leave_out (Sequence[str]): Names of modules in the model that stay
            dense, with all modules below them. Defaults to ().

    Returns:
        tuple: Dict of the weights to mask, by their name in the state dict; and
        dict of the reasons why other weights stay dense, by name.

    Raises:
        UsageError: If a name is not in the model, or no weight is left.
    """
    if isinstance(leave_out, str) or not isinstance(leave_out, Sequence):
        raise UsageError(f'leave_out={leave_out!r}: expected a list of names')
    modules = dict(model.named_modules())
    for name in leave_out:
        if name not in modules:
            raise UsageError(
                f'leave_out: {type(model).__name__} has no module {name!r}; '
                'expected names as in its named_modules()')
    weights, dense = {}, {}
    for name, module in modules.items():
        if not isinstance(module, (_ConvNd, nn.Linear)):
            continue
        weight = f'{name}.weight' if name else 'weight'
        if module.weight.shape[:2] == (1, 1):
            dense[weight] = 'one channel'
        elif not module.weight.requires_grad:
            dense[weight] = 'frozen'
        elif any(f'{name}.'.startswith(f'{x}.') for x in leave_out):
            dense[weight] = 'left out'
        else:
            weights[weight] = module.weight
    if not weights:
        raise UsageError(
            f'{type(model).__name__} has no convolution or linear layer to '
            'make sparse: expected at least one that is neither frozen nor '
            'left out')
    return weights, dense
