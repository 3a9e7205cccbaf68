"""Triton kernels that are launched without Triton's own dispatch."""
import inspect
import os
from typing import Any, Callable, Dict

import triton

# Triton's own switch to run kernels on a CPU, for tests.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

# Triton reads several numbers at once if these arguments, the maps' addresses and
# the sizes, are multiples of 16.
_MAPS = ('x', 'value', 'values', 'retrieved', 'out', 'grad', 'of_sum', 'maps',
         'beside', 'of_x')
_SIZES = ('size', 'stride')

_compiled: Dict[tuple, Any] = {}


class Kernel:
    """A kernel that is compiled once per kind of arguments.

    At every launch Triton would inspect the arguments to find the compiled kernel
    that fits, which takes longer than the launch itself. Here the caller names the
    kind.

    Args:
        function (Callable): A function in Triton's language, with its constants
            last.
    """

    def __init__(self, function: Callable) -> None:
        # Constants, in capitals, are always compiled in: Triton needs no option.
        names = [name for name in inspect.signature(function).parameters
                 if not name.isupper()]
        self.name = function.__name__
        self._functions = {}
        for aligned in (False, True):
            rest = [n for n in names
                    if not aligned or n not in _MAPS + _SIZES]
            self._functions[aligned] = triton.jit(
                do_not_specialize=rest,
                do_not_specialize_on_alignment=rest)(function)

    def launch(self, programs: int, alike: tuple, arguments: tuple,
               constants: tuple, warps: int, across: int = 1) -> None:
        """Launch ``programs`` x ``across`` programs.

        Args:
            programs (int): The grid's first size.
            alike (tuple): The kind of arguments. Its first entry is True if the
                maps' addresses are multiples of 16 bytes and planes have a
                multiple of 16 numbers; the others tell apart devices, dtypes and
                missing tensors.
            arguments (tuple): All arguments but the constants.
            constants (tuple): The values of the ``tl.constexpr`` arguments.
            warps (int): The number of warps per program, of 32 threads each.
            across (int): The grid's second size. Defaults to 1.
        """
        grid = programs, across, 1
        key = self.name, alike, constants, warps
        compiled = _compiled.get(key)
        if compiled is not None:
            compiled[grid](*arguments, *constants)
            return
        compiled = self._functions[alike[0]][grid](
            *arguments, *constants, num_warps=warps)
        if not INTERPRETED:
            _compiled[key] = compiled
