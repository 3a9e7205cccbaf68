"""Averages a window's KL divergences over samples, iterations and ranks."""
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..compat.compiling import is_compiling
from ..errors import UsageError
from .kl import adjacent_kl
from .windows import Window

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
    """
    mean: float
    std: float
    samples: int
    iterations: int
    bad_iterations: int
    series: List[float]
    weights: Sequence[int] = ()
    steps: int = 0


class _Layer:
    """What is known of one layer, on its weights' device.

    Attributes:
        sums (Tensor): (3, ) float64, sums over iterations of b * kl and
            b * kl^2, where b is the batch size, and of 1 where kl is not
            finite. Left on the device, no step waits for the GPU.
        samples (int): Sum of b.
        iterations (int): Summed over ranks wherever ``sums`` is.
        seen (int): Iterations of this rank, the same on all of them.
        values (Tensor): (ITERATIONS_KEPT, ) float64, b * kl of every
            ``stride``-th iteration.
        batches (List[int]): b of the same.
    """

    def __init__(self, device, state: Optional[Dict[str, Any]] = None) -> None:
        state = state or dict()
        self.sums = state.get('sums', torch.zeros(3)).to(device, _widest(device))
        self.samples = state.get('samples', 0)
        self.iterations = state.get('iterations', 0)
        self.seen = state.get('seen', 0)
        kept = state.get('values', torch.zeros(0))
        self.values = torch.zeros(
            ITERATIONS_KEPT, dtype=_widest(device), device=device)
        self.values[:len(kept)] = kept.to(device)
        self.batches = list(state.get('batches', []))

    @property
    def stride(self) -> int:
        stride = 1
        while self.seen > stride * ITERATIONS_KEPT:
            stride *= 2
        return stride

    def add(self, kl: Tensor, batch: int) -> None:
        weighted = kl * batch
        bad = (~kl.isfinite()).to(kl.dtype)
        self.sums += torch.stack([weighted, weighted * kl, bad])
        self.samples += batch
        self.iterations += 1
        position, left_out = divmod(self.seen, self.stride)
        self.seen += 1
        if left_out:
            return
        if position == ITERATIONS_KEPT:  # full: every other one goes
            position //= 2
            self.values[:position] = self.values[::2].clone()
            self.batches = self.batches[::2]
        self.values[position] = weighted
        self.batches.append(batch)

    def forget_values(self) -> None:
        """Keep the place in the series alone: the first rank has the rest."""
        self.sums = torch.zeros_like(self.sums)
        self.values = torch.zeros_like(self.values)
        self.batches = [0] * len(self.batches)
        self.samples = self.iterations = 0

    def to_row(self) -> Tensor:
        """All numbers but ``seen`` as (5 + 2 * ITERATIONS_KEPT, ) float64."""
        batches = self.sums.new_zeros(ITERATIONS_KEPT)
        batches[:len(self.batches)] = self.sums.new_tensor(self.batches)
        counts = self.sums.new_tensor([self.samples, self.iterations])
        return torch.cat(
            [self.sums, counts, self.values, batches])

    def from_row(self, row: Tensor) -> None:
        self.sums, counts, self.values, batches = row.split(
            [3, 2, ITERATIONS_KEPT, ITERATIONS_KEPT])
        self.samples, self.iterations = (int(n) for n in counts.tolist())
        self.batches = [int(n) for n in batches[:len(self.batches)].tolist()]

    def state_dict(self) -> Dict[str, Any]:
        return dict(
            sums=self.sums.cpu().clone(),
            samples=self.samples,
            iterations=self.iterations,
            seen=self.seen,
            values=self.values[:len(self.batches)].cpu().clone(),
            batches=list(self.batches))


class KLStatistics:
    """Running sums of the KL divergence of every layer.

    Each iteration counts by its number of samples, so that a short last batch
    weighs no more than its samples: this project's choice, equal to the mean
    over iterations wherever batches are equal.
    """

    def __init__(self) -> None:
        self._layers: Dict[str, _Layer] = {}
        # Of the step that is running: it counts once it has ended.
        self._pending: List[Tuple[str, Tensor, int]] = []
        self._step: Optional[int] = None
        self._ended: Optional[int] = None  # the last step that counts
        self._scattered = False
        self.window: Optional[Window] = None

    def begin_step(self, window: Window, step: int) -> None:
        """Begin a training step; one that an error has cut off is forgotten.

        Args:
            window (Window): That the statistics are of. Sums of another are
                forgotten.
            step (int): Its number. A step that is repeated, since an error
                came after it had ended, counts once.
        """
        if self.window not in (None, window):
            self.reset()
        self.window, self._step = window, step
        self._pending.clear()
        self._scattered = _distributed() and dist.get_world_size() > 1

    def observe(self, layer: str, prev: Tensor, curr: Tensor) -> None:
        """See one layer within a step; arguments as :meth:`update`'s."""
        if not _recomputing():
            self._pending.append((layer, _mean_kl(prev, curr), len(curr)))

    def end_step(self) -> None:
        """Add what the step has shown."""
        if self._step != self._ended:
            for layer, kl, batch in self._pending:
                self._add(layer, kl, batch)
        self._ended = self._step
        self._pending.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added; the same on all ranks."""
        return not self._layers

    @property
    def is_scattered(self) -> bool:
        """Whether other ranks may hold sums that the first one lacks.

        It is the same on all ranks.
        """
        return self._scattered

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
        self._add(layer, _mean_kl(prev, curr), len(curr))

    def _add(self, layer: str, kl: Tensor, batch: int) -> None:
        if layer not in self._layers:
            self._layers[layer] = _Layer(kl.device)
        self._layers[layer].add(kl.to(_widest(kl.device)), batch)

    def _total(self, layers: List[str]) -> Tensor:
        """Rows of all layers, summed over ranks: the same bits on each."""
        device = next((x.sums.device for x in self._layers.values()), 'cpu')
        rows = torch.stack([
            (self._layers.get(name) or _Layer(device)).to_row()
            for name in layers
        ])
        if _distributed():
            if dist.get_backend() == 'nccl':
                rows = rows.cuda()
            dist.all_reduce(rows)
            dist.broadcast(rows, src=0)
        return rows

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
        for name, row in zip(layers, self._total(layers).tolist()):
            total, squares, bad, samples, iterations = row[:5]
            if not samples:
                continue
            mean = total / samples
            variance = max(squares / samples - mean * mean, 0.)
            values, batches = row[5:5 + ITERATIONS_KEPT], row[-ITERATIONS_KEPT:]
            own = self._layers.get(name)
            statistics[name] = LayerKL(
                mean, variance**0.5, int(samples), int(iterations), int(bad),
                [v / batch for v, batch in zip(values, batches) if batch],
                [int(batch) for batch in batches if batch],
                own.seen if own else 0)
        return statistics

    def move_to_rank_0(self, layers: List[str]) -> None:
        """Move the sums of all ranks to the first, before it saves them.

        Every rank must call it, with the same layers. What they add up to
        stays as it is, so that a run resumed on any number of ranks goes on
        with all samples.

        Args:
            layers (List[str]): Names of the active layers, in order.
        """
        if not layers or not _distributed():
            return
        for name, row in zip(layers, self._total(layers)):
            if name not in self._layers:
                continue
            if dist.get_rank() == 0:
                self._layers[name].from_row(row)
            else:
                self._layers[name].forget_values()
        self._scattered = False

    def reset(self) -> None:
        """Forget everything, for the next window."""
        self._layers.clear()
        self._pending.clear()
        self.window = self._ended = None
        self._scattered = False

    def state_dict(self) -> Dict[str, Dict[str, Any]]:
        """Per layer, numbers, lists and tensors on the CPU."""
        return {
            name: layer.state_dict()
            for name, layer in self._layers.items()
        }

    def load_state_dict(self, state: Dict[str, Any], device,
                        window: Optional[Window] = None) -> None:
        """Go on from what :meth:`state_dict` returned on the first rank.

        Args:
            state (Dict[str, Any]): The first rank takes all of it up, since it
                holds what :meth:`move_to_rank_0` moved there.
            device (torch.device): Where the weights are.
            window (Window, optional): That they are of. Defaults to None:
                unknown.

        Raises:
            UsageError: If it is no such state.
        """
        self.reset()
        self.window = window
        for name, layer in state.items():
            if isinstance(layer, Tensor):  # sums alone, as once was saved
                layer = dict(
                    sums=layer * layer.new_tensor([1., 1., 0.]),
                    samples=int(layer[2]))
            if not _is_state(layer):
                raise UsageError(
                    f"the checkpoint's statistics of {name} are none: expected "
                    'sums of 3 numbers and as many values as batches; it was '
                    'changed or damaged, resume from another one')
            self._layers[name] = _Layer(device, layer)
            if _distributed() and dist.get_rank() != 0:
                self._layers[name].forget_values()


def _is_state(layer: Any) -> bool:
    """Whether it is what :meth:`_Layer.state_dict` returns, or once did."""
    if not isinstance(layer, dict):
        return False
    values, batches = layer.get('values', []), layer.get('batches', [])
    sums = layer.get('sums')
    return (isinstance(sums, Tensor) and sums.shape == (3, )
            and len(values) == len(batches) <= ITERATIONS_KEPT)


def _mean_kl(prev: Tensor, curr: Tensor) -> Tensor:
    """The mean over samples and heads; of no samples 0, which weighs nothing."""
    return adjacent_kl(prev, curr) if len(curr) else curr.new_zeros(())


def _widest(device) -> torch.dtype:
    """float64, but on devices that have none (Apple's MPS)."""
    mps = torch.device(device).type == 'mps'
    return torch.float32 if mps else torch.float64


def _recomputing() -> bool:
    """Whether a backward pass is running, where only a repetition runs."""
    if is_compiling():  # repeats in its graph, not in Python
        return False
    return torch._C._current_graph_task_id() != -1


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
