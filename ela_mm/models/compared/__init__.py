"""The systems that the paper compares with, one file each.

GC and NL are mmcv's ``ContextBlock`` and ``NonLocal2d``. Importing the package
registers the others.
"""
from .augmented import AugmentedConv2d
from .bam import BAMAttention
from .cbam import CBAMAttention
from .double_attention import DoubleAttention
from .eca import ECAAttention
from .plugins import apply_plugins, check_plugins, init_plugins, plugin_norms
from .se import SEAttention

__all__ = [
    'AugmentedConv2d', 'BAMAttention', 'CBAMAttention', 'DoubleAttention',
    'ECAAttention', 'SEAttention', 'apply_plugins', 'check_plugins',
    'init_plugins', 'plugin_norms'
]
