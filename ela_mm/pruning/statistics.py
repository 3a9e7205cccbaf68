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
    """Running sums of every layer's KL divergence over a window.

    Each iteration is weighted by its number of samples, so that a short last
    batch does not count as much as a full one. This is this project's choice;
    with batches of equal size it is the mean over iterations.
    """

    def __init__(self) -> None:
        self._layers: Dict[str, LayerSums] = {}
        # What the running step has shown; added to the sums when it ends.
        self._pending: List[Tuple[str, Observed]] = []
        self._step: Optional[int] = None
        self._ended: Optional[int] = None  # the last step that counts
        self._scattered = False
        self.window: Optional[Window] = None

    def begin_step(self, window: Window, step: int) -> None:
        """Begin a training step and drop what an interrupted step has shown.

        Args:
            window (Window): The window that is being measured. Sums of any
                other window are dropped.
            step (int): Number of the step. A step that is repeated because an
                error came after its end counts once.
        """
        if self.window not in (None, window):
            self.reset()
        self.window, self._step = window, step
        self._pending.clear()
        self._scattered = _distributed() and dist.get_world_size() > 1

    def observe(self, layer: str, prev: Tensor, curr: Tensor) -> None:
        """Note one layer of the running step; arguments as in `update`."""
        if not _recomputing():
            self._pending.append((layer, Observed.of(prev, curr)))

    def end_step(self) -> None:
        """End the step and add to the sums what it has shown."""
        if self._step != self._ended:
            for layer, observed in self._pending:
                self._add(layer, observed)
        self._ended = self._step
        self._pending.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been added yet; the same on all ranks."""
        return not self._layers

    @property
    def samples(self) -> int:
        """Number of samples in this rank's sums.

        On rank 0 that includes what :meth:`move_to_rank_0` has moved there.
        """
        return max((x.samples for x in self._layers.values()), default=0)

    @property
    def is_scattered(self) -> bool:
        """Whether ranks other than 0 may hold sums; the same on all ranks."""
        return self._scattered

    def update(self, layer: str, prev: Tensor, curr: Tensor) -> None:
        """Add one iteration of one layer.

        The forward pass that activation checkpointing repeats during the
        backward pass sees the same samples again and is ignored.

        Args:
            layer (str): Name of the layer whose redundancy is measured.
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
        """Sum the rows of all layers over ranks; bitwise equal on all ranks."""
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
        """Average what was added, with the same result on all ranks.

        This is a collective: every rank must call it, with the same layers.

        Args:
            layers (List[str]): Names of the active layers, in order.

        Returns:
            Dict[str, LayerKL]: Averages by name, of the layers that at least
            one rank has measured.
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
        """Average what was added until now, without the single steps.

        This is a collective: every rank must call it, with the same layers.
        It synchronises with the device, and ranks exchange nine numbers per
        layer.

        Args:
            layers (List[str]): Names of the active layers, in order.

        Returns:
            Dict[str, LayerKL]: Averages by name, of the layers that at least
            one rank has measured; their series are empty.
        """
        if not layers:
            return {}
        totals = self._total(layers, LayerSums.totals).cpu()
        rows = torch.nn.functional.pad(totals, (0, 3 * ITERATIONS_KEPT))
        found = {name: reduced(row, 0) for name, row in zip(layers, rows)}
        return {name: kl for name, kl in found.items() if kl is not None}

    def move_to_rank_0(self, layers: List[str]) -> None:
        """Move the sums of all ranks to rank 0, before it saves them.

        This is a collective: every rank must call it, with the same layers.
        The totals stay the same, so a run that is resumed on any number of
        ranks goes on with all samples.

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
        """Drop everything, ready for the next window."""
        self._layers.clear()
        self._pending.clear()
        self.window = self._ended = None
        self._scattered = False

    def state_dict(self) -> Dict[str, Dict[str, Any]]:
        """Return the sums by layer, as numbers, lists and CPU tensors."""
        return {
            name: layer.state_dict()
            for name, layer in self._layers.items()
        }

    def load_state_dict(self, state: Dict[str, Any], device,
                        window: Optional[Window] = None) -> None:
        """Continue from what :meth:`state_dict` returned on rank 0.

        Args:
            state (Dict[str, Any]): State of rank 0, which holds the sums of
                all ranks (:meth:`move_to_rank_0`) and takes them back.
            device (torch.device): Device of the attention weights.
            window (Window, optional): The window that was being measured.
                Defaults to None: unknown.

        Raises:
            UsageError: If ``state`` is not such a state.
        """
        self.reset()
        self.window = window
        for name, layer in state.items():
            if isinstance(layer, Tensor):  # earlier versions saved sums alone
                layer = dict(
                    sums=layer * layer.new_tensor([1., 1., 0.]),
                    samples=int(layer[2]))
            if not is_state(layer):
                raise UsageError(
                    f"the checkpoint's statistics of {name} cannot be read: "
                    f'expected {SUMS} sums and as many values as batches; the '
                    'file was changed or damaged, resume from another one')
            self._layers[name] = LayerSums(device, layer)
            if _distributed() and dist.get_rank() != 0:
                self._layers[name].forget_values()


def _recomputing() -> bool:
    """Return whether a backward pass is repeating this forward pass."""
    if is_compiling():  # compiled graphs recompute without running Python
        return False
    return torch._C._current_graph_task_id() != -1


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
