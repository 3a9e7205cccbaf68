from . import compared  # noqa: F401 registers its systems
from .layers import LayerAttention, LayerMemory

__all__ = ['LayerAttention', 'LayerMemory']
