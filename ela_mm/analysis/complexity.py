"""Counts parameters and multiply-accumulates of networks."""
from collections import defaultdict
from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

import torch
from torch import nn

from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import ela_backbones
from ..models.layers import LayerAttention
from ..models.layers.bank import without_bank


class Complexity(NamedTuple):
    """Parameters and multiply-accumulates of a network.

    Attributes:
        parameters (int): Number of all parameters, frozen ones and those of
            skipped layers included.
        macs (int): Multiply-accumulates of one forward pass: convolutions,
            linear layers, matrix products, and the weighted sums of layer
            attention, n C H W for a layer that retrieves from n values. Norms,
            activations and residual sums are left out, as usual.
        retrieval_macs (int): Part of ``macs`` due to these weighted sums.
    """
    parameters: int
    macs: int
    retrieval_macs: int


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> Complexity:
    """Count parameters and multiply-accumulates.

    Args:
        model (nn.Module): Network that takes one tensor; it is counted in eval
            mode.
        input_shape (Sequence[int]): (C, H, W) of one image.

    Returns:
        Complexity: Numbers for a batch of one image.

    Raises:
        UsageError: With torch below 2.1, which has no counter.
    """
    counted, retrieval = _count(model, input_shape)
    parameters = sum(p.numel() for p in model.parameters())
    return Complexity(parameters, counted['Global'] + sum(retrieval.values()),
                      sum(retrieval.values()))


def count_by_module(model: nn.Module,
                    input_shape: Sequence[int]) -> Dict[str, int]:
    """Count multiply-accumulates of each module.

    Args:
        model (nn.Module): Network, as in :func:`count_macs`.
        input_shape (Sequence[int]): (C, H, W) of one image.

    Returns:
        Dict[str, int]: Numbers by the name in ``named_modules``, ``''`` for
        the whole model. A module includes its children; modules without any
        multiply-accumulates are left out.

    Raises:
        UsageError: With torch below 2.1, which has no counter.
    """
    counted, retrieval = _count(model, input_shape)
    root = type(model).__name__
    macs = {'': counted.pop('Global')}
    for path, number in counted.items():
        if path.startswith(root + '.'):
            macs[path[len(root) + 1:]] = number
    for path, number in retrieval.items():
        for name in _ancestors(path):
            macs[name] = macs.get(name, 0) + number
    return macs


def _ancestors(path: str) -> List[str]:
    """List the names of the model, of the modules around it, and its own."""
    parts = path.split('.')
    return ['.'.join(parts[:n]) for n in range(len(parts) + 1)]


@torch.no_grad()
def _count(model: nn.Module, input_shape: Sequence[int]) -> Tuple[dict, dict]:
    """Count by torch's module paths; and weighted sums by module names."""
    try:
        from torch.utils.flop_counter import FlopCounterMode
    except ImportError:
        raise UsageError(f'counting operations needs torch >= 2.1, this is '
                         f'{torch.__version__}') from None
    retrieval = defaultdict(int)

    def watch(name: str) -> Callable:

        def add_retrieval(module, args, term) -> None:
            retrieval[name] += len(args[1].values) * term.numel()

        return add_retrieval

    skipped = {
        layer.module
        for backbone in ela_backbones(model).values()
        for layer in backbone.attention_layers if not layer.active
    }
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LayerAttention) and module not in skipped
    }
    handles = [m.register_forward_hook(watch(n)) for n, m in layers.items()]
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        # Without a bank: the counter would count its weighted sums as well.
        with without_bank(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *input_shape, device=device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    # torch counts a multiply-accumulate as two operations.
    counted = {
        path: sum(operations.values()) // 2
        for path, operations in counter.get_flop_counts().items()
    }
    return counted, retrieval
