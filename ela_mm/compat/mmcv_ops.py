"""Provides ``mmcv._ext`` without a compiler, so that mmcv-lite is enough.

The compiled ``mmcv`` has no wheels for current torch, and building it takes
the better part of an hour. The ops that the hosts need are in
:mod:`ela_mm.compat.ops`. A finder at the *end* of ``sys.meta_path`` provides
them under the extension's name. If a compiled mmcv is installed, the ordinary
finders find that first. Other ops raise NotImplementedError when called.
"""
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any, Callable, Optional

from .ops import *  # noqa: F401,F403  where they used to be
from .ops import OPS

_NAME = 'mmcv._ext'


def get_compiler_version() -> str:
    """Return a text for mmcv's environment report."""
    return 'none (ops from torchvision)'


def get_compiling_cuda_version() -> str:
    """Return a text for mmcv's environment report."""
    return 'none (ops from torchvision)'


def _missing(op: str) -> Callable:

    def raise_missing(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f'mmcv op {op!r} needs the compiled mmcv: mmcv-lite has no ops '
            f'and ela_mm adds {", ".join(OPS)} only. Install the full package '
            '("pip uninstall mmcv-lite", then "mim install '
            '\'mmcv>=2.0,<2.2\'"), or leave out what uses this op')

    raise_missing.__name__ = op
    return raise_missing


class _ExtFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``mmcv._ext`` if no other finder does."""

    def find_spec(self,
                  fullname: str,
                  path: Any = None,
                  target: Any = None) -> Optional[Any]:
        if fullname != _NAME:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: Any) -> ModuleType:
        module = ModuleType(spec.name, __doc__)

        def __getattr__(name: str) -> Callable:
            if name.startswith('__'):
                raise AttributeError(name)
            return _missing(name)

        module.__getattr__ = __getattr__
        return module

    def exec_module(self, module: ModuleType) -> None:
        for ops in (*OPS.values(),
                    (get_compiler_version, get_compiling_cuda_version)):
            for op in ops:
                setattr(module, op.__name__, op)


def install() -> None:
    """Append the finder to ``sys.meta_path``, once and in the last place."""
    if not any(isinstance(finder, _ExtFinder) for finder in sys.meta_path):
        sys.meta_path.append(_ExtFinder())
    _complete(sys.modules.get('mmcv.cnn.bricks.transformer'))


def is_stand_in() -> bool:
    """Return whether these ops are used, as no compiled mmcv is installed."""
    with contextlib.suppress(ImportError):  # no mmcv at all
        spec = importlib.util.find_spec(_NAME)
        return spec is not None and isinstance(spec.loader, _ExtFinder)
    return False


def _complete(transformer: Optional[ModuleType]) -> None:
    """Complete a module of mmcv that was imported before there were ops.

    MMPretrain's tools import it before they read the config, and later
    MMDetection needs its MultiScaleDeformableAttention.
    """
    name = 'MultiScaleDeformableAttention'
    if transformer is not None and not hasattr(transformer, name):
        with contextlib.suppress(ImportError):  # an mmcv without this op
            ops = importlib.import_module('mmcv.ops.multi_scale_deform_attn')
            setattr(transformer, name, getattr(ops, name))
