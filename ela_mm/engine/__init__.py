from .hooks import ELAPruneHook, ValidateResumedHook

__all__ = ['ELAPruneHook', 'ValidateResumedHook']
