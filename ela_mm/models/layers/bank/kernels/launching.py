"""How a kernel is compiled, and launched without asking what it needs anew."""
import inspect
import os
from typing import Any, Callable, Dict

import triton

# Triton's own switch, to run on a CPU: for tests.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

# Maps, of which several numbers are read at once where that is possible; and
# what has to be a multiple of 16 for it.
_MAPS = ('x', 'value', 'values', 'retrieved', 'out', 'grad', 'of_sum', 'maps',
         'beside', 'of_x')
_SIZES = ('size', 'stride')

_compiled: Dict[tuple, Any] = {}


class Kernel:
    """A kernel that is compiled once for all that is launched alike.

    Triton finds out at every launch what its arguments have in common with
    earlier ones, which takes longer than the launch. Here the caller says it.

    Args:
        function (Callable): Of Triton's language, its constants last.
    """

    def __init__(self, function: Callable) -> None:
        # Constants are what a kernel is compiled for anyhow.
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
        """Run so many programs, times those across.

        Args:
            programs (int): Of the grid.
            alike (tuple): Says which tensors there are and of what dtypes;
                first, whether maps lie at multiples of 16 bytes and planes have
                a multiple of 16 numbers.
            arguments (tuple): All but the constants.
            constants (tuple): Of ``tl.constexpr``.
            warps (int): Of 32 threads each.
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
