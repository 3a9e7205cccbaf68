from .build import SCHEMES
from .cka import aug_cka_sr, cka_matrix, cka_sr, linear_cka

__all__ = ['SCHEMES', 'aug_cka_sr', 'cka_matrix', 'cka_sr', 'linear_cka']
