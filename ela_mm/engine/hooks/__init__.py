from .active_layers_hook import ActiveLayersHook
from .cka_regularization_hook import CKARegularizationHook
from .ela_prune_hook import ELAPruneHook
from .reseed_hook import ReseedHook
from .sparse_training_hook import SparseTrainingHook
from .validate_resumed_hook import ValidateResumedHook

__all__ = [
    'ActiveLayersHook', 'CKARegularizationHook', 'ELAPruneHook', 'ReseedHook',
    'SparseTrainingHook', 'ValidateResumedHook'
]
