from .bank.values import retrieve
from .layer_attention import LayerAttention
from .light_attention import LightLayerAttention
from .memory import LayerMemory

__all__ = ['LayerAttention', 'LayerMemory', 'LightLayerAttention', 'retrieve']
