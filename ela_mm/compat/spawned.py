"""Makes processes that a script spawns import this package first.

A host's own tool imports this package by its config, which spawned workers do
not read. With mmcv-lite they would fail on ``mmcv.ops`` when they unpickle
their dataset, and multiprocessing waits forever for a worker that ends so
early. Spawned processes import the main module. If that is a script that does
not import this package, it is replaced by :mod:`ela_mm.run`, which imports
both.
"""
import contextlib
import importlib.util
import os
import os.path as osp
import sys
from types import ModuleType

from .mmcv_ops import is_stand_in

# Environment variable with the script that :mod:`ela_mm.run` runs in a spawned
# process.
SCRIPT = 'ELA_MM_SCRIPT'


def install() -> None:
    """Change what spawned processes import, if that lacks this package."""
    main = sys.modules.get('__main__')
    if _is_script_without_us(main) and is_stand_in():
        os.environ[SCRIPT] = osp.abspath(main.__file__)
        main.__spec__ = importlib.util.find_spec('ela_mm.run')


def _is_script_without_us(main: ModuleType) -> bool:
    """Return whether the main module is a file without this package's name."""
    if getattr(main, '__spec__', None) is not None:  # run by python -m
        return False
    path = getattr(main, '__file__', None)
    with contextlib.suppress(OSError, UnicodeDecodeError, TypeError), open(
            path, encoding='utf-8') as file:
        return 'ela_mm' not in file.read()
    return False
