from .hooks import ELAPruneHook

__all__ = ['ELAPruneHook']
