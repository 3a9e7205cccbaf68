"""Makes the supported OpenMMLab stack work on current torch.

Imported for its effect by :mod:`ela_mm`, before any host package:

- :mod:`.mmcv_ops` lets ``mmcv-lite`` stand in for the compiled ``mmcv``, with
  the ops in :mod:`.ops`;
- :mod:`.spawned` lets workers that a host's tool spawns have these ops, too;
- :mod:`.checkpoints` lets mmengine's checkpoints load under ``weights_only``;
- :mod:`.moved` keeps the earlier names of this package's modules.

They step aside where they are not needed, and may be installed twice.
:mod:`.compiling` is imported where torch 2.0 lacks a name, and
:mod:`.products` where it adds what lies in memory.
"""
from . import checkpoints, mmcv_ops, moved, spawned


def install() -> None:
    """Install every compatibility measure; repeated calls change nothing."""
    mmcv_ops.install()
    spawned.install()
    checkpoints.install()
    moved.install()


__all__ = ['install']
