"""Pruning criteria: which layers to skip, given their KL divergences.

A criterion is a function ``(kl, **parameters) -> skip``, (L, ) bool, True =
skip. It may return a pair ``(skip, score)`` instead: (L, ) float, what it has
compared with its threshold, for tables and pictures. The paper's are a score
and a threshold (:class:`~ela_mm.pruning.thresholded.Thresholded`), evaluated
once.
"""
import inspect
from typing import Any, Callable, Dict, Tuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UsageError
from .ablations import eqm, fixed, gamma, gqm, normal, sigmoid, softmax, threshold
from .ebqm import as_candidates, beta_quantile_map
from .thresholded import Thresholded

# By the name that a config gives as ``criterion=dict(type=name)``.
CRITERIA: Dict[str, Callable[..., np.ndarray]] = dict(
    EBQM=Thresholded(beta_quantile_map),  # ela_mm.ebqm
    threshold=threshold,
    fixed=fixed,
    normal=normal,
    gamma=gamma,
    softmax=softmax,
    sigmoid=sigmoid,
    GQM=gqm,
    EQM=eqm)


class Criterion:
    """A criterion with its parameters, checked when it is built.

    Args:
        name (str): As in the config's ``criterion=dict(type=name)``.
        function (Callable): ``(kl, **parameters) -> (L, ) bool``.
        parameters (Any): Its keyword arguments; defaults are filled in.

    Attributes:
        config (dict): ``type`` and every parameter, defaults included.

    Raises:
        UsageError: On a parameter that the function does not take or whose
            value it refuses.
    """

    def __init__(self, name: str, function: Callable[..., np.ndarray],
                 **parameters: Any) -> None:
        signature = inspect.signature(function)
        try:
            bound = signature.bind(None, **parameters)
        except TypeError as error:
            known = ', '.join(list(signature.parameters)[1:])
            raise UsageError(f'criterion {name}: {error}; it takes {known}'
                             ) from None
        bound.apply_defaults()
        self.function = function
        self.parameters = dict(bound.arguments)
        self.parameters.pop(next(iter(signature.parameters)))  # kl itself
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                self.parameters.update(self.parameters.pop(parameter.name))
        self.config = dict(type=name, **self.parameters)
        try:  # wrong values are found now, not at the end of the first window
            self([0.1, 0.2, 0.3, 0.4])
        except ValueError as error:
            raise UsageError(f'criterion {name}: {error}') from None

    def __call__(self, kl: ArrayLike) -> Tuple[np.ndarray, np.ndarray]:
        """Decide.

        Args:
            kl (ArrayLike): (L, ), KL divergences in nats of all candidates.

        Returns:
            tuple: (L, ) bool, True = skip, and (L, ) float64, the scores (the
            KL divergences where the criterion has none).

        Raises:
            UsageError: If ``kl`` is empty or not finite.
        """
        kl = as_candidates(kl)
        skip, score = self._evaluate(kl)
        if skip.shape != kl.shape or skip.dtype != bool:
            raise UsageError(
                f'returned {skip.dtype} of shape {skip.shape}, expected bool '
                f'of shape {kl.shape}')
        return skip, score

    def _evaluate(self, kl: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        if isinstance(self.function, Thresholded):
            return self.function.evaluate(kl, **self.parameters)
        verdict = self.function(kl, **self.parameters)
        if isinstance(verdict, tuple):
            skip, score = verdict
            return np.asarray(skip), np.asarray(score, dtype=np.float64)
        # A function hung on the criterion, as was the way once.
        mapping = getattr(self.function, 'mapping', None)
        if mapping is None:
            return np.asarray(verdict), kl
        accepted = inspect.signature(mapping).parameters
        return np.asarray(verdict), mapping(
            kl, **{
                name: value
                for name, value in self.parameters.items() if name in accepted
            })
