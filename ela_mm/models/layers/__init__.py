from .layer_attention import LayerAttention, LayerMemory
from .light_attention import LightLayerAttention
from .retrieval import retrieve

__all__ = ['LayerAttention', 'LayerMemory', 'LightLayerAttention', 'retrieve']
