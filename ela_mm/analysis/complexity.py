"""Parameters and multiply-accumulates of a network with layer attention."""
from typing import NamedTuple, Sequence

import torch
from torch import nn

from ..errors import UsageError
from ..models.layers import LayerAttention


class Complexity(NamedTuple):
    """What a network costs.

    Attributes:
        parameters (int): Trainable or not; skipped layers' are still there.
        macs (int): Multiply-accumulates of one forward pass: convolutions,
            linear layers and matrix products, and the weighted sum of layer
            attention, n C H W for a layer that retrieves from n values. Norms,
            activations and residual sums are left out, as is customary.
        retrieval_macs (int): The share of the weighted sums.
    """
    parameters: int
    macs: int
    retrieval_macs: int


@torch.no_grad()
def count(model: nn.Module, input_shape: Sequence[int]) -> Complexity:
    """Count parameters and multiply-accumulates.

    Args:
        model (nn.Module): Called with one tensor; set to eval mode meanwhile.
        input_shape (Sequence[int]): (C, H, W) of one picture.

    Returns:
        Complexity: For a batch of one.

    Raises:
        UsageError: With torch below 2.1, which has no counter.
    """
    try:
        from torch.utils.flop_counter import FlopCounterMode
    except ImportError:
        raise UsageError(f'counting operations needs torch >= 2.1, this is '
                         f'{torch.__version__}') from None
    retrieval = 0

    def add_retrieval(module, args, term) -> None:
        nonlocal retrieval
        memory = args[1]
        retrieval += len(memory.values) * term.numel()

    layers = [m for m in model.modules() if isinstance(m, LayerAttention)]
    handles = [m.register_forward_hook(add_retrieval) for m in layers]
    # The counter would see the weighted sums of a bank, and count them twice.
    handles += [m.register_forward_pre_hook(_leave_bank) for m in layers]
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *input_shape, device=device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    parameters = sum(p.numel() for p in model.parameters())
    # The counter counts a multiply-accumulate as two operations.
    return Complexity(parameters, counter.get_total_flops() // 2 + retrieval,
                      retrieval)


def _leave_bank(module, args) -> None:
    memory = args[1]
    if memory.bank is not None and not memory.values:
        memory.bank, memory.values = None, []
