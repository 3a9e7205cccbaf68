"""The parts of torch.compiler that this package needs, also for torch 2.0.

torch 2.0 lacks them, and their replacements do nothing: its torch.compile fails
on these backbones anyway, since their stages are no plain ``nn.Sequential``.
"""
import torch


def _disable(function):
    return function


def _is_compiling() -> bool:
    return False


_compiler = getattr(torch, 'compiler', None)
disable = getattr(_compiler, 'disable', _disable)
is_compiling = getattr(_compiler, 'is_compiling', _is_compiling)
# Exists from torch 2.7 on; in older versions an export counts as compiling.
is_exporting = getattr(_compiler, 'is_exporting', _is_compiling)
