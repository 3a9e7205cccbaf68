"""When to measure redundancy, to decide on it, and to skip layers for good."""
import time
from functools import partial
from typing import Any, Dict, List, Optional, Sequence, Tuple

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop
from torch import Tensor

from ...errors import UsageError
from ...models.backbones.layer_attention_mixin import (
    SKIP_MODES,
    LayerAttentionMixin,
    find_backbone,
)
from ...models.backbones.stages import Observer
from ...pruning import KLStatistics, LayerKL
from ...pruning.build import build_criterion
from ...pruning.criteria import Criterion
from ...pruning.decision import Decision, Moment, decide
from ...pruning.kl import check_redundancy
from ...pruning.step_times import LEAST_STEPS
from ...pruning.trust import FirstKL, Rules
from ...pruning.windows import Window, Windows
from .. import surgery
from ..checkpoints import saves_after_step
from ..gain import PruningGain
from ..held_out import HeldOut
from ..in_turns import LEAST_ROUNDS, time_pruning
from ..journal.journal import Journal
from ..journal.scalars import logs_after_step
from ..lifetime import when_over
from ..ranks import check_agreement, check_weights, from_main_rank
from ..resumption import STATE_KEY, hook_state, restore, state_to_resume
from ..sanity import check_run, first_not_finite, what_has_to_agree
from .reseed_hook import ensure_reseeding


