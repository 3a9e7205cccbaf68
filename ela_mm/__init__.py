"""Efficient Layer Attention for MMDetection, MMPretrain and MMSegmentation.

Importing the package registers ``ELAResNet`` and its relatives with every
installed host, and ``ELAPruneHook``, ``CKARegularizationHook``,
``SparseTrainingHook`` and the pruning criteria with mmengine:
``custom_imports = dict(imports=['ela_mm'])`` in a config is enough.
"""
from . import compat

compat.install()  # before anything imports mmcv.ops

from .engine import (  # noqa: E402
    CKARegularizationHook,
    ELAPruneHook,
    ReseedHook,
    SparseTrainingHook,
)
from .hosts.registration import register, register_host  # noqa: E402
from .models import LayerAttention, LayerMemory  # noqa: E402
from .pruning import adjacent_kl, ebqm  # noqa: E402
from .version import __version__  # noqa: E402

register()

__all__ = [
    'CKARegularizationHook', 'ELAPruneHook', 'LayerAttention', 'LayerMemory',
    'ReseedHook', 'SparseTrainingHook', '__version__', 'adjacent_kl', 'ebqm',
    'register_host'
]
