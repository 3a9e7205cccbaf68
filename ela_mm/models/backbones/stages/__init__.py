"""Stages: a host's blocks, each followed by its attention.

:class:`~.stage.Stage` is the interface that backbones and the rest of the
package use. :mod:`~.base` and :mod:`~.light` are the paper's kinds of
attention; :mod:`ela_mm.models.compared` adds others.
"""
from .base import AttentionStage, Observer
from .kinds import ATTENTION, attention_kind, register_attention
from .layer_info import AttentionLayerInfo, short_name
from .light import LightAttentionStage
from .stage import Stage, StageSpec

__all__ = [
    'ATTENTION', 'AttentionLayerInfo', 'AttentionStage',
    'LightAttentionStage', 'Observer', 'Stage', 'StageSpec', 'attention_kind',
    'register_attention', 'short_name'
]
