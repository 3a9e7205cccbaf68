"""When to measure, reduce, decide, apply and log: pruning while training."""
import gc
import math
from typing import List, Optional, Sequence, Tuple

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import (
    MMSeparateDistributedDataParallel,
    is_model_wrapper,
)
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...errors import UsageError
from ...models.backbones.layer_attention_mixin import (
    SKIP_MODES,
    LayerAttentionMixin,
    find_backbone,
)
from ...pruning import KLStatistics, LayerKL
from ...pruning.build import build_criterion
from ...pruning.windows import Window, check_windows, window_of
from ..checkpoints import DEPLOY_KEY, is_within_epoch
from ..gain import StepTimer
from ..journal.record import FORMAT, write_record
from ..journal.table import prune_table
from ..randomness import (
    EPOCH,
    VALIDATION,
    SeededBatches,
    WorkerSeeds,
    seed_all,
    seed_workers,
)
from ..ranks import check_agreement, from_main_rank

# Where the hook keeps its state in mmengine's checkpoints.
STATE_KEY = 'ela_prune_hook'
# Steps right after a pruning that are not timed: allocators settle.
WARM_UP_STEPS = 2


@HOOKS.register_module()
class ELAPruneHook(Hook):
    """Skips redundant attention layers at the end of each window.

    Within a window it averages the KL divergence between the attention
    weights of neighbouring layers over all training iterations and ranks; at
    the window's end, before validation, EMA's swap and the checkpoint of that
    epoch, a criterion decides which layers are skipped from then on. Every
    decision is logged as a table, sent to the Visualizer and written to
    ``ela_decisions.json`` in the work dir.

    Args:
        windows (Sequence[Sequence[int]]): Pairs (first, last) of epochs,
            inclusive and counted from 1. The paper: [(1, 1), (7, 7)] on COCO,
            [(1, 3), (51, 53)] on ImageNet, [(1, 3), (45, 48), (91, 93)] on
            CIFAR.
        criterion (dict, optional): ``type`` and parameters. Defaults to
            dict(type='EBQM'), see :func:`ela_mm.ebqm`.
        by_epoch (bool): Whether windows count epochs; if False, iterations.
            Defaults to True.
        skip (str): ``'layer'`` or ``'retrieval'``, see
            ``skip_layers`` of the backbone. Defaults to ``'layer'``.
        timing_steps (int): Steps whose median is reported before and after a
            pruning. Defaults to 50.
        picture (bool): Whether a picture of each window's redundancy goes to
            the Visualizer, as ``ela_redundancy``. Defaults to True.

    Raises:
        UsageError: Before training starts, on wrong windows, an unknown
            criterion or wrong parameters, or a model without layer attention.
    """

    # Before EMAHook (NORMAL) and CheckpointHook (VERY_LOW).
    priority = 'ABOVE_NORMAL'

    def __init__(self,
                 windows: Sequence[Sequence[int]],
                 criterion: Optional[dict] = None,
                 by_epoch: bool = True,
                 skip: str = 'layer',
                 timing_steps: int = 50,
                 picture: bool = True) -> None:
        self.windows = check_windows(windows)
        self.criterion = build_criterion(criterion)
        if skip not in SKIP_MODES:
            raise UsageError(f'skip={skip!r}: expected one of {SKIP_MODES}')
        if timing_steps < 1:
            raise UsageError(f'timing_steps={timing_steps}: expected at least '
                             '1 step')
        self.by_epoch = by_epoch
        self.skip = skip
        self.picture = picture
        self.backbone: Optional[LayerAttentionMixin] = None  # until training
        self.statistics = KLStatistics()
        self.decisions: List[dict] = []
        self._timer = StepTimer(timing_steps)
        self._timing_steps = timing_steps
        self._steps_since_pruning: Optional[int] = None  # None: not timing
        self._resumed_state: Optional[dict] = None
        self._worker_seeds: Optional[WorkerSeeds] = None
        # At the start of the epoch that is running, if windows count epochs.
        self._statistics_before: Optional[dict] = None

    # --- before training -----------------------------------------------------

    def before_run(self, runner) -> None:
        """Check model and windows, before weights are loaded."""
        if not isinstance(runner._train_loop, BaseLoop):
            return  # validation or test only: nothing to prune
        check_parallelism(runner)
        self.backbone = find_backbone(runner.model)
        _check_loader(runner)
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise UsageError(
                f'windows={self.windows} count epochs, but the train loop is '
                'iteration-based: set by_epoch=False and count iterations')
        unit, limit = (('epoch', runner.max_epochs) if self.by_epoch else
                       ('iteration', runner.max_iters))
        last = self.windows[-1]
        if last[1] > limit:
            raise UsageError(f'window {last} lies past the last {unit} of the '
                             f'training, {limit}: it would never be decided')

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the state for before_train; the weights are not loaded yet."""
        if runner._resume:
            if DEPLOY_KEY in checkpoint.get('meta', {}):
                raise UsageError(
                    'a deploy checkpoint holds no state of training to resume '
                    'from; to fine-tune it, set load_from to it and resume to '
                    'False')
            self._resumed_state = checkpoint.get(STATE_KEY, {})
            if isinstance(runner.train_loop,
                          EpochBasedTrainLoop) and is_within_epoch(checkpoint):
                runner.logger.warning(
                    'the checkpoint was taken within epoch '
                    f'{checkpoint["meta"]["epoch"] + 1}, which mmengine starts '
                    'over: this run will differ from one without an '
                    'interruption. Save checkpoints by epoch, or train with '
                    'an IterBasedTrainLoop')

    def before_train(self, runner) -> None:
        """Take up the state of a resumed run; the weights are loaded now."""
        state, self._resumed_state = self._resumed_state, None
        if state:
            self.decisions = state['decisions']
            device = next(self.backbone.parameters()).device
            self.statistics.load_state_dict(state['statistics'], device)
            if self.decisions and self._is_untimed(self.decisions[-1]):
                self._steps_since_pruning = 0
        if state is not None:
            self._warn_of_missed_windows(runner)
        loop = runner.train_loop
        check_agreement(
            batches_per_epoch=None if isinstance(loop, IterBasedTrainLoop) else
            len(loop.dataloader),
            iterations_done=runner.iter,
            active_layers=[
                layer.name for layer in self.backbone.attention_layers
                if layer.active
            ],
            windows=self.windows,
            criterion=self.criterion.config)
        # Decided at the first train(); a resumed run keeps its decision.
        self.backbone.fresh_norms = state['fresh_norms'] if state else None
        inert = self.backbone.inert_layers
        if inert:
            self._skip(runner, inert, 'layer')
            runner.logger.info(
                f'{len(inert)} attention layers lie in frozen stages with '
                'fresh weights: they add exactly 0 and cannot learn, so they '
                f'are skipped from the start ({", ".join(inert)})')
        if any(not layer.active for layer in self.backbone.attention_layers):
            self._rewrap(runner)  # the mask came after the model was wrapped
        self._write_record(runner)
        if not isinstance(loop, IterBasedTrainLoop):
            self._worker_seeds = seed_workers(loop.dataloader, runner.seed)
        elif not isinstance(loop.dataloader_iterator, SeededBatches):
            loop.dataloader_iterator = SeededBatches(loop.dataloader_iterator,
                                                     runner.seed)

    def _warn_of_missed_windows(self, runner) -> None:
        done = runner.epoch if self.by_epoch else runner.iter
        decided = [tuple(d['window']) for d in self.decisions]
        for window in self.windows:
            if window[1] <= done and window not in decided:
                runner.logger.warning(
                    f'window {window} ended before this run was resumed at '
                    f'{done} and was not decided then: it is left out')

    # --- the same random numbers with and without an interruption ------------

    def before_train_epoch(self, runner) -> None:
        """Seed the epoch; keep the statistics that it starts with."""
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            return  # seeded batch by batch
        seed_all(runner.seed, EPOCH, runner.epoch)
        if self._worker_seeds is not None:
            self._worker_seeds.epoch.fill_(runner.epoch)
        if self.by_epoch:
            self._statistics_before = self.statistics.state_dict()

    def before_val(self, runner) -> None:
        """Seed a validation during training, which may be repeated."""
        if self.backbone is not None:
            seed_all(runner.seed, VALIDATION, runner.iter)

    # --- within a window -----------------------------------------------------

    def before_train_iter(self,
                          runner,
                          batch_idx: int,
                          data_batch=None) -> None:
        """Observe the attention weights of this step, if in a window."""
        if batch_idx == 0 and self._worker_seeds is not None:
            # A loader draws when it starts its workers, not in later epochs.
            seed_all(runner.seed, EPOCH, runner.epoch)
        count = (runner.epoch if self.by_epoch else runner.iter) + 1
        measuring = window_of(self.windows, count) is not None
        if measuring:
            self.backbone.observe(self.statistics.update)
            if self._steps_since_pruning is None and self._starts(
                    count, batch_idx):
                self._timer.reset()  # of steps timed after another pruning
        # Timing waits for the GPU: only where it is going to be reported.
        if measuring or self._steps_since_pruning is not None:
            self._timer.start()

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch=None,
                         outputs: Optional[dict] = None) -> None:
        """Stop observing; decide if an iteration window ends here."""
        self._timer.stop()
        self.backbone.observe(None)
        if self._steps_since_pruning is not None:
            self._steps_since_pruning += 1
            if self._steps_since_pruning <= WARM_UP_STEPS:
                self._timer.reset()
            elif len(self._timer) == self._timing_steps:
                self._report_gain(runner)
        if not self.by_epoch:
            self._decide_if_over(runner, runner.iter + 1)
        if _saves_now(runner):
            self._gather()

    def after_train_epoch(self, runner) -> None:
        """Decide if an epoch window ends here."""
        self._report_gain(runner)  # with the steps that the epoch had
        if self.by_epoch:
            self._decide_if_over(runner, runner.epoch + 1)
        self._statistics_before = None
        self._gather()

    def _starts(self, count: int, batch_idx: int) -> bool:
        """Whether a window's first step is about to run."""
        first = any(count == window[0] for window in self.windows)
        return first and (batch_idx == 0 or not self.by_epoch)

    def _gather(self) -> None:
        """Let the rank that saves checkpoints have the sums of all."""
        self.statistics.gather([
            layer.name for layer in self.backbone.attention_layers
            if layer.active
        ])

    # --- at its end ----------------------------------------------------------

    def _decide_if_over(self, runner, count: int) -> None:
        window = window_of(self.windows, count)
        if window is not None and window[1] == count:
            self._report_gain(runner)
            self._decide(runner, window)

    def _decide(self, runner, window: Window) -> None:
        """Decide on a window's statistics, apply, log and record."""
        layers = self.backbone.attention_layers
        active = [layer.name for layer in layers if layer.active]
        measured = self.statistics.reduce(active)
        self.statistics.reset()
        note = _why_not(runner.model, layers, measured)
        verdict = self._apply_criterion(measured) if note is None else (
            [], {}, note)
        # Same statistics, but perhaps another scipy or processor.
        skip, mapped, note = from_main_rank(verdict)
        if skip:
            self._skip(runner, skip, self.skip)
            self._rewrap(runner)
        decision = dict(
            window=list(window),
            epoch=runner.epoch + 1,
            iter=runner.iter + (not self.by_epoch),
            samples=max((kl.samples for kl in measured.values()), default=0),
            iterations=max((kl.iterations for kl in measured.values()),
                           default=0),
            criterion=self.criterion.config,
            skip=self.skip,
            layers=[
                dict(
                    name=layer.name,
                    stage=layer.stage,
                    index=layer.index,
                    **_measured(measured.get(layer.name)),
                    mapped=mapped.get(layer.name),
                    status=_status(layer, layers, measured, skip)) for layer in layers
            ],
            skipped=skip,
            active=len(active) - len(skip),
            total=len(layers),
            note=note,
            step_time_before=self._timer.median,
            step_time_after=None,
            steps_timed=[len(self._timer), 0])
        self.decisions.append(decision)
        self._timer.reset()
        self._steps_since_pruning = 0 if skip else None
        self._log(runner, decision)
        self._write_record(runner)

    def _apply_criterion(
            self, measured: dict) -> Tuple[List[str], dict, Optional[str]]:
        """Names to skip, mapped values by name, and why nothing is."""
        names = list(measured)
        if len(names) < 2:
            return [], {}, (f'{len(names)} layers were measured; ranking needs '
                            'at least 2')
        try:
            skip, mapped = self.criterion([measured[n].mean for n in names])
        except ValueError as error:
            return [], {}, str(error)
        except Exception as error:  # a failing fit must not end a training
            return [], {}, f'{type(error).__name__}: {error}'
        skipped = [name for name, gone in zip(names, skip) if gone]
        values = {name: _finite(y) for name, y in zip(names, mapped)}
        note = None if skipped else 'the criterion found no layer redundant'
        return skipped, values, note

    def _skip(self, runner, names: List[str], mode: str) -> None:
        """Skip layers in the model and in every averaged copy of it."""
        self.backbone.skip_layers(names, mode)
        for hook in runner.hooks:
            averaged = getattr(hook, 'ema_model', None)
            if averaged is not None:
                find_backbone(averaged).skip_layers(names, mode)
        skipped = {
            parameter
            for parameter in self.backbone.parameters()
            if not parameter.requires_grad
        }
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if hasattr(wrapper,
                                               'values') else [wrapper]
        for wrapper in wrappers:  # momentum of a skipped layer is dead weight
            for parameter in skipped.intersection(wrapper.optimizer.state):
                del wrapper.optimizer.state[parameter]

    @staticmethod
    def _rewrap(runner) -> None:
        """Let DDP sort its buckets anew, without the skipped parameters."""
        if not isinstance(runner.model, DistributedDataParallel):
            return
        module = runner.model.module
        runner.model = None
        gc.collect()  # the old reducer must let go of the gradients first
        runner.model = runner.wrap_model(
            runner.cfg.get('model_wrapper_cfg'), module)
        runner.model.train(module.training)
        runner._maybe_compile('train_step')  # as mmengine did with the old one

    # --- reporting -----------------------------------------------------------

    @staticmethod
    def _is_untimed(decision: dict) -> bool:
        return bool(decision['skipped']) and decision['step_time_after'] is None

    def _report_gain(self, runner) -> None:
        """Say what the last pruning bought, once its steps are timed."""
        if self._steps_since_pruning is None or not len(self._timer):
            return
        self._steps_since_pruning = None
        decision = self.decisions[-1]
        decision['step_time_after'] = self._timer.median
        decision['steps_timed'][1] = len(self._timer)
        before, after = decision['steps_timed']
        runner.logger.info(
            f'{_pruned(decision)}; step {_seconds(decision["step_time_before"])}'
            f' -> {_seconds(decision["step_time_after"])} (medians of {before} '
            f'and {after} steps)')
        self._write_record(runner)

    def _log(self, runner, decision: dict) -> None:
        unit = 'epochs' if self.by_epoch else 'iterations'
        first, last = decision['window']
        runner.logger.info(
            f'redundancy of the attention layers, {unit} {first} to {last}, '
            f'criterion {self.criterion.config}:\n'
            f'{prune_table(decision["layers"])}')
        if decision['skipped']:
            runner.logger.info(_pruned(decision) +
                               f': {", ".join(decision["skipped"])}')
        else:
            # With the window in it: mmengine drops a warning that it repeats.
            runner.logger.warning(f'nothing pruned on {unit} {first} to {last}: '
                                  f'{decision["note"]}')
        scalars = {
            f'ela/kl/{layer["name"]}': layer['kl']
            for layer in decision['layers'] if layer['kl'] is not None
        }
        scalars['ela/active'] = decision['active']
        runner.visualizer.add_scalars(scalars, step=decision['iter'])
        if self.picture and is_main_process():
            self._show(runner, decision, unit[:-1])

    @staticmethod
    def _show(runner, decision: dict, unit: str) -> None:
        """Send the window's picture to TensorBoard, WandB and the like."""
        try:
            # Not at the top: a broken matplotlib must not stop a training.
            from ...plotting import to_array
            from ..journal.picture import decision_picture
            runner.visualizer.add_image(
                'ela_redundancy',
                to_array(decision_picture(decision, unit).figure),
                step=decision['iter'])
        except Exception as error:
            runner.logger.warning('no picture of the redundancy: '
                                  f'{type(error).__name__}: {error}')

    def _write_record(self, runner) -> None:
        if not is_main_process():
            return
        layers = self.backbone.attention_layers
        record = dict(
            format=FORMAT,
            windows=[list(window) for window in self.windows],
            by_epoch=self.by_epoch,
            criterion=self.criterion.config,
            skip=self.skip,
            layers=[layer.name for layer in layers],
            active=[layer.name for layer in layers if layer.active],
            decisions=self.decisions)
        try:
            write_record(record, runner.work_dir)
        except OSError as error:  # the checkpoints hold all of it, too
            runner.logger.warning(
                f'the decisions record was not written: {error}')

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add what a resumed run needs: statistics, decisions, norms."""
        if self.backbone is None:
            return  # saved without training
        fresh = self.backbone.fresh_norms
        statistics = self._statistics_before
        if statistics is None:
            statistics = self.statistics.state_dict()
        # Else mmengine will start this epoch over: what it has measured so
        # far is going to be measured again.
        checkpoint[STATE_KEY] = dict(
            statistics=statistics,
            decisions=self.decisions,
            fresh_norms=None if fresh is None else sorted(fresh))


def check_parallelism(runner) -> None:
    """Check that pruning knows how the model is spread over processes.

    Args:
        runner (Runner | FlexibleRunner): With its model wrapped.

    Raises:
        UsageError: On anything but a plain model, MMDistributedDataParallel,
            or FlexibleRunner's SingleDeviceStrategy.
    """
    strategy = getattr(runner, 'strategy', None)  # FlexibleRunner has one
    name = type(runner.model).__name__
    if strategy is not None:
        name = type(strategy).__name__
        known = name == 'SingleDeviceStrategy'
    elif is_model_wrapper(runner.model):
        known = isinstance(runner.model, DistributedDataParallel) and (
            not isinstance(runner.model, MMSeparateDistributedDataParallel))
    else:
        known = True
    if not known:
        raise UsageError(
            f'ELAPruneHook cannot prune under {name}: it would have to shard '
            'or sort parameters anew. Expected Runner with no model wrapper '
            "or MMDistributedDataParallel (leave out runner_type, strategy "
            'and model_wrapper_cfg), or FlexibleRunner with '
            'SingleDeviceStrategy')


def _check_loader(runner) -> None:
    """See whether there is anything to train on."""
    loader = runner.train_dataloader
    try:
        samples, batches = len(loader.dataset), len(loader)
    except TypeError:  # an iterable dataset need not know
        return
    if batches:
        return
    if not samples or isinstance(runner.train_loop, IterBasedTrainLoop):
        raise UsageError(
            f'the training data loader yields no batch ({samples} samples): '
            'expected at least one; see dataset, batch_size and drop_last of '
            'train_dataloader')
    runner.logger.warning(
        f'the training data loader yields no batch ({samples} samples, batches '
        f'of {loader.batch_size}, drop_last={loader.drop_last}): nothing will '
        'be trained, measured or pruned')


def _saves_now(runner) -> bool:
    """Whether a checkpoint follows this iteration."""
    return any(
        isinstance(hook, CheckpointHook) and not hook.by_epoch and
        (hook.every_n_train_iters(runner, hook.interval, hook.save_begin) or
         (hook.save_last and hook.is_last_train_iter(runner)))
        for hook in runner.hooks)


def _status(layer, layers: Sequence, measured: dict, skip: List[str]) -> str:
    if not layer.active:
        return 'skipped before'
    if layer.name in skip:
        return 'skipped'
    if layer.name in measured:
        return 'kept'
    first = next(x for x in layers if x.active and x.stage == layer.stage)
    return f'kept ({"first of its stage" if layer == first else "not measured"})'


def _why_not(model: nn.Module, layers: Sequence, measured: dict) -> Optional[str]:
    """Why nothing may be decided on what was measured, else None."""
    stages = [layer.stage for layer in layers if layer.active]
    if not measured and len(set(stages)) < len(stages):
        return 'no iteration was measured in this window'
    bad = [(name, kl) for name, kl in measured.items() if kl.bad_iterations]
    if bad:
        return 'KL divergences are not finite: ' + ', '.join(
            f'{name} in {kl.bad_iterations} of {kl.iterations} iterations'
            for name, kl in bad)
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f'the training has diverged: {name} is not finite'
    return None


def _measured(kl: Optional[LayerKL]) -> dict:
    """What the record says of a layer's statistics."""
    if kl is None:
        return dict(kl=None, kl_std=None, bad_iterations=0, kl_iterations=[])
    return dict(
        kl=_finite(kl.mean),
        kl_std=_finite(kl.std),
        bad_iterations=kl.bad_iterations,
        kl_iterations=[_finite(float(f'{value:.6g}')) for value in kl.series])


def _finite(value: float) -> Optional[float]:
    return float(value) if math.isfinite(value) else None


def _seconds(value: Optional[float]) -> str:
    return 'not timed' if value is None else f'{value:.3g} s'


def _pruned(decision: dict) -> str:
    return (f'pruned {len(decision["skipped"])} of {decision["total"]} '
            f'attention layers, {decision["active"]} active')
