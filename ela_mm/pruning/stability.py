"""Would a window with other steps have decided the same?"""
from typing import Callable, NamedTuple, Optional, Sequence, Tuple

import numpy as np

DRAWS = 500
Decider = Callable[[Sequence[float]], Tuple[np.ndarray, np.ndarray]]


class Shares(NamedTuple):
    """Of resampled windows.

    Attributes:
        same (float): Share that skips the very layers.
        skipped (np.ndarray): (L, ), by layer, the share that skips it.
    """
    same: float
    skipped: np.ndarray


def bootstrap(series: np.ndarray,
              draws: int = DRAWS,
              seed: int = 0,
              samples: Optional[np.ndarray] = None) -> np.ndarray:
    """Means of windows that might as well have been measured.

    Neighbouring steps see nearly the same weights, so blocks of steps are
    drawn (moving block bootstrap, Kuensch 1989; blocks of the cube root of
    their number), and all layers from the same steps. A step counts by its
    samples, as in the window's own mean.

    Args:
        series (np.ndarray): (steps, L), nats.
        draws (int): Resampled windows. Defaults to 500.
        seed (int): Of the drawing. Defaults to 0.
        samples (np.ndarray, optional): (steps, ), of each step. Defaults to
            None: all alike.

    Returns:
        np.ndarray: (draws, L), nats.
    """
    steps = len(series)
    block = max(1, round(steps**(1 / 3)))
    blocks = -(-steps // block)
    starts = np.random.default_rng(seed).integers(
        steps - block + 1, size=(draws, blocks))
    rows = (starts[..., None] + np.arange(block)).reshape(draws, -1)
    rows = rows[:, :steps]  # (draws, steps)
    counts = np.zeros((draws, steps))
    np.add.at(counts, (np.arange(draws)[:, None], rows), 1)
    weights = counts if samples is None else counts * samples
    return weights @ series / weights.sum(1, keepdims=True)  # (draws, L)


def shares(criterion: Decider,
           kl: np.ndarray,
           series: np.ndarray,
           samples: Optional[np.ndarray] = None,
           draws: int = DRAWS) -> Shares:
    """Decide on resampled windows.

    Args:
        criterion (Callable): As the hook uses it. Where it fails, it skips
            nothing, as in the hook.
        kl (np.ndarray): (L, ), what was decided on.
        series (np.ndarray): (steps, L), the same of single steps.
        samples (np.ndarray, optional): See :func:`bootstrap`.
        draws (int): Resampled windows. Defaults to 500.

    Returns:
        Shares: Against the decision on ``kl``.
    """
    kl = np.asarray(kl)
    decision = _decide(criterion, kl)
    means = bootstrap(series, draws, samples=samples)
    # Around the mean that was decided on: it knows the steps that were thinned
    # out, and the samples of steps where the record does not.
    means += kl - np.average(series, 0, samples)
    drawn = np.array([_decide(criterion, x) for x in means])  # (draws, L)
    return Shares(float((drawn == decision).all(1).mean()), drawn.mean(0))


def _decide(criterion: Decider, kl: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(criterion(kl)[0], dtype=bool)
    except Exception:  # a fit that fails
        return np.zeros(len(kl), dtype=bool)
