from .table import prune_table

__all__ = ['prune_table']
