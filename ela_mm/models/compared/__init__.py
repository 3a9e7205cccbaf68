"""The systems that the paper compares with, one file each.

GC and NL are mmcv's ``ContextBlock`` and ``NonLocal2d``. Importing this package
registers the others: those within a block with mmengine, those across blocks as
values of ``attention``.
"""
from .augmented import AugmentedConv2d
from .bam import BAMAttention
from .cbam import CBAMAttention
from .dia import DIAStage
from .dla import DLALightStage, DLAStage
from .double_attention import DoubleAttention
from .eca import ECAAttention
from .plugins import apply_plugins, check_plugins, init_plugins, plugin_norms
from .rla import RLAConcatStage, RLAStage
from .se import SEAttention

__all__ = [
    'AugmentedConv2d', 'BAMAttention', 'CBAMAttention', 'DIAStage',
    'DLALightStage', 'DLAStage', 'DoubleAttention', 'ECAAttention',
    'RLAConcatStage', 'RLAStage', 'SEAttention', 'apply_plugins',
    'check_plugins', 'init_plugins', 'plugin_norms'
]
