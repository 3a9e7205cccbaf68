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
    """
    mean: float
    std: float


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

        Args:
            layer (str): Name of the later layer, whose redundancy it is.
            prev (Tensor): (B, h, n), weights of its active predecessor.
            curr (Tensor): (B, h, m), its own weights.
        """
        kl = adjacent_kl(prev, curr).double()
        sums = torch.stack([kl, kl * kl, torch.ones_like(kl)]) * len(curr)
        if layer in self._sums:
            self._sums[layer] += sums
        else:
            self._sums[layer] = sums

    def reduce(self, layers: List[str]) -> Dict[str, LayerKL]:
        """Average over what was added, on all ranks alike.

        Every rank must call it, with the same layers.

        Args:
            layers (List[str]): Names of the active layers, in order.

        Returns:
            Dict[str, LayerKL]: Of the layers that any rank has measured.
        """
        device = next((s.device for s in self._sums.values()), 'cpu')
        empty = torch.zeros(3, dtype=torch.float64, device=device)
        sums = torch.stack([self._sums.get(name, empty) for name in layers])
        if dist.is_available() and dist.is_initialized():
            if dist.get_backend() == 'nccl':
                sums = sums.cuda()
            dist.all_reduce(sums)
            dist.broadcast(sums, src=0)  # the same bits everywhere
        statistics = {}
        for name, (total, squares, samples) in zip(layers, sums.tolist()):
            if samples:
                mean = total / samples
                variance = max(squares / samples - mean * mean, 0.)
                statistics[name] = LayerKL(mean, variance**0.5)
        return statistics

    def samples(self) -> int:
        """Samples that this rank has added per layer."""
        return max((int(s[2]) for s in self._sums.values()), default=0)

    def reset(self) -> None:
        """Forget everything, for the next window."""
        self._sums.clear()

    def state_dict(self) -> Dict[str, Tensor]:
        """The sums per layer, (3, ) float64 on the CPU."""
        return {name: sums.cpu() for name, sums in self._sums.items()}

    def load_state_dict(self, state: Dict[str, Tensor], device) -> None:
        """Go on from what :meth:`state_dict` returned, on ``device``."""
        self._sums = {name: sums.to(device) for name, sums in state.items()}
