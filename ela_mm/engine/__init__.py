from .hooks import ELAPruneHook, ReseedHook, ValidateResumedHook

__all__ = ['ELAPruneHook', 'ReseedHook', 'ValidateResumedHook']
