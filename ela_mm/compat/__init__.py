"""Makes the supported OpenMMLab stack work on current torch.

Imported for its effect by :mod:`ela_mm`, before any host package:

- :mod:`.mmcv_ops` lets ``mmcv-lite`` stand in for the compiled ``mmcv``, with
  the ops in :mod:`.ops`;
- :mod:`.spawned` lets workers that a host's tool spawns have these ops, too;
- :mod:`.checkpoints` lets mmengine's checkpoints load under ``weights_only``;
- :mod:`.moved` keeps the earlier names of this package's modules.

They do nothing where they are not needed, and may be installed twice. Other
modules import :mod:`.compiling`, for names that torch 2.0 lacks, and
:mod:`.products`, for a fault of torch 2.0.
"""
from . import checkpoints, mmcv_ops, moved, spawned


def install() -> None:
    """Install every compatibility measure; repeated calls change nothing."""
    mmcv_ops.install()
    spawned.install()
    checkpoints.install()
    moved.install()


__all__ = ['install']
