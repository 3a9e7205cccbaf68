"""Measures attention weights in training: in windows, and in the first step."""
from functools import partial
from typing import Any, Dict, List, Optional, Tuple

from torch import Tensor, nn

from ..models.backbones.layer_attention_mixin import LayerAttentionMixin
from ..models.backbones.stages import Observer
from ..pruning import KLStatistics, LayerKL
from ..pruning.trust import FirstKL
from ..pruning.windows import Window
from .ranks import check_weights


class Measurement:
    """Observes the attention weights of a backbone while it trains.

    Attributes:
        backbone (LayerAttentionMixin | None): The observed backbone; None
            before training.
        statistics (KLStatistics): Statistics of the current window so far.
        first_kl (FirstKL): KL divergences of the first step of the run; empty
            if attention was not fresh then.
    """

    def __init__(self) -> None:
        self.backbone: Optional[LayerAttentionMixin] = None
        self.statistics = KLStatistics()
        self.first_kl: FirstKL = {}
        self._first_step: Optional[KLStatistics] = None  # while it runs
        # The running epoch, from 0, and the statistics that it started with, if
        # windows count epochs.
        self._epoch_start: Optional[Tuple[int, dict]] = None
        self._within_epoch = False

    @property
    def active(self) -> List[str]:
        """Names of the active layers, in order."""
        return [x.name for x in self.backbone.attention_layers if x.active]

    def begin_epoch(self, epoch: int) -> None:
        """Keep a copy of the statistics that an epoch starts with."""
        self._epoch_start = epoch, self.statistics.state_dict()
        self._within_epoch = True

    def end_epoch(self) -> None:
        """End an epoch: what it has measured counts."""
        self._within_epoch = False

    def start_over(self, epoch: int, window: Optional[Window]) -> None:
        """Drop what an interrupted epoch has measured, since it starts over.

        Args:
            epoch (int): Epoch that begins now, from 0. If it is not the
                interrupted one, nothing happens.
            window (Window, optional): Window that the epoch lies in, if any.
        """
        self._within_epoch = False
        if self._epoch_start is None or self._epoch_start[0] != epoch:
            return
        self.statistics.reset()
        if window is not None:
            self.load_statistics(self._epoch_start[1], window)

    def begin_step(self, iteration: int, window: Optional[Window]) -> None:
        """Observe a step if it lies in a window or is the first of the run.

        Args:
            iteration (int): Iteration, from 0.
            window (Window, optional): Window that the step lies in, if any.
        """
        observers = []
        if window is not None:
            self.statistics.begin_step(window, iteration)
            observers.append(self.statistics.observe)
        if iteration == 0 and self.backbone.fresh_attention:
            self._first_step = KLStatistics()
            observers.append(self._first_step.update)
        if observers:
            self.backbone.observe(partial(self._observe, observers))

    def _observe(self, observers: List[Observer], name: str, prev: Tensor,
                 curr: Tensor) -> None:
        # Others may evaluate the model within a step; that does not count.
        if self.backbone.training:
            for observer in observers:
                observer(name, prev, curr)

    def end_step(self) -> None:
        """End a step: what it has shown counts."""
        self.stop()
        self.statistics.end_step()
        if self._first_step is not None:
            self.first_kl = {
                name: (kl.mean, kl.uniform) for name, kl in
                self._first_step.so_far(self.active).items()
            }
            self._first_step = None

    def stop(self) -> None:
        """Stop observing the backbone."""
        self.backbone.observe(None)

    def so_far(self) -> Dict[str, LayerKL]:
        """Average over the window so far; every rank must call this."""
        return self.statistics.so_far(self.active)

    def take(self, model: nn.Module) -> Dict[str, LayerKL]:
        """Average over the window and reset; every rank must call this.

        Args:
            model (nn.Module): Model in training, in its DDP wrapper or not.

        Returns:
            Dict[str, LayerKL]: Averages by name of the layer.
        """
        check_weights(model)
        measured = self.statistics.reduce(self.active)
        self.statistics.reset()
        return measured

    def move_to_rank_0(self, model: nn.Module) -> None:
        """Move the sums of all ranks to rank 0, before it saves a checkpoint.

        Every rank must call this. It cannot be done while saving:
        ``save_checkpoint`` runs on rank 0 alone, where a collective would hang.

        Args:
            model (nn.Module): Model in training, in its DDP wrapper or not.
        """
        check_weights(model)
        self.statistics.move_to_rank_0(self.active)

    def state_dict(self, runner) -> Dict[str, Any]:
        """Return the state for a checkpoint; called on rank 0.

        Args:
            runner (Runner): Runner in training.

        Returns:
            Dict[str, Any]: Plain values and tensors.
        """
        if self._within_epoch:
            # mmengine will start this epoch over, and its steps will be
            # measured again.
            _, statistics = self._epoch_start
        else:
            statistics = self.statistics.state_dict()
            if self.statistics.is_scattered:
                runner.logger.warning(
                    'this checkpoint is saved within a window at a point where '
                    'the ranks do not meet: a run that resumes from it lacks '
                    "the other ranks' samples since the last regular checkpoint "
                    f'(iteration {runner.iter + 1})')
        window = self.statistics.window
        return dict(
            statistics=statistics,
            window=None if window is None else list(window),
            first_kl={name: list(kl) for name, kl in self.first_kl.items()})

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        window = state.get('window')  # earlier versions did not save it
        self.load_statistics(state['statistics'],
                             None if window is None else tuple(window))
        self.first_kl = {
            name: (float(kl), float(uniform))
            for name, (kl, uniform) in state.get('first_kl', {}).items()
        }

    def load_statistics(self, state: Dict[str, Any],
                        window: Optional[Window]) -> None:
        """Continue from a state of ``statistics`` alone."""
        device = next(self.backbone.parameters()).device
        self.statistics.load_state_dict(state, device, window)
