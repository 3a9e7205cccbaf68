"""What this package needs of torch.compiler, which torch 2.0 does not have.

Without it nothing is treated apart; torch 2.0's torch.compile fails on these
backbones anyway, whose stages are no plain ``nn.Sequential``.
"""
import torch


def _disable(function):
    return function


def _is_compiling() -> bool:
    return False


_compiler = getattr(torch, 'compiler', None)
disable = getattr(_compiler, 'disable', _disable)
is_compiling = getattr(_compiler, 'is_compiling', _is_compiling)
# Of torch 2.7 on; an older one's export is taken for a compilation.
is_exporting = getattr(_compiler, 'is_exporting', _is_compiling)
