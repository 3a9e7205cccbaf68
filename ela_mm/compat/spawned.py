"""Lets processes that a script spawns import this package before all else.

A host's own tool imports it by the config, which its workers do not read. With
mmcv-lite they would fail on ``mmcv.ops`` while they read their dataset, and
multiprocessing waits for ever for a worker that has ended that early. Spawned
processes import the main module: in the place of a script that does not name
this package it is :mod:`ela_mm.run`, which imports both.
"""
import contextlib
import importlib.util
import os
import os.path as osp
import sys
from types import ModuleType

from .mmcv_ops import is_stand_in

# Which script :mod:`ela_mm.run` runs in a spawned process.
SCRIPT = 'ELA_MM_SCRIPT'


def install() -> None:
    """Change what spawned processes import, where they would do without."""
    main = sys.modules.get('__main__')
    if _is_script_without_us(main) and is_stand_in():
        os.environ[SCRIPT] = osp.abspath(main.__file__)
        main.__spec__ = importlib.util.find_spec('ela_mm.run')


def _is_script_without_us(main: ModuleType) -> bool:
    """Whether the main module is a file that does not import this package."""
    if getattr(main, '__spec__', None) is not None:  # run by python -m
        return False
    path = getattr(main, '__file__', None)
    with contextlib.suppress(OSError, UnicodeDecodeError, TypeError), open(
            path, encoding='utf-8') as file:
        return 'ela_mm' not in file.read()
    return False
