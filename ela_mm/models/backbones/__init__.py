from .layer_attention_mixin import LayerAttentionMixin
from .stages import AttentionLayerInfo, AttentionStage

__all__ = ['AttentionLayerInfo', 'AttentionStage', 'LayerAttentionMixin']
