"""Rank correlations, overlaps and intervals of a study."""
import itertools
from typing import Collection, List, NamedTuple, Optional, Sequence

import numpy as np
from scipy.stats import hypergeom, spearmanr
from scipy.stats import t as student

# Resampled studies whose sets are drawn by chance.
DRAWS = 10000


class Interval(NamedTuple):
    """A mean over seeds and what is known of it.

    Attributes:
        mean (float): Of the values.
        std (float | None): Between them; None of a single one.
        margin (float | None): Half of the 95% confidence interval (Student's
            t); None of a single one.
        number (int): Of values.
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
    """Mean, standard deviation and 95% interval; None without any value.

    Args:
        values (Sequence): One a seed; those that are None are left out.
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
    """Spearman's rank correlation; None where one side is all equal."""
    if len(values) < 3 or len(set(values)) < 2 or len(set(costs)) < 2:
        return None
    return float(spearmanr(values, costs)[0])


def correlation_within(stages: Sequence[int], values: Sequence[float],
                       costs: Sequence[float]) -> Optional[float]:
    """Spearman's within stages: its mean over those with 3 layers or more.

    Args:
        stages (Sequence[int]): Of each layer.
        values (Sequence[float]): A measure.
        costs (Sequence[float]): The loss that skipping adds.
    """
    found = []
    for stage in sorted(set(stages)):
        own = [i for i, x in enumerate(stages) if x == stage]
        found.append(correlation([values[i] for i in own],
                                 [costs[i] for i in own]))
    found = [x for x in found if x is not None]
    return float(np.mean(found)) if found else None


def jaccard(one: Collection, other: Collection) -> float:
    """Share of two sets' union that both have; 1 of two empty ones."""
    union = set(one) | set(other)
    return len(set(one) & set(other)) / len(union) if union else 1.


def overlaps(sets: Sequence[Collection]) -> List[float]:
    """Jaccard's index of every pair."""
    return [jaccard(a, b) for a, b in itertools.combinations(sets, 2)]


def chance_overlap(layers: int, number: int) -> float:
    """Expected Jaccard index of two random sets.

    Args:
        layers (int): To choose from.
        number (int): In each set.
    """
    shared = np.arange(number + 1)
    share = hypergeom(layers, number, number).pmf(shared)
    return float((share * shared / (2 * number - shared)).sum())


def chance_range(layers: int, number: int, seeds: int,
                 seed: int = 0) -> tuple:
    """Where the mean overlap of random sets lies in 95% of studies.

    Args:
        layers (int): To choose from.
        number (int): In each set.
        seeds (int): Sets, each pair of which is compared.
        seed (int): Of the drawing. Defaults to 0.

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
