"""What training steps show of attention: a window's sums, and the first step."""
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
    """Watches the attention weights of a backbone while it trains.

    Attributes:
        backbone (LayerAttentionMixin | None): That is watched; None before
            the training.
        statistics (KLStatistics): Of the window so far.
        first_kl (FirstKL): Of the run's first step, if its attention was
            fresh then.
    """

    def __init__(self) -> None:
        self.backbone: Optional[LayerAttentionMixin] = None
        self.statistics = KLStatistics()
        self.first_kl: FirstKL = {}
        self._first_step: Optional[KLStatistics] = None  # while it runs
        # The epoch that is running, if windows count epochs, and the
        # statistics that it started with.
        self._epoch_start: Optional[Tuple[int, dict]] = None
        self._within_epoch = False

    @property
    def active(self) -> List[str]:
        """Names of the active layers, in order."""
        return [x.name for x in self.backbone.attention_layers if x.active]

    def begin_epoch(self, epoch: int) -> None:
        """Keep the statistics that an epoch starts with."""
        self._epoch_start = epoch, self.statistics.state_dict()
        self._within_epoch = True

    def end_epoch(self) -> None:
        """Take what the epoch has measured for good."""
        self._within_epoch = False

    def start_over(self, epoch: int, window: Optional[Window]) -> None:
        """Forget what an epoch measured that an error has cut off.

        Args:
            epoch (int): That begins now, from 0; another than the one that was
                cut off changes nothing.
            window (Window, optional): That it lies in.
        """
        self._within_epoch = False
        if self._epoch_start is None or self._epoch_start[0] != epoch:
            return
        self.statistics.reset()
        if window is not None:
            self.load_statistics(self._epoch_start[1], window)

    def begin_step(self, iteration: int, window: Optional[Window]) -> None:
        """Watch a step of a window, and the first of a run.

        Args:
            iteration (int): From 0.
            window (Window, optional): That the step lies in.
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
        # An evaluation that others run inside a step is no training.
        if self.backbone.training:
            for observer in observers:
                observer(name, prev, curr)

    def end_step(self) -> None:
        """Count the step."""
        self.stop()
        self.statistics.end_step()
        if self._first_step is not None:
            self.first_kl = {
                name: (kl.mean, kl.uniform) for name, kl in
                self._first_step.so_far(self.active).items()
            }
            self._first_step = None

    def stop(self) -> None:
        """Leave the backbone alone."""
        self.backbone.observe(None)

    def so_far(self) -> Dict[str, LayerKL]:
        """Average over the window until now; every rank must call it."""
        return self.statistics.so_far(self.active)

    def take(self, model: nn.Module) -> Dict[str, LayerKL]:
        """Average over the window and forget it; every rank must call it.

        Args:
            model (nn.Module): That trains, wrapped or not.

        Returns:
            Dict[str, LayerKL]: By layer.
        """
        check_weights(model)
        measured = self.statistics.reduce(self.active)
        self.statistics.reset()
        return measured

    def move_to_rank_0(self, model: nn.Module) -> None:
        """Let the rank that saves have the sums of all, before it saves.

        ``save_checkpoint`` runs on the main rank alone: a collective there
        would wait for the others for good.

        Args:
            model (nn.Module): That trains, wrapped or not.
        """
        check_weights(model)
        self.statistics.move_to_rank_0(self.active)

    def state_dict(self, runner) -> Dict[str, Any]:
        """Form what a checkpoint needs of it; on the main rank.

        Args:
            runner (Runner): While it trains.

        Returns:
            Dict[str, Any]: Plain values and tensors.
        """
        if self._within_epoch:
            # mmengine will start this epoch over: what it has measured so far
            # is going to be measured again.
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
        """Go on from what :meth:`state_dict` returned."""
        window = state.get('window')  # earlier versions have not said it
        self.load_statistics(state['statistics'],
                             None if window is None else tuple(window))
        self.first_kl = {
            name: (float(kl), float(uniform))
            for name, (kl, uniform) in state.get('first_kl', {}).items()
        }

    def load_statistics(self, state: Dict[str, Any],
                        window: Optional[Window]) -> None:
        """Go on from a state of ``statistics`` alone."""
        device = next(self.backbone.parameters()).device
        self.statistics.load_state_dict(state, device, window)
