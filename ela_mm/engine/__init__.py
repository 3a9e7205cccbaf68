from .hooks import (
    CKARegularizationHook,
    ELAPruneHook,
    ReseedHook,
    SparseTrainingHook,
    ValidateResumedHook,
)

__all__ = [
    'CKARegularizationHook', 'ELAPruneHook', 'ReseedHook',
    'SparseTrainingHook', 'ValidateResumedHook'
]
