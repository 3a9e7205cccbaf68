from .criteria import CRITERIA
from .ebqm import ebqm
from .kl import adjacent_kl
from .statistics import KLStatistics

__all__ = ['CRITERIA', 'KLStatistics', 'adjacent_kl', 'ebqm']
