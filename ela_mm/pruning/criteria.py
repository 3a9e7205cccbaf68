"""Pruning criteria: which layers to skip, given their KL divergences.

A criterion is a function ``(kl, **parameters) -> skip``, (L, ) bool, True =
skip. It may return a pair ``(skip, score)`` instead, where ``score`` (L, )
float is what it compares with its threshold, shown in tables and pictures.
The paper's criteria consist of a score and a threshold
(:class:`~ela_mm.pruning.thresholded.Thresholded`). A criterion with an argument
``network`` is given the network as it is at the end of the window
(:class:`~ela_mm.pruning.by_loss.Network`).
"""
import inspect
from typing import Any, Callable, Dict, Optional, Tuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UsageError
from .ablations import eqm, fixed, gamma, gqm, normal, sigmoid, softmax, threshold
from .by_loss import IMAGES, Network, Rehearsal, ablation
from .ebqm import as_candidates, beta_quantile_map
from .thresholded import Thresholded

# Keys are the names used in configs: ``criterion=dict(type=name)``.
CRITERIA: Dict[str, Callable[..., np.ndarray]] = dict(
    EBQM=Thresholded(beta_quantile_map),  # ela_mm.ebqm
    threshold=threshold,
    fixed=fixed,
    normal=normal,
    gamma=gamma,
    softmax=softmax,
    sigmoid=sigmoid,
    GQM=gqm,
    EQM=eqm,
    ablation=ablation)


def why_none(config: Dict[str, Any], kl: ArrayLike,
             scores: ArrayLike) -> str:
    """Say why a criterion has skipped no layer.

    Args:
        config (Dict[str, Any]): ``type`` and all parameters of the criterion.
        kl (ArrayLike): (L, ), the values that it decided on.
        scores (ArrayLike): (L, ), the scores that it returned.

    Returns:
        str: A sentence without a full stop.
    """
    kl, scores = np.asarray(kl), np.asarray(scores, dtype=np.float64)
    if not isinstance(CRITERIA.get(config['type']), Thresholded):
        return 'the criterion found no layer redundant'
    ranked = scores[np.isfinite(scores)]
    if len(ranked):
        return (f'no layer is mapped below mu={config["mu"]:g}: the lowest has '
                f'{ranked.min():.4g}')
    reached = int((kl <= np.quantile(kl, config['gamma'])).sum())
    if reached == 1:
        return (f'of {len(kl)} candidates one is within reach '
                f'(gamma={config["gamma"]:g}): there is nothing to rank it '
                'with')
    return (f'the {reached} of {len(kl)} candidates within reach '
            f'(gamma={config["gamma"]:g}) do not differ: equal values rank '
            'nothing')


def asks_network(function: Callable) -> bool:
    """Return whether a criterion has an argument ``network``."""
    return 'network' in inspect.signature(function).parameters


class Criterion:
    """A criterion with its parameters, which are checked on construction.

    Args:
        name (str): Name of the criterion, for records and errors.
        function (Callable): Function that decides,
            ``(kl, **parameters) -> (L, ) bool``.
        parameters (Any): Keyword arguments of the function; missing ones get
            its defaults.

    Attributes:
        config (dict): ``type`` and all parameters, defaults included.
        asks_network (bool): Whether the function measures on the network and
            not only on KL divergences.

    Raises:
        UsageError: On a parameter that the function does not take, or a value
            that it refuses.
    """

    def __init__(self, name: str, function: Callable[..., np.ndarray],
                 **parameters: Any) -> None:
        signature = inspect.signature(function)
        self.asks_network = asks_network(function)
        given = dict(network=None) if self.asks_network else {}
        try:
            bound = signature.bind(None, **given, **parameters)
        except TypeError as error:
            known = ', '.join(x for x in list(signature.parameters)[1:]
                              if x not in given)
            raise UsageError(f'criterion {name}: {error}; it takes {known}'
                             ) from None
        bound.apply_defaults()
        self.function = function
        self.parameters = dict(bound.arguments)
        for name_given in (next(iter(signature.parameters)), *given):
            self.parameters.pop(name_given)  # kl and network are no parameters
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                self.parameters.update(self.parameters.pop(parameter.name))
        self.config = dict(type=name, **self.parameters)
        try:  # find wrong values now, not at the end of the first window
            self([0.1, 0.2, 0.3, 0.4],
                 Rehearsal(4) if self.asks_network else None)
        except ValueError as error:
            raise UsageError(f'criterion {name}: {error}') from None

    @property
    def images(self) -> int:
        """Number of training images to hold out for this criterion."""
        return self.parameters.get('images', IMAGES) if self.asks_network else 0

    def __call__(self,
                 kl: ArrayLike,
                 network: Optional[Network] = None
                 ) -> Tuple[np.ndarray, np.ndarray]:
        """Decide which layers to skip.

        Args:
            kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
            network (Network, optional): Network to measure on; needed if
                ``asks_network``.

        Returns:
            tuple: (L, ) bool, True = skip, and (L, ) float64, the scores (the
            KL divergences if the criterion has no scores).

        Raises:
            UsageError: If ``kl`` is empty or not finite, or if a network is
                needed and missing.
        """
        kl = as_candidates(kl)
        parameters = self.parameters
        if self.asks_network:
            if network is None:
                raise UsageError(
                    f'criterion {self.config["type"]} measures on the network '
                    'what its layers are worth, which the KL divergences of a '
                    'window do not tell; tools/analyze.py ablate CONFIG '
                    'CHECKPOINT measures it')
            parameters = dict(parameters, network=network)
        skip, score = self._evaluate(kl, parameters)
        if skip.shape != kl.shape or skip.dtype != bool:
            raise UsageError(
                f'returned {skip.dtype} of shape {skip.shape}, expected bool '
                f'of shape {kl.shape}')
        return skip, score

    def _evaluate(self, kl: np.ndarray, parameters: Dict[str, Any]
                  ) -> Tuple[np.ndarray, np.ndarray]:
        if isinstance(self.function, Thresholded):
            return self.function.evaluate(kl, **parameters)
        verdict = self.function(kl, **parameters)
        if isinstance(verdict, tuple):
            skip, score = verdict
            return np.asarray(skip), np.asarray(score, dtype=np.float64)
        # Criteria written for earlier versions carry their score's function.
        mapping = getattr(self.function, 'mapping', None)
        if mapping is None:
            return np.asarray(verdict), kl
        accepted = inspect.signature(mapping).parameters
        return np.asarray(verdict), mapping(
            kl, **{
                name: value
                for name, value in parameters.items() if name in accepted
            })
