"""Statistics of one layer over a window."""
import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .kl import kl_and_first_part, uniform_kl

# Number of iterations of a window whose single values are kept; must be even,
# since every other one is dropped when they are full.
ITERATIONS_KEPT = 1000


class LayerKL(NamedTuple):
    """The redundancy of one layer over a window.

    Attributes:
        mean (float): KL divergence in nats, averaged over all samples and
            heads; NaN or infinite if that of any iteration was.
        std (float): Standard deviation between iterations, nats.
        samples (int): Number of samples behind it, on all ranks.
        iterations (int): Number of iterations behind it, summed over ranks:
            with R ranks R times ``steps``.
        bad_iterations (int): Number of iterations whose value was not finite.
        series (List[float]): Values of single steps in order, each averaged
            over the samples of all ranks; of more than 1,000 steps every
            second, every fourth, and so on, so that at most 1,000 remain.
        weights (Sequence[int]): Samples of all ranks in these steps.
        steps (int): Number of training steps behind it.
        uniform (float): KL divergence of uniform weights, log(m / n), nats;
            NaN if an earlier version of this package did not record it.
        conditional (float): Mean of the first part of equation 11, nats; NaN
            if an earlier version did not record it.
        conditional_std (float): Standard deviation between iterations, nats.
        conditional_series (List[float]): First part of equation 11 in single
            steps, as ``series``.
    """
    mean: float
    std: float
    samples: int
    iterations: int
    bad_iterations: int
    series: List[float]
    weights: Sequence[int] = ()
    steps: int = 0
    uniform: float = math.nan
    conditional: float = math.nan
    conditional_std: float = math.nan
    conditional_series: Sequence[float] = ()

    @property
    def excess(self) -> float:
        """Mean minus the KL divergence of uniform weights, nats."""
        return self.mean - self.uniform

    def by(self, redundancy: str) -> 'LayerKL':
        """Put another measure in the place of the KL divergence.

        Args:
            redundancy (str): Name of the measure, a key of
                :data:`ela_mm.pruning.kl.REDUNDANCY`.

        Returns:
            LayerKL: A copy with mean, std and series of that measure.
        """
        if redundancy == 'excess':
            return self._replace(
                mean=self.excess,
                series=[value - self.uniform for value in self.series])
        if redundancy == 'conditional':
            return self._replace(
                mean=self.conditional,
                std=self.conditional_std,
                series=list(self.conditional_series))
        return self


# Number of sums over iterations that a layer has: of b * kl, b * c, b * kl^2,
# b * c^2 (b is the batch size, c the first part of equation 11), and the number
# of iterations whose kl is not finite.
SUMS = 5
# A row also has: samples, iterations, log(m / n), and 1 if that is known.
_COUNTS = 4


