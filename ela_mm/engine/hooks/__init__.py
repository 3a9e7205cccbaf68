from .ela_prune_hook import ELAPruneHook
from .validate_resumed_hook import ValidateResumedHook

__all__ = ['ELAPruneHook', 'ValidateResumedHook']
