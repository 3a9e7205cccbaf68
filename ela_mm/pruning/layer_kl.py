"""What a window knows of one layer."""
import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .kl import kl_and_first_part, uniform_kl

# Iterations of a window whose single values are kept; even.
ITERATIONS_KEPT = 1000


class LayerKL(NamedTuple):
    """The redundancy of one layer over a window.

    Attributes:
        mean (float): KL divergence in nats, over all samples and heads; NaN
            or infinite if it was so in any iteration.
        std (float): Standard deviation in nats between iterations.
        samples (int): Samples of all ranks that it rests on.
        iterations (int): Iterations that it rests on, every rank's counted:
            on R ranks R times the steps.
        bad_iterations (int): Those of them whose value was not finite.
        series (List[float]): Mean over the samples of all ranks in single
            steps, in order: all of them, or from 1,000 on every second,
            fourth, ... so that at most 1,000 remain.
        weights (Sequence[int]): Samples of all ranks in these steps.
        steps (int): Training steps that it rests on, each of all ranks.
        uniform (float): What uniform weights would have, log(m / n), nats;
            NaN where an earlier version of this package has not recorded it.
        conditional (float): Mean of the first part of equation 11, nats; NaN
            likewise.
        conditional_std (float): Standard deviation between iterations.
        conditional_series (List[float]): As ``series``.
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
        """The mean less what uniform weights would have, nats."""
        return self.mean - self.uniform

    def by(self, redundancy: str) -> 'LayerKL':
        """Put another measure in the place of the KL divergence.

        Args:
            redundancy (str): A key of :data:`ela_mm.pruning.kl.REDUNDANCY`.

        Returns:
            LayerKL: With its mean, std and series.
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


# Per layer: sums over iterations of b * kl, b * c, b * kl^2, b * c^2, and of 1
# where kl is not finite, where b is the batch size and c the first part.
SUMS = 5
# Besides: samples, iterations, log(m / n), and 1 if that is known.
_COUNTS = 4


class LayerSums:
    """What is known of one layer, on its weights' device.

    Attributes:
        sums (Tensor): (5, ) float64. Left on the device, no step waits for
            the GPU.
        samples (int): Sum of b.
        iterations (int): Summed over ranks wherever ``sums`` is.
        seen (int): Iterations of this rank, the same on all of them.
        values (Tensor): (2, ITERATIONS_KEPT) float64, b * kl and b * c of
            every ``stride``-th iteration.
        batches (List[int]): b of the same.
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
            if values.dim() == 1:  # KL alone, as once was saved
                values = torch.stack([values, values * math.nan])
            if len(sums) == 3:
                total, squares, bad = sums
                unknown = total * math.nan
                sums = torch.stack([total, unknown, squares, unknown, bad])
            self.sums += sums.to(self.sums)
            self.values[:, :values.shape[1]] = values.to(self.values)

    @property
    def stride(self) -> int:
        stride = 1
        while self.seen > stride * ITERATIONS_KEPT:
            stride *= 2
        return stride

    def add(self, step: 'Observed') -> None:
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
        if position == ITERATIONS_KEPT:  # full: every other one goes
            position //= 2
            self.values[:, :position] = self.values[:, ::2].clone()
            self.batches = self.batches[::2]
        self.values[:, position] = weighted
        self.batches.append(batch)

    def forget_values(self) -> None:
        """Keep the place in the series alone: the first rank has the rest."""
        self.sums = torch.zeros_like(self.sums)
        self.values = torch.zeros_like(self.values)
        self.batches = [0] * len(self.batches)
        self.samples = self.iterations = 0

    def totals(self) -> Tensor:
        """What is known of all iterations together, (9, ) float64."""
        known = not math.isnan(self.uniform)
        return torch.cat([
            self.sums,
            self.sums.new_tensor([
                self.samples, self.iterations, self.uniform if known else 0.,
                known
            ])
        ])

    def to_row(self) -> Tensor:
        """All numbers but ``seen`` as (9 + 3 * ITERATIONS_KEPT, ) float64."""
        batches = self.sums.new_zeros(ITERATIONS_KEPT)
        batches[:len(self.batches)] = self.sums.new_tensor(self.batches)
        return torch.cat([self.totals(), self.values.flatten(), batches])

    @staticmethod
    def split(row: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take a row apart: sums, counts, values and batches."""
        sums, counts, values, batches = row.split(
            [SUMS, _COUNTS, 2 * ITERATIONS_KEPT, ITERATIONS_KEPT])
        return sums, counts, values.view(2, ITERATIONS_KEPT), batches

    def from_row(self, row: Tensor) -> None:
        self.sums, counts, self.values, batches = self.split(row)
        samples, iterations, uniform, known = counts.tolist()
        self.samples, self.iterations = int(samples), int(iterations)
        self.uniform = uniform / known if known else math.nan
        self.batches = [int(n) for n in batches[:len(self.batches)].tolist()]

    def state_dict(self) -> Dict[str, Any]:
        return dict(
            sums=self.sums.cpu().clone(),
            samples=self.samples,
            iterations=self.iterations,
            seen=self.seen,
            values=self.values[:, :len(self.batches)].cpu().clone(),
            batches=list(self.batches),
            uniform=self.uniform)


class Observed(NamedTuple):
    """One iteration of one layer.

    Attributes:
        values (Tensor): (2, ) float32, KL and its first part: means over the
            samples and heads; of no samples 0, which weighs nothing.
        batch (int): Samples.
        uniform (float): What uniform weights would have.
    """
    values: Tensor
    batch: int
    uniform: float

    @classmethod
    def of(cls, prev: Tensor, curr: Tensor) -> 'Observed':
        """Measure; arguments as ``KLStatistics.update``'s."""
        values = torch.stack(kl_and_first_part(prev, curr)) if len(
            curr) else curr.new_zeros(2, dtype=torch.float32)
        return cls(values, len(curr), uniform_kl(prev.shape[2], curr.shape[2]))


def is_state(layer: Any) -> bool:
    """Whether it is what ``LayerSums.state_dict`` returns, or once did."""
    if not isinstance(layer, dict):
        return False
    values = layer.get('values', torch.zeros(0))
    batches, sums = layer.get('batches', []), layer.get('sums')
    if not (isinstance(sums, Tensor) and isinstance(values, Tensor)):
        return False
    steps = len(batches)
    shapes = tuple(sums.shape), tuple(values.shape)
    return steps <= ITERATIONS_KEPT and shapes in (
        ((SUMS, ), (2, steps)), ((3, ), (steps, )))  # of earlier versions


def reduced(row: Tensor, seen: int) -> Optional[LayerKL]:
    """What a row of all ranks says; None if it is of no samples."""
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
    """Mean and standard deviation."""
    mean = total / samples
    return mean, max(squares / samples - mean * mean, 0.)**.5


def _widest(device) -> torch.dtype:
    """float64, but on devices that have none (Apple's MPS)."""
    mps = torch.device(device).type == 'mps'
    return torch.float32 if mps else torch.float64
