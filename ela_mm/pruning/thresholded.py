"""A criterion as a score and a threshold on it."""
import inspect
from typing import Any, Callable, Tuple

import numpy as np
from numpy.typing import ArrayLike

from .ebqm import check_threshold


class Thresholded:
    """A criterion that skips every layer whose score lies below ``mu``.

    The score is evaluated once, for the verdict and for the values that tables
    and pictures show.

    Args:
        score (Callable): Function ``(kl, **parameters) -> (L, ) float`` that
            returns NaN for a layer out of reach.
        mu (float): Default value of the threshold, in [0, 1]. Defaults to 0.2.
    """

    def __init__(self,
                 score: Callable[..., np.ndarray],
                 mu: float = 0.2) -> None:
        self.score = score
        own = inspect.signature(score)
        self.__signature__ = own.replace(
            parameters=[
                *own.parameters.values(),
                inspect.Parameter(
                    'mu', inspect.Parameter.KEYWORD_ONLY, default=mu)
            ],
            return_annotation=np.ndarray)
        self.__name__ = score.__name__

    def __call__(self, kl: ArrayLike, *args: Any,
                 **parameters: Any) -> np.ndarray:
        """Decide: (L, ) KL divergences in nats -> (L, ) bool, True = skip."""
        bound = self.__signature__.bind(kl, *args, **parameters)
        return self.evaluate(**bound.arguments)[0]

    def evaluate(self, kl: ArrayLike,
                 **parameters: Any) -> Tuple[np.ndarray, np.ndarray]:
        """Decide, and return the scores as well.

        Args:
            kl (ArrayLike): (L, ), KL divergences in nats of all candidates.
            **parameters: Parameters of the score, and ``mu``.

        Returns:
            tuple: (L, ) bool, True = skip, and the scores (L, ) float64.

        Raises:
            UsageError: On parameters out of range, no candidates, NaN or inf.
        """
        mu = parameters.pop('mu', self.__signature__.parameters['mu'].default)
        check_threshold(mu)
        score = self.score(kl, **parameters)
        # NaN compares false: out of reach, or nothing to rank.
        return score < mu, score
