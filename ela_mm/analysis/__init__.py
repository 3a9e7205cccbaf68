from .complexity import Complexity, count_macs

count = count_macs  # its earlier name

__all__ = ['Complexity', 'count', 'count_macs']
