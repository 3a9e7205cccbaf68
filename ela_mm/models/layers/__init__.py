from .layer_attention import LayerAttention, retrieve
from .light_attention import LightLayerAttention
from .memory import LayerMemory

__all__ = ['LayerAttention', 'LayerMemory', 'LightLayerAttention', 'retrieve']
