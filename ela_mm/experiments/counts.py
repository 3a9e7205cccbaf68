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


class Beyond(NamedTuple):
    """What a step does more of an operation than another step.

    Attributes:
        name (str): Of the operation.
        kernels (Tuple[int, int]): Forward and backward.
        bytes (Tuple[int, int]): Forward and backward.
    """
    name: str
    kernels: Tuple[int, int]
    bytes: Tuple[int, int]


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

    def beyond(self, plain: 'Counts', top: int = 20) -> List[Beyond]:
        """Compare the operations with those of another step.

        Args:
            plain (Counts): Of the other step.
            top (int): Operations at most. Defaults to 20.

        Returns:
            List[Beyond]: Those that differ, most bytes first.
        """
        rows = []
        for name in set().union(*(part.kernels for part in self + plain)):
            kernels, sizes = (
                tuple(getattr(a, what)[name] - getattr(b, what)[name]
                      for a, b in zip(self, plain))
                for what in ('kernels', 'bytes'))
            if any(kernels + sizes):
                rows.append(Beyond(name, kernels, sizes))
        return sorted(
            rows, key=lambda row: (-sum(row.bytes), -sum(row.kernels), row.name)
        )[:top]


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
        str: Kernels and bytes of a step, and of forward and backward apart,
        with their ratios to plain.
    """
    plain = found['plain']
    lines = [
        '| variant | kernels | forward | backward | bytes | MB forward | '
        'MB backward |', '| --- | --- | --- | --- | --- | --- | --- |'
    ]
    for variant, counts in found.items():
        cells = [variant]
        for what, unit in (('kernels', 1), ('bytes', 1e6)):
            cells.append(f'{getattr(counts, what) / getattr(plain, what):.2f}x')
            for ours, theirs in zip(counts, plain):
                ours, theirs = (sum(getattr(part, what).values())
                                for part in (ours, theirs))
                cells.append(f'{ours / unit:.0f}' + (
                    f' ({ours / theirs:.2f}x)' if theirs else ''))
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def table_of_operations(found: Dict[str, Counts]) -> str:
    """Write, per variant, what its operations count more than plain's.

    Args:
        found (Dict[str, Counts]): By variant, ``'plain'`` among them.

    Returns:
        str: Markdown.
    """
    lines = ['| variant | operation | kernels | forward, backward | MB | '
             'forward, backward |', '| --- | --- | --- | --- | --- | --- |']
    for variant, counts in found.items():
        for name, kernels, sizes in counts.beyond(found['plain']):
            megabytes = [size / 1e6 for size in sizes]
            lines.append(
                f'| {variant} | `{name}` | {sum(kernels):+d} | '
                f'{kernels[0]:+d}, {kernels[1]:+d} | {sum(megabytes):+.0f} | '
                f'{megabytes[0]:+.0f}, {megabytes[1]:+.0f} |')
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
