from .ela_prune_hook import ELAPruneHook
from .reseed_hook import ReseedHook
from .validate_resumed_hook import ValidateResumedHook

__all__ = ['ELAPruneHook', 'ReseedHook', 'ValidateResumedHook']
