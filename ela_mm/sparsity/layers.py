"""Which weights of a network are masked."""
from typing import Dict, Sequence, Tuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..errors import UsageError


def sparse_layers(
    model: nn.Module, leave_out: Sequence[str] = ()
) -> Tuple[Dict[str, nn.Parameter], Dict[str, str]]:
    """Find the weights that sparse training masks.

    These are the weights of torch's convolutions and linear layers. Norms,
    biases and whatever else a model holds are never masked, nor are kernels
    with one channel in and one out, such as those that form the queries and
    keys of layer attention: of their three to seven numbers each one counts.

    Args:
        model (nn.Module): Whole or a part.
        leave_out (Sequence[str]): Names of modules, as in the model; these and
            what is below them stay dense. Defaults to ().

    Returns:
        tuple: Name of each weight, as in the state dict, to the weight; and
        name of each one that stays dense to why.

    Raises:
        UsageError: If a name is not in the model, or no weight is left.
    """
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
