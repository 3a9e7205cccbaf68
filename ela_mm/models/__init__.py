from .layers import LayerAttention, LayerMemory

__all__ = ['LayerAttention', 'LayerMemory']
