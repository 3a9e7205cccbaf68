"""Averages a window's KL divergences over samples, iterations and ranks."""
from typing import Dict, List, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .kl import adjacent_kl


class LayerKL(NamedTuple):
    """The redundancy of one layer over a window.

    Attributes:
        mean (float): KL divergence in nats, over all samples and heads.
        std (float): Standard deviation in nats between iterations.
        samples (int): Samples of all ranks that it rests on.
    """
    mean: float
    std: float
    samples: int


class KLStatistics:
    """Running sums of the KL divergence of every layer.

    Each iteration counts by its number of samples, so that a short last batch
    weighs no more than its samples: this project's choice, equal to the mean
    over iterations wherever batches are equal.
    """

    def __init__(self) -> None:
        # Per layer, on the weights' device: sum of b * kl, of b * kl^2 and of
        # b, where b is the batch size. Left there, no step waits for the GPU.
        self._sums: Dict[str, Tensor] = {}

    def update(self, layer: str, prev: Tensor, curr: Tensor) -> None:
        """Add one iteration of one layer.

        A forward pass that activation checkpointing repeats within the
        backward pass shows the same samples again: it is left out.

        Args:
            layer (str): Name of the later layer, whose redundancy it is.
            prev (Tensor): (B, h, n), weights of its active predecessor.
            curr (Tensor): (B, h, m), its own weights.
        """
        if _recomputing():
            return
        kl = adjacent_kl(prev, curr).double()
        sums = torch.stack([kl, kl * kl, torch.ones_like(kl)]) * len(curr)
        if layer in self._sums:
            self._sums[layer] += sums
        else:
            self._sums[layer] = sums

    def _total(self, layers: List[str]) -> Tensor:
        """Sums over all ranks, (L, 3), the same bits on each of them."""
        device = next((s.device for s in self._sums.values()), 'cpu')
        empty = torch.zeros(3, dtype=torch.float64, device=device)
        sums = torch.stack([self._sums.get(name, empty) for name in layers])
        if _distributed():
            if dist.get_backend() == 'nccl':
                sums = sums.cuda()
            dist.all_reduce(sums)
            dist.broadcast(sums, src=0)
        return sums

    def reduce(self, layers: List[str]) -> Dict[str, LayerKL]:
        """Average over what was added, on all ranks alike.

        Every rank must call it, with the same layers.

        Args:
            layers (List[str]): Names of the active layers, in order.

        Returns:
            Dict[str, LayerKL]: Of the layers that any rank has measured.
        """
        if not layers:
            return {}
        statistics = {}
        totals = self._total(layers).tolist()
        for name, (total, squares, samples) in zip(layers, totals):
            if samples:
                mean = total / samples
                variance = max(squares / samples - mean * mean, 0.)
                statistics[name] = LayerKL(mean, variance**0.5, int(samples))
        return statistics

    def gather(self, layers: List[str]) -> None:
        """Move the sums of all ranks to the first, before it saves them.

        Every rank must call it, with the same layers. What they add up to
        stays as it is, so that a run resumed on any number of ranks goes on
        with all samples.

        Args:
            layers (List[str]): Names of the active layers, in order.
        """
        if not layers or not _distributed():
            return
        totals = self._total(layers)
        self.reset()
        if dist.get_rank() == 0:
            self._sums = {name: sums for name, sums in zip(layers, totals)
                          if sums[2]}

    def reset(self) -> None:
        """Forget everything, for the next window."""
        self._sums.clear()

    def state_dict(self) -> Dict[str, Tensor]:
        """The sums per layer, (3, ) float64 on the CPU."""
        return {name: sums.cpu() for name, sums in self._sums.items()}

    def load_state_dict(self, state: Dict[str, Tensor], device) -> None:
        """Go on from what :meth:`state_dict` returned on the first rank.

        Args:
            state (Dict[str, Tensor]): Taken up by the first rank alone, since
                it holds what :meth:`gather` moved there.
            device (torch.device): Where the weights are.
        """
        self.reset()
        if not _distributed() or dist.get_rank() == 0:
            self._sums = {name: s.to(device) for name, s in state.items()}


def _recomputing() -> bool:
    """Whether a backward pass is running, where only a repetition runs."""
    if torch.compiler.is_compiling():  # repeats in its graph, not in Python
        return False
    return torch._C._current_graph_task_id() != -1


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
