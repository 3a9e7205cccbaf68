from .criteria import CRITERIA
from .decision import Decision, LayerDecision, Outcome, decide
from .ebqm import ebqm
from .kl import adjacent_kl
from .statistics import KLStatistics, LayerKL

__all__ = [
    'CRITERIA', 'Decision', 'KLStatistics', 'LayerDecision', 'LayerKL',
    'Outcome', 'adjacent_kl', 'decide', 'ebqm'
]
