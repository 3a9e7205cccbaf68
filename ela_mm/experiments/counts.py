"""Kernels started and bytes moved by a step: a cost that can be counted.

Times drift with a machine; these are the same everywhere. Every operation
that reaches a backend is one kernel, and moves the bytes of its tensor
arguments and results. Views and new, unwritten tensors are neither. What an
operation does within itself is not seen, and neither is what a cache holds.
"""
from collections import Counter
from typing import Dict, List, NamedTuple, Tuple

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from .benchmark import Conditions, make_forward

# That share storage with an argument though their schema does not say so.
_VIEWS = ('aten::_unsafe_view', 'aten::_reshape_alias')


class Operations(TorchDispatchMode):
    """Counts the operations that run within this context.

    Attributes:
        kernels (Counter): By an operation's name.
        bytes (Counter): By an operation's name. An argument that is written in
            place is read and written; a broadcast dimension counts once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter = Counter()
        self.bytes: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not _is_free(func):
            name = func._schema.name.split('::')[-1]
            self.kernels[name] += 1
            self.bytes[name] += sum(
                _bytes_of(x) for x in tree_flatten((args, kwargs, result))[0]
                if isinstance(x, Tensor))
        return result


class Counts(NamedTuple):
    """What a step counts to.

    Attributes:
        forward (Operations): Of the forward pass.
        backward (Operations): Of the backward pass; empty in inference.
    """
    forward: Operations
    backward: Operations

    @property
    def kernels(self) -> int:
        """Kernels of both."""
        return sum(sum(part.kernels.values()) for part in self)

    @property
    def bytes(self) -> int:
        """Bytes of both."""
        return sum(sum(part.bytes.values()) for part in self)

    def beyond(self, plain: 'Counts',
               top: int = 20) -> List[Tuple[str, int, int]]:
        """Compare the operations with those of another step.

        Args:
            plain (Counts): Of the other step.
            top (int): Operations at most. Defaults to 20.

        Returns:
            list: Name, kernels and bytes more than there; most bytes first.
        """
        ours, theirs = (
            [sum((getattr(part, what) for part in counts), Counter())
             for what in ('kernels', 'bytes')] for counts in (self, plain))
        rows = [(name, *(a[name] - b[name] for a, b in zip(ours, theirs)))
                for name in ours[0].keys() | theirs[0].keys()]
        rows = [row for row in rows if row[1] or row[2]]
        return sorted(rows, key=lambda row: (-row[2], -row[1], row[0]))[:top]


def count(backbone: nn.Module, conditions: Conditions) -> Counts:
    """Count one step.

    Args:
        backbone (nn.Module): Moved to the device, set to its mode.
        conditions (Conditions): Of the step. On the device ``'meta'`` nothing
            is computed, and what depends on the device runs as on a GPU.

    Returns:
        Counts: Of the step.
    """
    forward = make_forward(backbone, conditions)
    counts = Counts(Operations(), Operations())
    with counts.forward:
        loss = forward()
    if conditions.training:
        with counts.backward:
            loss.backward()
        backbone.zero_grad(set_to_none=True)
    return counts


def table(found: Dict[str, Counts]) -> str:
    """Write one row per variant as Markdown.

    Args:
        found (Dict[str, Counts]): By variant, ``'plain'`` among them.

    Returns:
        str: Kernels and bytes, forward, backward and as ratios to plain.
    """
    plain = found['plain']
    lines = [
        '| variant | kernels | forward, backward | bytes | MB forward, '
        'backward |', '| --- | --- | --- | --- | --- |'
    ]
    for variant, counts in found.items():
        kernels = [sum(part.kernels.values()) for part in counts]
        megabytes = [sum(part.bytes.values()) / 1e6 for part in counts]
        lines.append(
            f'| {variant} | {counts.kernels / plain.kernels:.2f}x | '
            f'{kernels[0]}, {kernels[1]} | '
            f'{counts.bytes / plain.bytes:.2f}x | '
            f'{megabytes[0]:.0f}, {megabytes[1]:.0f} |')
    return '\n'.join(lines) + '\n'


def table_of_operations(found: Dict[str, Counts]) -> str:
    """Write, per variant, what its operations count more than plain's.

    Args:
        found (Dict[str, Counts]): By variant, ``'plain'`` among them.

    Returns:
        str: Markdown.
    """
    lines = ['| variant | operation | kernels | MB |', '| --- | --- | --- | --- |']
    for variant, counts in found.items():
        for name, kernels, size in counts.beyond(found['plain']):
            lines.append(
                f'| {variant} | `{name}` | {kernels:+d} | {size / 1e6:+.0f} |')
    return '\n'.join(lines) + '\n'


def _is_free(func) -> bool:
    schema = func._schema
    is_view = schema.name in _VIEWS or any(
        r.alias_info is not None and not r.alias_info.is_write
        for r in schema.returns)
    return is_view or 'empty' in schema.name


def _bytes_of(x: Tensor) -> int:
    """Of the numbers that a tensor shows, each counted once."""
    numbers = 1
    for size, stride in zip(x.shape, x.stride()):
        numbers *= size if stride or not size else 1
    return numbers * x.element_size()