class LayerSums:
    """Running sums of one layer, on the device of its weights.

    Attributes:
        sums (Tensor): (5, ) float64, see ``SUMS``. They stay on the device, so
            that no step waits for the GPU.
        samples (int): Number of samples, the sum of b.
        iterations (int): Number of iterations in ``sums``; once those of all
            ranks are moved to rank 0, summed over ranks.
        seen (int): Number of iterations of this rank; equal on all ranks.
        values (Tensor): (2, ITERATIONS_KEPT) float64, b * kl and b * c of
            every ``stride``-th iteration.
        batches (List[int]): b of these iterations.
        uniform (float): log(m / n); NaN until it is known.
    """

    def __init__(self, device, state: Optional[Dict[str, Any]] = None) -> None:
        state = state or dict()
        self.samples = state.get('samples', 0)
        self.iterations = state.get('iterations', 0)
        self.seen = state.get('seen', 0)
        self.batches = list(state.get('batches', []))
        self.uniform = state.get('uniform', math.nan)
        self.sums = torch.zeros(SUMS, dtype=_widest(device), device=device)
        self.values = self.sums.new_zeros(2, ITERATIONS_KEPT)
        if 'sums' in state:
            sums, values = state['sums'], state.get('values', torch.zeros(0))
            if values.dim() == 1:  # earlier versions saved KL alone
                values = torch.stack([values, values * math.nan])
            if len(sums) == 3:
                total, squares, bad = sums
                unknown = total * math.nan
                sums = torch.stack([total, unknown, squares, unknown, bad])
            self.sums += sums.to(self.sums)
            self.values[:, :values.shape[1]] = values.to(self.values)

    @property
    def stride(self) -> int:
        """Distance between two iterations whose values are kept."""
        stride = 1
        while self.seen > stride * ITERATIONS_KEPT:
            stride *= 2
        return stride

    def add(self, step: 'Observed') -> None:
        """Add one iteration."""
        batch = step.batch
        values = step.values.to(self.sums)  # (2, ), kl and c
        weighted = values * batch
        bad = (~values[:1].isfinite()).to(values)
        self.sums += torch.cat([weighted, weighted * values, bad])
        self.samples += batch
        self.iterations += 1
        self.uniform = step.uniform
        position, left_out = divmod(self.seen, self.stride)
        self.seen += 1
        if left_out:
            return
        if position == ITERATIONS_KEPT:  # full: drop every other one
            position //= 2
            self.values[:, :position] = self.values[:, ::2].clone()
            self.batches = self.batches[::2]
        self.values[:, position] = weighted
        self.batches.append(batch)

    def forget_values(self) -> None:
        """Zero all numbers, which rank 0 has now; keep the series' position."""
        self.sums = torch.zeros_like(self.sums)
        self.values = torch.zeros_like(self.values)
        self.batches = [0] * len(self.batches)
        self.samples = self.iterations = 0

    def totals(self) -> Tensor:
        """Return the sums and counts of all iterations, (9, ) float64."""
        known = not math.isnan(self.uniform)
        return torch.cat([
            self.sums,
            self.sums.new_tensor([
                self.samples, self.iterations, self.uniform if known else 0.,
                known
            ])
        ])

    def to_row(self) -> Tensor:
        """Return all numbers but ``seen``, to be summed over ranks.

        Returns:
            Tensor: (9 + 3 * ITERATIONS_KEPT, ) float64.
        """
        batches = self.sums.new_zeros(ITERATIONS_KEPT)
        batches[:len(self.batches)] = self.sums.new_tensor(self.batches)
        return torch.cat([self.totals(), self.values.flatten(), batches])

    @staticmethod
    def split(row: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """Split a row into sums, counts, values and batches."""
        sums, counts, values, batches = row.split(
            [SUMS, _COUNTS, 2 * ITERATIONS_KEPT, ITERATIONS_KEPT])
        return sums, counts, values.view(2, ITERATIONS_KEPT), batches

    def from_row(self, row: Tensor) -> None:
        """Take over the numbers of a row of :meth:`to_row`."""
        self.sums, counts, self.values, batches = self.split(row)
        samples, iterations, uniform, known = counts.tolist()
        self.samples, self.iterations = int(samples), int(iterations)
        self.uniform = uniform / known if known else math.nan
        self.batches = [int(n) for n in batches[:len(self.batches)].tolist()]

    def state_dict(self) -> Dict[str, Any]:
        """Return all numbers, tensors on the CPU."""
        return dict(
            sums=self.sums.cpu().clone(),
            samples=self.samples,
            iterations=self.iterations,
            seen=self.seen,
            values=self.values[:, :len(self.batches)].cpu().clone(),
            batches=list(self.batches),
            uniform=self.uniform)


class Observed(NamedTuple):
    """What one iteration shows of one layer.

    Attributes:
        values (Tensor): (2, ) float32, KL divergence and its first part in
            nats, averaged over samples and heads; 0 for an empty batch.
        batch (int): Number of samples.
        uniform (float): KL divergence of uniform weights, log(m / n), nats.
    """
    values: Tensor
    batch: int
    uniform: float

    @classmethod
    def of(cls, prev: Tensor, curr: Tensor) -> 'Observed':
        """Measure two neighbours; arguments as in `KLStatistics.update`."""
        values = torch.stack(kl_and_first_part(prev, curr)) if len(
            curr) else curr.new_zeros(2, dtype=torch.float32)
        return cls(values, len(curr), uniform_kl(prev.shape[2], curr.shape[2]))


def is_state(layer: Any) -> bool:
    """Return whether this is a state of `LayerSums`, of any version."""
    if not isinstance(layer, dict):
        return False
    values = layer.get('values', torch.zeros(0))
    batches, sums = layer.get('batches', []), layer.get('sums')
    if not (isinstance(sums, Tensor) and isinstance(values, Tensor)):
        return False
    steps = len(batches)
    shapes = tuple(sums.shape), tuple(values.shape)
    return steps <= ITERATIONS_KEPT and shapes in (
        ((SUMS, ), (2, steps)), ((3, ), (steps, )))  # now; earlier versions


def reduced(row: Tensor, seen: int) -> Optional[LayerKL]:
    """Turn a row, summed over ranks, into averages; None without samples.

    Args:
        row (Tensor): (9 + 3 * ITERATIONS_KEPT, ), from `LayerSums.to_row`.
        seen (int): Number of training steps.
    """
    sums, counts, values, batches = LayerSums.split(row)
    samples, iterations, uniform, known = counts.tolist()
    if not samples:
        return None
    total, first, squares, first_squares, bad = sums.tolist()
    kept = batches > 0
    series, first_series = (values[:, kept] / batches[kept]).tolist()
    mean, std = _moments(total, squares, samples)
    conditional, conditional_std = _moments(first, first_squares, samples)
    return LayerKL(
        mean, std, int(samples), int(iterations), int(bad), series,
        [int(batch) for batch in batches[kept].tolist()], seen,
        uniform / known if known else math.nan, conditional, conditional_std,
        first_series)


def _moments(total: float, squares: float,
             samples: float) -> Tuple[float, float]:
    """Compute mean and standard deviation from sums."""
    mean = total / samples
    return mean, max(squares / samples - mean * mean, 0.)**.5


def _widest(device) -> torch.dtype:
    """Return float64, or float32 on Apple's MPS, which has no float64."""
    mps = torch.device(device).type == 'mps'
    return torch.float32 if mps else torch.float64
