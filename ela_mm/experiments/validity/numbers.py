"""Rank correlations, overlaps and intervals of a study."""
import itertools
from typing import Collection, List, NamedTuple, Optional, Sequence

import numpy as np
from scipy.stats import hypergeom, spearmanr
from scipy.stats import t as student

# Number of simulated studies with random sets.
DRAWS = 10000


class Interval(NamedTuple):
    """A mean over seeds, with its uncertainty.

    Attributes:
        mean (float): Mean of the values.
        std (float | None): Standard deviation; None for a single value.
        margin (float | None): Half width of the 95% confidence interval
            (Student's t); None for a single value.
        number (int): Number of values.
    """
    mean: float
    std: Optional[float]
    margin: Optional[float]
    number: int

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.margin is not None and abs(self.mean) > self.margin


def interval(values: Sequence[Optional[float]]) -> Optional[Interval]:
    """Compute mean, standard deviation and 95% interval; None without values.

    Args:
        values (Sequence): A value for each seed; None values are left out.
    """
    known = np.array([x for x in values if x is not None], dtype=float)
    if not len(known):
        return None
    if len(known) == 1:
        return Interval(float(known[0]), None, None, 1)
    std = float(known.std(ddof=1))
    margin = student.ppf(.975, len(known) - 1) * std / len(known)**.5
    return Interval(float(known.mean()), std, float(margin), len(known))


def correlation(values: Sequence[float],
                costs: Sequence[float]) -> Optional[float]:
    """Compute Spearman's rank correlation; None if one side is constant."""
    if len(values) < 3 or len(set(values)) < 2 or len(set(costs)) < 2:
        return None
    return float(spearmanr(values, costs)[0])


def correlation_within(stages: Sequence[int], values: Sequence[float],
                       costs: Sequence[float]) -> Optional[float]:
    """Average Spearman's rank correlation over stages of 3 layers or more.

    Args:
        stages (Sequence[int]): Stage of each layer.
        values (Sequence[float]): Value of a measure for each layer.
        costs (Sequence[float]): Loss that skipping each layer adds.
    """
    found = []
    for stage in sorted(set(stages)):
        own = [i for i, x in enumerate(stages) if x == stage]
        found.append(correlation([values[i] for i in own],
                                 [costs[i] for i in own]))
    found = [x for x in found if x is not None]
    return float(np.mean(found)) if found else None


def jaccard(one: Collection, other: Collection) -> float:
    """Compute Jaccard's index, intersection over union; 1 for empty sets."""
    union = set(one) | set(other)
    return len(set(one) & set(other)) / len(union) if union else 1.


def overlaps(sets: Sequence[Collection]) -> List[float]:
    """Compute Jaccard's index of every pair."""
    return [jaccard(a, b) for a, b in itertools.combinations(sets, 2)]


def chance_overlap(layers: int, number: int) -> float:
    """Compute the expected Jaccard index of two random sets.

    Args:
        layers (int): Number of layers to choose from.
        number (int): Number of layers in each set.
    """
    shared = np.arange(number + 1)
    share = hypergeom(layers, number, number).pmf(shared)
    return float((share * shared / (2 * number - shared)).sum())


def chance_range(layers: int, number: int, seeds: int,
                 seed: int = 0) -> tuple:
    """Simulate the mean overlap of random sets, and return its 95% range.

    Args:
        layers (int): Number of layers to choose from.
        number (int): Number of layers in each set.
        seeds (int): Number of sets, all pairs of which are compared.
        seed (int): Seed of the simulation. Defaults to 0.

    Returns:
        tuple: Lower and upper end.
    """
    draw = np.random.default_rng(seed)
    ranks = draw.random((DRAWS, seeds, layers)).argsort(-1)
    chosen = ranks < number  # (DRAWS, seeds, layers)
    means = np.zeros(DRAWS)
    pairs = list(itertools.combinations(range(seeds), 2))
    for a, b in pairs:
        both = (chosen[:, a] & chosen[:, b]).sum(-1)
        means += both / (2 * number - both) / len(pairs)
    low, high = np.quantile(means, [.025, .975])
    return float(low), float(high)
