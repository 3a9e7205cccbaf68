"""Measures redundancy in windows of a training and skips redundant layers."""
from typing import Any, Dict, List, Optional, Sequence

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop

from ...models.backbones.layer_attention_mixin import (
    LayerAttentionMixin,
    find_backbone,
)
from ...pruning import KLStatistics
from ...pruning.build import build_criterion
from ...pruning.criteria import Criterion
from ...pruning.decision import Decision
from ...pruning.kl import check_redundancy
from ...pruning.trust import FirstKL, Rules
from ...pruning.windows import Window, Windows
from .. import surgery
from ..checkpoints import saves_after_step
from ..held_out import HeldOut
from ..journal.journal import Journal
from ..journal.scalars import logs_after_step
from ..lifetime import is_another_run, when_over
from ..measurement import Measurement
from ..ranks import check_agreement
from ..resumption import STATE_KEY, hook_state, restore, state_to_resume
from ..sanity import check_options, check_run, what_has_to_agree
from ..step_clock import StepClock
from ..verdict import verdict_of
from .reseed_hook import ensure_reseeding


@HOOKS.register_module()
class ELAPruneHook(Hook):
    """Skips redundant attention layers at the end of each window.

    Within a window, the hook averages the KL divergence between the attention
    weights of neighbouring layers over all training iterations and ranks. At
    the end of the window, before validation, EMA's swap and the checkpoint of
    that epoch, a criterion decides which layers are skipped from then on. Every
    decision is logged as a table, sent to the Visualizer, written to
    ``ela_decisions.json`` in the work dir, and passed to every hook with a
    method ``after_pruning(runner, decision)``.

    Args:
        windows (Sequence): Windows, in any mixture of pairs (first, last) of
            epochs, inclusive and counted from 1; two shares of the training,
            such as (0.0, 0.1); and ('after_warmup', n), the n epochs after the
            warm-up of the learning rate. ``dict(window=PAIR,
            criterion=dict(...))`` is a window with a criterion of its own. The
            paper: [(1, 1), (7, 7)] on COCO, [(1, 3), (51, 53)] on ImageNet,
            [(1, 3), (45, 48), (91, 93)] on CIFAR.
        criterion (dict, optional): ``type`` and parameters of the criterion.
            ``'ablation'`` measures each layer on images held out of the
            training set, see :func:`ela_mm.pruning.by_loss.ablation`. Defaults
            to ``dict(type='EBQM')``, see :func:`ela_mm.ebqm`.
        by_epoch (bool): Whether windows count epochs; if False, they count
            iterations. Defaults to True.
        skip (str): How layers are skipped, ``'layer'`` or ``'retrieval'``, see
            ``skip_layers`` of the backbone. Defaults to ``'layer'``.
        timing_steps (int): Number of steps whose median time is reported
            before and after a pruning; fewer than 10 are not compared.
            Defaults to 50.
        picture (bool): Whether to send a picture of each window's redundancy to
            the Visualizer, as ``ela_redundancy``. Defaults to True.
        uninformative (str): What to do with a window whose ranking says
            nothing of what attention has learned, since layers rank by
            position, or attention is unchanged since it was drawn, or is
            saturated (:mod:`ela_mm.pruning.trust`). ``'prune'``, the paper's
            rule, follows the criterion; ``'warn'`` does so with a warning;
            ``'wait'`` skips nothing in that window. Defaults to ``'warn'``.
        min_stability (float): Share of resampled windows, in [0, 1], that must
            skip a layer for it to be skipped. Defaults to 0: no condition.
        redundancy (str): Measure that the criterion ranks layers by:
            ``'paper'``, D of equation 11; ``'excess'``, D minus the D of
            uniform weights; or ``'conditional'``, the first part of D alone,
            which says how differently a layer attends to its predecessors
            whatever weight it gives to itself. See
            :class:`~ela_mm.pruning.kl.Parts`. Log and record have all three.
            Defaults to ``'paper'``.
        timing_rounds (int): Number of pairs of steps, forward and backward,
            that a copy of the network takes on the last batch after a pruning,
            in turns with and without the skipped layers. Their ratio does not
            depend on the load of the machine, and the training is not
            affected. In runs on one process only. Defaults to 0: none.

    Raises:
        UsageError: Before training starts, on wrong windows, an unknown
            criterion or wrong parameters, a model without layer attention, or
            a second hook of this type.
    """

    # Before EMAHook (NORMAL) and CheckpointHook (VERY_LOW).
    priority = 'ABOVE_NORMAL'

    def __init__(self,
                 windows: Sequence[Any],
                 criterion: Optional[dict] = None,
                 by_epoch: bool = True,
                 skip: str = 'layer',
                 timing_steps: int = 50,
                 picture: bool = True,
                 uninformative: str = 'warn',
                 min_stability: float = 0.,
                 redundancy: str = 'paper',
                 timing_rounds: int = 0) -> None:
        self._windows = Windows(windows, by_epoch)
        self.criterion = build_criterion(criterion)
        self._own_criteria = {
            given: build_criterion(config)
            for given, config in self._windows.criteria.items()
        }
        self.rules = Rules(uninformative, min_stability).check()
        self.redundancy = check_redundancy(redundancy)
        self.by_epoch = by_epoch
        self.skip = skip
        self.images = max(x.images for x in self._criteria)
        check_options(self)
        self.held_out: Optional[HeldOut] = None
        self._journal_options = (self.criterion.config, skip, picture,
                                 uninformative != 'prune', redundancy)
        self._clock_options = timing_steps, timing_rounds
        self._begin_anew()
        self._resumed: Optional[Dict[str, Any]] = None

    def _begin_anew(self) -> None:
        """Start with no window measured or decided."""
        self._windows.begun = {}
        self.measurement = Measurement()
        self.journal = Journal(self._windows, *self._journal_options)
        self.clock = StepClock(self.journal, *self._clock_options)

    @property
    def windows(self) -> List[Window]:
        """Windows of this training as pairs (first, last), in order."""
        return self._windows.spans

    @property
    def decisions(self) -> List[Decision]:
        """Decisions so far, one for each window that has ended."""
        return self.journal.decisions

    @property
    def backbone(self) -> Optional[LayerAttentionMixin]:
        """Backbone whose layers are skipped; None before training."""
        return self.measurement.backbone

    @property
    def statistics(self) -> KLStatistics:
        """Statistics of the current window so far."""
        return self.measurement.statistics

    @property
    def first_kl(self) -> FirstKL:
        """KL divergences of the run's first step, if attention was fresh."""
        return self.measurement.first_kl

    def count(self, runner) -> int:
        """Return the number of the running epoch or iteration, from 1."""
        return (runner.epoch if self.by_epoch else runner.iter) + 1

    def window_of(self, count: int) -> Optional[Window]:
        """Find the window of an epoch or iteration, unless it is decided."""
        window = self._windows.containing(count)
        decided = [decision.window for decision in self.decisions]
        return None if window in decided else window

    @property
    def _criteria(self) -> List[Criterion]:
        return [self._own_criteria.get(given, self.criterion)
                for given in self._windows.given]

    def criterion_of(self, window: Window) -> Criterion:
        """Find the criterion of a window: its own, or that of the hook."""
        return self._own_criteria.get(
            self._windows.given_of(window), self.criterion)

    # --- before training -----------------------------------------------------

    def before_run(self, runner) -> None:
        """Check model and windows, before weights are loaded."""
        if not isinstance(runner._train_loop, BaseLoop):
            return  # validation or test only: nothing to prune
        if is_another_run(self, runner):
            self._begin_anew()
        check_run(self, runner)
        self.measurement.backbone = find_backbone(runner.model)
        if self.images and (self.held_out is None or self.held_out.loader
                            is not runner.train_dataloader):
            self.held_out = HeldOut(runner, self.images)
            runner.logger.info(
                f'{self.images} pictures of the training set are held out of '
                'it: the criterion tries the network on them')
        ensure_reseeding(runner)
        when_over(runner.train_loop, lambda error: self._end(runner, error))

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the state for before_train; the weights are not loaded yet."""
        self._resumed = state_to_resume(runner, checkpoint)

    def before_train(self, runner) -> None:
        """Restore the state of a resumed run; the weights are loaded now."""
        restore(self, runner, self._resumed)
        self._resumed = None
        check_agreement(
            **what_has_to_agree(runner),
            active_layers=self.measurement.active,
            windows=self.windows,
            criteria=[criterion.config for criterion in self._criteria],
            redundancy=self.redundancy)
        surgery.prepare(runner)
        self.journal.begin(runner, self.backbone)

    # --- within a window -----------------------------------------------------

    def before_train_epoch(self, runner) -> None:
        """Keep the statistics that the epoch starts with, in case of errors."""
        if self.by_epoch:
            self.measurement.begin_epoch(runner.epoch)
            self.clock.begin_epoch()

    def before_train_iter(self,
                          runner,
                          batch_idx: int,
                          data_batch=None) -> None:
        """Observe the attention weights of this step if it is in a window."""
        surgery.take_in_released(runner)
        count = self.count(runner)
        window = self.window_of(count)
        starts = window is not None and window[0] == count and (
            batch_idx == 0 or not self.by_epoch)
        if starts:
            self.journal.tell_begin(runner, window)
        self.measurement.begin_step(runner.iter, window)
        self.clock.begin_step(window is not None, starts)

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch=None,
                         outputs: Optional[dict] = None) -> None:
        """End the step; decide if a window of iterations ends here."""
        self.measurement.end_step()
        self.clock.end_step(runner, data_batch)
        if not self.by_epoch:
            self._decide_if_over(runner)
        if logs_after_step(runner, batch_idx):
            self._tell_so_far(runner, batch_idx)
        if saves_after_step(runner):
            self.measurement.move_to_rank_0(runner.model)

    def _tell_so_far(self, runner, batch_idx: int) -> None:
        """Log interim values, unless the window ends and is decided here."""
        count = self.count(runner)
        window = self.window_of(count)
        if window is None or self.by_epoch and window[1] == count and (
                self.end_of_epoch(runner.train_dataloader, batch_idx)):
            return
        self.journal.tell_so_far(runner, self.measurement.so_far)

    def after_train_epoch(self, runner) -> None:
        """Decide if a window of epochs ends here."""
        self.clock.end_epoch(runner)
        if self.by_epoch:
            self._decide_if_over(runner)
            self.journal.write(runner)
        self.measurement.end_epoch()
        self.measurement.move_to_rank_0(runner.model)

    def before_val(self, runner) -> None:
        """Collect the ranks' sums: validation may save a best checkpoint."""
        if self.statistics.is_scattered:
            self.measurement.move_to_rank_0(runner.model)

    # --- at its end ----------------------------------------------------------

    def _decide_if_over(self, runner) -> None:
        count = self.count(runner)
        window = self.window_of(count)
        if window is not None and window[1] == count:
            self.clock.end_window(runner)
            self._decide(runner, window)

    def _decide(self, runner, window: Window) -> None:
        """Decide on a window, skip layers, and report."""
        measured = self.measurement.take(runner.model)
        decision = verdict_of(self, runner, window, measured)
        if decision.skipped:
            surgery.skip(runner, decision.skipped, self.skip)
        self.clock.decided(decision)
        self.journal.tell(runner, decision)
        self.clock.time_in_turns(runner, decision)
        runner.call_hook('after_pruning', decision=decision)

    def _end(self, runner, error: Optional[BaseException]) -> None:
        """Stop observing; an exception may have ended the training."""
        self.measurement.stop()
        self.clock.end(runner)
        self.journal.tell_end(runner, self.count(runner), error)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add the state that a resumed run needs."""
        if self.backbone is not None:  # else the checkpoint is of no training
            checkpoint[STATE_KEY] = hook_state(self, runner)