@HOOKS.register_module()
class ELAPruneHook(Hook):
    """Skips redundant attention layers at the end of each window.

    Within a window it averages the KL divergence between the attention
    weights of neighbouring layers over all training iterations and ranks; at
    the window's end, before validation, EMA's swap and the checkpoint of that
    epoch, a criterion decides which layers are skipped from then on. Every
    decision is logged as a table, sent to the Visualizer, written to
    ``ela_decisions.json`` in the work dir, and handed to every hook with a
    method ``after_pruning(runner, decision)``.

    Args:
        windows (Sequence): Pairs (first, last) of epochs, inclusive and
            counted from 1, or ``dict(first=1, last=1, criterion=dict(...))``
            for a window with a criterion of its own. The paper: [(1, 1),
            (7, 7)] on COCO, [(1, 3), (51, 53)] on ImageNet, [(1, 3),
            (45, 48), (91, 93)] on CIFAR.
        criterion (dict, optional): ``type`` and parameters. Defaults to
            dict(type='EBQM'), see :func:`ela_mm.ebqm`. ``'ablation'`` tries
            each layer on pictures of the training set that are held out, see
            :func:`ela_mm.pruning.by_loss.ablation`.
        by_epoch (bool): Whether windows count epochs; if False, iterations.
            Defaults to True.
        skip (str): ``'layer'`` or ``'retrieval'``, see
            ``skip_layers`` of the backbone. Defaults to ``'layer'``.
        timing_steps (int): Steps whose median is reported before and after a
            pruning; fewer than 10 are not compared. Defaults to 50.
        uninformative (str): What to do in a window where layers rank by
            position, where attention is still as it was drawn, or saturated,
            so that layers do not differ: ``'prune'``, the paper's rule,
            ``'warn'``, the same with a warning, or ``'wait'``, skip nothing in
            that window. :mod:`ela_mm.pruning.trust` has the tests. Defaults to
            ``'warn'``.
        min_stability (float): Share of resampled windows, 0 to 1, that have to
            skip a layer for it to be skipped. Defaults to 0: one is enough.
        redundancy (str): What the criterion ranks layers by: ``'paper'``, D
            of equation 11; ``'excess'``, D less that of uniform weights; or
            ``'conditional'``, the first part of D alone: how differently a
            layer attends to its predecessors, whatever it gives to itself;
            see :class:`~ela_mm.pruning.kl.Parts`. Log and record have all
            three. Defaults to ``'paper'``.
        picture (bool): Whether a picture of each window's redundancy goes to
            the Visualizer, as ``ela_redundancy``. Defaults to True.
        timing_rounds (int): Pairs of steps, forward and backward on the last
            batch, that a copy of the network takes after a pruning, in turns
            with and without the layers that it skips. Their ratio does not
            depend on what else the machine does; the training stays as it is.
            One process only. Defaults to 0: none.

    Raises:
        UsageError: Before training starts, on wrong windows, an unknown
            criterion or wrong parameters, a model without layer attention, or
            a second hook of this kind.
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
        if skip not in SKIP_MODES:
            raise UsageError(f'skip={skip!r}: expected one of {SKIP_MODES}')
        if timing_steps < 1:
            raise UsageError(f'timing_steps={timing_steps}: expected at least '
                             '1 step')
        if timing_rounds and timing_rounds < LEAST_ROUNDS:
            raise UsageError(f'timing_rounds={timing_rounds}: expected 0, or '
                             f'at least {LEAST_ROUNDS} pairs of steps')
        self.rules = Rules(uninformative, min_stability).check()
        self.images = max(x.images for x in self._criteria)
        if min_stability and self.images:
            raise UsageError(
                f'min_stability={min_stability}: expected 0 with a criterion '
                'that asks the network, since single steps of a window do not '
                'say what it would have decided on them')
        self.redundancy = check_redundancy(redundancy)
        self.by_epoch = by_epoch
        self.skip = skip
        self.backbone: Optional[LayerAttentionMixin] = None  # until training
        self.held_out: Optional[HeldOut] = None
        self.statistics = KLStatistics()
        # Of the run's first step, if its attention was fresh then.
        self.first_kl: FirstKL = {}
        self._first_step: Optional[KLStatistics] = None  # while it runs
        self.journal = Journal(self._windows, self.criterion.config, skip,
                               picture, uninformative != 'prune', redundancy)
        self._gain = PruningGain(timing_steps)
        self.journal.step_times = self._gain.timeline.points
        self._timing_rounds = timing_rounds
        self._last_batch: Any = None  # of a window, to time steps on
        self._resumed: Optional[Dict[str, Any]] = None
        # The epoch that is running, if windows count epochs, and the
        # statistics that it started with.
        self._epoch_start: Optional[Tuple[int, dict]] = None
        self._within_epoch = False

    @property
    def windows(self) -> List[Window]:
        """Pairs (first, last), in order."""
        return self._windows.spans

    @property
    def decisions(self) -> List[Decision]:
        """One per window that has ended."""
        return self.journal.decisions

    def count(self, runner) -> int:
        """Count the epoch or iteration that is running, from 1."""
        return (runner.epoch if self.by_epoch else runner.iter) + 1

    def window_of(self, count: int) -> Optional[Window]:
        """Find the window that is measured at a count; each decides once."""
        window = self._windows.containing(count)
        decided = [decision.window for decision in self.decisions]
        return None if window in decided else window

    @property
    def _criteria(self) -> List[Criterion]:
        return [self._own_criteria.get(given, self.criterion)
                for given in self._windows.given]

    def criterion_of(self, window: Window) -> Criterion:
        """Find the criterion of a window, its own or the run's."""
        return self._own_criteria.get(
            self._windows.given_of(window), self.criterion)

    # --- before training -----------------------------------------------------

    def before_run(self, runner) -> None:
        """Check model and windows, before weights are loaded."""
        if not isinstance(runner._train_loop, BaseLoop):
            return  # validation or test only: nothing to prune
        check_run(self, runner)
        self.backbone = find_backbone(runner.model)
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
        """Take up what went before; the weights are loaded now."""
        restore(self, runner, self._resumed)
        self._resumed = None
        check_agreement(
            **what_has_to_agree(runner),
            active_layers=self._active(),
            windows=self.windows,
            criteria=[criterion.config for criterion in self._criteria],
            redundancy=self.redundancy)
        surgery.prepare(runner)
        self.journal.begin(runner, self.backbone)

    # --- within a window -----------------------------------------------------

    def before_train_epoch(self, runner) -> None:
        """Keep the statistics that the epoch starts with."""
        if self.by_epoch:
            self._epoch_start = runner.epoch, self.statistics.state_dict()
            self._within_epoch = True
            self._gain.timeline.begin()

    def before_train_iter(self,
                          runner,
                          batch_idx: int,
                          data_batch=None) -> None:
        """Observe the attention weights of this step, if in a window."""
        surgery.take_in_released(runner)
        count = self.count(runner)
        window = self.window_of(count)
        observers = []
        if window is not None:
            self.statistics.begin_step(window, runner.iter)
            observers.append(self.statistics.observe)
        if runner.iter == 0 and self.backbone.fresh_attention:
            self._first_step = KLStatistics()
            observers.append(self._first_step.update)
        if observers:
            self.backbone.observe(partial(self._observe, observers))
        starts = window is not None and window[0] == count and (
            batch_idx == 0 or not self.by_epoch)
        if starts:
            self.journal.tell_begin(runner, window, len(self._active()))
        self._gain.begin_step(
            measuring=window is not None, window_starts=starts)

    def _observe(self, observers: List[Observer], name: str, prev: Tensor,
                 curr: Tensor) -> None:
        # An evaluation that others run inside a step is no training.
        if self.backbone.training:
            for observer in observers:
                observer(name, prev, curr)

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch=None,
                         outputs: Optional[dict] = None) -> None:
        """Count the step; decide if an iteration window ends here."""
        self.backbone.observe(None)
        self.statistics.end_step()
        if self._first_step is not None:
            self.first_kl = {
                name: (kl.mean, kl.uniform) for name, kl in
                self._first_step.reduce(self._active()).items()
            }
            self._first_step = None
        self._tell_gain(runner, self._gain.end_step())
        if self._timing_rounds:
            self._last_batch = data_batch
        if not self.by_epoch:
            if self._gain.timeline.end_if_long(runner.iter + 1,
                                               runner.max_iters):
                self.journal.write(runner, self.backbone.attention_layers)
            self._decide_if_over(runner, runner.iter + 1)
        if logs_after_step(runner, batch_idx):
            self._tell_so_far(runner, batch_idx)
        if saves_after_step(runner):
            self._move_to_rank_0(runner)

    def _tell_so_far(self, runner, batch_idx: int) -> None:
        """Where the window goes on; its end has a decision to tell of."""
        last = self.by_epoch and self.end_of_epoch(runner.train_dataloader,
                                                   batch_idx)
        count = self.count(runner)
        window = self.window_of(count)
        if window is not None and not (last and window[1] == count):
            self.journal.tell_so_far(
                runner, lambda: self.statistics.so_far(self._active()))

    def after_train_epoch(self, runner) -> None:
        """Decide if an epoch window ends here."""
        self._tell_gain(runner, self._gain.conclude())
        if self.by_epoch:
            self._gain.timeline.end(runner.epoch + 1)
            self._decide_if_over(runner, runner.epoch + 1)
            self.journal.write(runner, self.backbone.attention_layers)
        self._within_epoch = False
        self._move_to_rank_0(runner)

    def before_val(self, runner) -> None:
        """Collect the sums: a best checkpoint may follow a validation."""
        if self.statistics.is_scattered:
            self._move_to_rank_0(runner)

    def _active(self) -> List[str]:
        return [x.name for x in self.backbone.attention_layers if x.active]

    def _move_to_rank_0(self, runner) -> None:
        """Let the rank that saves have the sums of all, before it saves.

        ``save_checkpoint`` runs on the main rank alone: a collective there
        would wait for the others for good.
        """
        check_weights(runner.model)
        self.statistics.move_to_rank_0(self._active())

    # --- at its end ----------------------------------------------------------

    def _decide_if_over(self, runner, count: int) -> None:
        window = self.window_of(count)
        if window is not None and window[1] == count:
            self._tell_gain(runner, self._gain.conclude(least=1))
            # No stretch of iterations has steps from before and after.
            self._gain.timeline.end(count, LEAST_STEPS)
            self._decide(runner, window)

    def _decide(self, runner, window: Window) -> None:
        """Decide on a window's statistics, operate, and tell."""
        check_weights(runner.model)
        measured = self.statistics.reduce(self._active())
        self.statistics.reset()
        # Same statistics, but perhaps another scipy or processor, and norms of
        # their own.
        decision = from_main_rank(
            self._verdict(runner, window, measured)
            if is_main_process() else None)
        if decision.skipped:
            surgery.skip(runner, decision.skipped, self.skip)
        self._gain.decided(decision)
        self.journal.tell(runner, self.backbone.attention_layers, decision)
        if decision.skipped and self._timing_rounds:
            time_pruning(runner, decision, self._last_batch,
                         self._timing_rounds)
            self.journal.write(runner, self.backbone.attention_layers)
        self._last_batch = None
        runner.call_hook('after_pruning', decision=decision)

    def _verdict(self, runner, window: Window,
                 measured: Dict[str, LayerKL]) -> Decision:
        """Decide, on the main rank."""
        criterion = self.criterion_of(window)
        network = self.held_out and self.held_out.trial(
            runner.model, list(measured), self.skip)
        start = time.perf_counter()
        decision = decide(
            self.backbone.attention_layers, measured, criterion,
            criterion.config,
            Moment(window, runner.epoch + 1,
                   runner.iter + (not self.by_epoch)), self.skip,
            first_not_finite(runner.model), self.rules, self.redundancy,
            network, self.first_kl)
        if network and network.tried:
            runner.logger.info(
                f'the network was tried without {network.tried} choices of '
                f'layers, on {self.images} pictures held out, in '
                f'{time.perf_counter() - start:.0f} s')
        return decision

    def _tell_gain(self, runner, decision: Optional[Decision]) -> None:
        if decision is not None:
            self.journal.tell_gain(runner, self.backbone.attention_layers,
                                   decision)

    def _end(self, runner, error: Optional[BaseException]) -> None:
        """Leave the model alone; an exception may have ended the training."""
        self.backbone.observe(None)
        self._last_batch = None
        self._tell_gain(runner, self._gain.conclude(least=1))
        self.journal.tell_end(runner, self.count(runner), error)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add what a resumed run needs: statistics and decisions."""
        if self.backbone is not None:  # else saved without training
            checkpoint[STATE_KEY] = hook_state(self, runner)
