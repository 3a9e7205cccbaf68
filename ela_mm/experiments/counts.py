"""Counts the kernels that a step starts and the bytes that it moves.

Unlike times, these numbers are the same on every machine. Every operation that
reaches a backend counts as one kernel, and moves the bytes of its tensor
arguments and results. Views and new, unwritten tensors do not count. What an
operation does internally, and what caches save, is not seen.
"""
from collections import Counter
from typing import Dict, List, NamedTuple, Tuple

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from .benchmark import Conditions, make_forward

# Operations that share storage with an argument, against their schema.
_VIEWS = ('aten::_unsafe_view', 'aten::_reshape_alias')


class Operations(TorchDispatchMode):
    """Counts the operations that run within this context.

    Attributes:
        kernels (Counter): Number of kernels by name of the operation.
        bytes (Counter): Number of bytes by name of the operation. An argument
            that is changed in place counts as read and written; a broadcast
            dimension counts once.
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
    """How much more of an operation a step has than another step.

    Attributes:
        name (str): Name of the operation.
        kernels (Tuple[int, int]): Additional kernels, forward and backward.
        bytes (Tuple[int, int]): Additional bytes, forward and backward.
    """
    name: str
    kernels: Tuple[int, int]
    bytes: Tuple[int, int]


class Counts(NamedTuple):
    """Counted operations of a step.

    Attributes:
        forward (Operations): Operations of the forward pass.
        backward (Operations): Operations of the backward pass; empty in
            inference.
    """
    forward: Operations
    backward: Operations

    @property
    def kernels(self) -> int:
        """Number of kernels, forward and backward."""
        return sum(sum(part.kernels.values()) for part in self)

    @property
    def bytes(self) -> int:
        """Number of bytes, forward and backward."""
        return sum(sum(part.bytes.values()) for part in self)

    def beyond(self, plain: 'Counts', top: int = 20) -> List[Beyond]:
        """Compare the operations with those of another step.

        Args:
            plain (Counts): Counts of the other step.
            top (int): Largest number of operations to return. Defaults to 20.

        Returns:
            List[Beyond]: Operations that differ, those with most bytes first.
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
        backbone (nn.Module): Backbone, which is moved to the device and set to
            the mode of the conditions.
        conditions (Conditions): Conditions of the step. On the device
            ``'meta'`` nothing is computed, and code that depends on the device
            runs as on a GPU.

    Returns:
        Counts: Counts of the step.
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
    """Write counts as a Markdown table, with a row for each variant.

    Args:
        found (Dict[str, Counts]): Counts by variant, including ``'plain'``.

    Returns:
        str: The table: kernels and bytes of a step relative to plain, then of
        forward and backward separately.
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
    """Write a Markdown table of the operations that variants add to plain.

    Args:
        found (Dict[str, Counts]): Counts by variant, including ``'plain'``.

    Returns:
        str: The table.
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
    """Return the bytes of a tensor, with broadcast dimensions counted once."""
    numbers = 1
    for size, stride in zip(x.shape, x.stride()):
        numbers *= size if stride or not size else 1
    return numbers * x.element_size()
