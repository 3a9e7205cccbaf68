from .criteria import CRITERIA
from .ebqm import ebqm
from .kl import adjacent_kl
from .statistics import KLStatistics, LayerKL

__all__ = ['CRITERIA', 'KLStatistics', 'LayerKL', 'adjacent_kl', 'ebqm']
