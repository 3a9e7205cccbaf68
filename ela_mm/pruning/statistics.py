"""Averages a window's KL divergences over samples, iterations and ranks."""
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..compat.compiling import is_compiling
from ..errors import UsageError
from .layer_kl import (  # noqa: F401
    ITERATIONS_KEPT,
    SUMS,
    LayerKL,
    LayerSums,
    Observed,
    is_state,
    reduced,
)
from .windows import Window


class KLStatistics:
    """Running sums of the KL divergence of every layer.

    Each iteration counts by its number of samples, so that a short last batch
    weighs no more than its samples: this project's choice, equal to the mean
    over iterations wherever batches are equal.
    """

    def __init__(self) -> None:
        self._layers: Dict[str, LayerSums] = {}
        # Of the step that is running: it counts once it has ended.
        self._pending: List[Tuple[str, Observed]] = []
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
            self._pending.append((layer, Observed.of(prev, curr)))

    def end_step(self) -> None:
        """Add what the step has shown."""
        if self._step != self._ended:
            for layer, observed in self._pending:
                self._add(layer, observed)
        self._ended = self._step
        self._pending.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added; the same on all ranks."""
        return not self._layers

    @property
    def samples(self) -> int:
        """Samples so far; on the first rank those of all ranks it has."""
        return max((x.samples for x in self._layers.values()), default=0)

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
        self._add(layer, Observed.of(prev, curr))

    def _add(self, layer: str, observed: Observed) -> None:
        if layer not in self._layers:
            self._layers[layer] = LayerSums(observed.values.device)
        self._layers[layer].add(observed)

    def _total(self, layers: List[str],
               row: Callable[[LayerSums], Tensor] = LayerSums.to_row) -> Tensor:
        """Rows of all layers, summed over ranks: the same bits on each."""
        device = next((x.sums.device for x in self._layers.values()), 'cpu')
        rows = torch.stack([
            row(self._layers.get(name) or LayerSums(device))
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
        for name, row in zip(layers, self._total(layers).cpu()):
            own = self._layers.get(name)
            found = reduced(row, own.seen if own else 0)
            if found is not None:
                statistics[name] = found
        return statistics

    def so_far(self, layers: List[str]) -> Dict[str, LayerKL]:
        """Average over what was added until now, without single steps.

        Every rank must call it, with the same layers. It waits for the
        device; between ranks nine numbers per layer are exchanged.

        Args:
            layers (List[str]): Names of the active layers, in order.

        Returns:
            Dict[str, LayerKL]: Of the layers that any rank has measured,
            their series empty.
        """
        if not layers:
            return {}
        totals = self._total(layers, LayerSums.totals).cpu()
        rows = torch.nn.functional.pad(totals, (0, 3 * ITERATIONS_KEPT))
        found = {name: reduced(row, 0) for name, row in zip(layers, rows)}
        return {name: kl for name, kl in found.items() if kl is not None}

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
            if not is_state(layer):
                raise UsageError(
                    f"the checkpoint's statistics of {name} are none: expected "
                    f'{SUMS} sums and as many values as batches; it was '
                    'changed or damaged, resume from another one')
            self._layers[name] = LayerSums(device, layer)
            if _distributed() and dist.get_rank() != 0:
                self._layers[name].forget_values()


def _recomputing() -> bool:
    """Whether a backward pass is running, where only a repetition runs."""
    if is_compiling():  # repeats in its graph, not in Python
        return False
    return torch._C._current_graph_task_id() != -1


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
