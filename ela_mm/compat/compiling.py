"""What this package needs of torch.compiler, which torch 2.0 does not have.

Without it nothing is treated apart: torch.compile may then break its graph at a
layer's autograd functions, with equal results.
"""
import torch


def _disable(function):
    return function


def _is_compiling() -> bool:
    return False


_compiler = getattr(torch, 'compiler', None)
disable = getattr(_compiler, 'disable', _disable)
is_compiling = getattr(_compiler, 'is_compiling', _is_compiling)
