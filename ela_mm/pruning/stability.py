"""Estimates whether a window with other steps would have decided the same."""
from typing import Callable, NamedTuple, Optional, Sequence, Tuple

import numpy as np

DRAWS = 500  # resampled windows
# (L, ) values -> (L, ) bool, True = skip, and (L, ) scores.
Decider = Callable[[Sequence[float]], Tuple[np.ndarray, np.ndarray]]


class Shares(NamedTuple):
    """Shares of resampled windows, in [0, 1].

    Attributes:
        same (float): Share that skips exactly the same layers.
        skipped (np.ndarray): (L, ), share that skips each layer.
    """
    same: float
    skipped: np.ndarray


def bootstrap(series: np.ndarray,
              draws: int = DRAWS,
              seed: int = 0,
              samples: Optional[np.ndarray] = None) -> np.ndarray:
    """Resample the steps of a window and average each resampled window.

    Neighbouring steps see nearly the same weights, so blocks of steps are
    drawn (moving block bootstrap, Kuensch 1989), as long as the cube root of
    the number of steps, the same for all layers. Steps are weighted by their
    samples, as in the mean of the window itself.

    Args:
        series (np.ndarray): (steps, L), values of single steps in nats.
        draws (int): Number of resampled windows. Defaults to 500.
        seed (int): Seed of the random generator. Defaults to 0.
        samples (np.ndarray, optional): (steps, ), number of samples in each
            step. Defaults to None: all equal.

    Returns:
        np.ndarray: (draws, L), means of the resampled windows in nats.
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
    """Decide on resampled windows and compare with the decision on ``kl``.

    Args:
        criterion (Callable): Criterion as the hook uses it. If it fails on a
            resampled window, that counts as skipping nothing, as in the hook.
        kl (np.ndarray): (L, ), values that were decided on.
        series (np.ndarray): (steps, L), values of single steps.
        samples (np.ndarray, optional): (steps, ), see :func:`bootstrap`.
        draws (int): Number of resampled windows. Defaults to 500.

    Returns:
        Shares: Share of windows that decide the same, and that skip each
        layer.
    """
    kl = np.asarray(kl)
    decision = _decide(criterion, kl)
    means = bootstrap(series, draws, samples=samples)
    # Centre them on the mean that was decided on: it includes steps that the
    # series leaves out, and is weighted by samples even where the record does
    # not have them.
    means += kl - np.average(series, 0, samples)
    drawn = np.array([_decide(criterion, x) for x in means])  # (draws, L)
    return Shares(float((drawn == decision).all(1).mean()), drawn.mean(0))


def _decide(criterion: Decider, kl: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(criterion(kl)[0], dtype=bool)
    except Exception:  # a fit that fails
        return np.zeros(len(kl), dtype=bool)
