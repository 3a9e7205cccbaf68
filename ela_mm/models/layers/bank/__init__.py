"""The fast form of layer attention: buffers, and handwritten gradients.

:class:`~.keys.KeyBank` holds the keys of a stage, :class:`~.values.ValueBank`
its values. :mod:`ela_mm.models.layers.layer_attention` computes the same in
plain operations; tests compare results and gradients of the two in float64.
"""
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ....compat.compiling import is_compiling

_OFF: ContextVar[bool] = ContextVar('ela_mm_bank_off', default=False)


@contextmanager
def without_bank() -> Iterator[None]:
    """Make stages keep keys and values in lists within this context.

    They then use PyTorch's operations only, which tools that count or trace
    operations need. Other threads are not affected.
    """
    token = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(token)


def can_bank(layers: Iterable[nn.Module], x: Tensor) -> bool:
    """Tell whether a stage may keep keys and values in buffers.

    Args:
        layers (Iterable[LayerAttention]): The layers that will write a key and
            a value.
        x (Tensor): (B, C, H, W), the stage's input.

    Returns:
        bool: False while a compiler or exporter traces the network (it fuses
        the plain operations itself); under function transforms
        (``torch.func``) and forward-mode differentiation (they do not support
        functions with a handwritten gradient); for an empty batch; and where
        a layer's ``can_bank`` is false, since a hook, say, expects a call to a
        module that the buffers bypass.
    """
    if is_compiling() or torch.jit.is_tracing() or _OFF.get():
        return False
    if _transformed() or not x.numel():
        return False
    return all(layer.can_bank() for layer in layers)


def _transformed() -> bool:
    functorch = getattr(torch._C, '_functorch', None)  # torch 2.0 has it too
    stack = getattr(functorch, 'peek_interpreter_stack', None)
    return (stack is not None and stack() is not None) or (
        forward_ad._current_level >= 0)
