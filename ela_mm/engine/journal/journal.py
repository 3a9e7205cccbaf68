"""Reports decisions: to the log, as scalars and pictures, and in the record."""
import math
from typing import Any, Callable, Dict, List, Optional, Sequence

from mmengine.dist import is_main_process

from ...models.backbones.layer_attention_mixin import LayerAttentionMixin
from ...pruning import LayerKL
from ...pruning.decision import Decision
from ...pruning.doubt import doubt_of
from ...pruning.edit import MaskEdit
from ...pruning.kl import REDUNDANCY
from ...pruning.step_times import LEAST_STEPS
from ...pruning.windows import Window, Windows, window_name
from ..interruption import tell_interrupted
from .record import FORMAT, decision_to_json, edit_to_json, write_record
from .scalars import drawing, send, send_picture
from .sentences import (
    dashes_sentence,
    early_end,
    gone_before,
    how_it_ended,
    skipped_sentence,
    within,
)
from .table import prune_table

_AGAINST_SATURATION = ('train with a warm-up, a lower learning rate or '
                       'zero_init_attention=True')
_AGAINST_RUSH = ('measure later or longer, after the warm-up, or train '
                 'attention at a higher rate')


class Journal:
    """The decisions of a run so far, and their reports.

    Args:
        windows (Windows): Windows of the run.
        criterion (dict): ``type`` and all parameters of the run's criterion.
        skip (str): How layers are skipped, ``'layer'`` or ``'retrieval'``.
        picture (bool): Whether to send a picture of each window to the
            Visualizer, as ``ela_redundancy``.
        warns (bool): Whether to warn of a ranking that says nothing of what
            attention has learned. Defaults to True.
        redundancy (str): Measure that criteria rank by. Defaults to
            ``'paper'``.

    Attributes:
        decisions (List[Decision]): Decisions, one for each window that has
            ended.
        edits (List[MaskEdit]): Changes made by hand in a checkpoint that the
            run was resumed from.
        backbone (LayerAttentionMixin | None): Backbone of the run, once the
            run has begun.
        step_times (Sequence): Points of the timeline: epoch (or iteration),
            then first quartile, median and third quartile of the seconds of a
            step.
    """

    def __init__(self, windows: Windows, criterion: Dict[str, Any], skip: str,
                 picture: bool,
                 warns: bool = True,
                 redundancy: str = 'paper') -> None:
        self.windows = windows
        self.criterion = criterion
        self.skip = skip
        self.picture = picture
        self.warns = warns
        self.redundancy = redundancy
        self.decisions: List[Decision] = []
        self.edits: List[MaskEdit] = []
        self.backbone: Optional[LayerAttentionMixin] = None
        self.step_times: Sequence[Sequence[float]] = ()

    def begin(self, runner, backbone: LayerAttentionMixin) -> None:
        """Log the windows before the first step, and write the record.

        Args:
            runner (Runner): Runner right before training.
            backbone (LayerAttentionMixin): Backbone with weights and mask
                loaded.
        """
        self.backbone, windows = backbone, self.windows
        length = (f'{runner.max_epochs} epochs' if windows.by_epoch else
                  f'{runner.max_iters} iterations')
        names = ', '.join(map(windows.name, windows.spans))
        runner.logger.info(f'windows of ELAPruneHook: {names}, of {length}')
        self.write(runner)

    def tell_begin(self, runner, window: Window) -> None:
        """Log that a window begins, and how many layers are active."""
        active = sum(x.active for x in self.backbone.attention_layers)
        runner.logger.info(
            f'measuring {self._span(window)}: how redundant {active} attention '
            'layers are')

    def tell_so_far(self, runner, measured: Callable[[], Dict[str, LayerKL]]
                    ) -> None:
        """Send the interim means of a window as scalars.

        Args:
            runner (Runner): Runner after a step that LoggerHook logs.
            measured (Callable): Function that returns the means so far. It is
                called on all ranks, and only if a backend draws curves.
        """
        if not drawing(runner.visualizer):
            return
        measure = REDUNDANCY[self.redundancy]
        scalars = {
            f'ela/{name}/{layer}': value
            for layer, kl in measured().items()
            for name, value in {
                'kl': kl.mean, measure: kl.by(self.redundancy).mean}.items()
        }
        finite = {k: v for k, v in scalars.items() if math.isfinite(v)}
        send(runner.visualizer, finite, runner.iter + 1)

    def tell(self, runner, decision: Decision) -> None:
        """Add a decision and report it.

        Args:
            runner (Runner): Runner in training.
            decision (Decision): Decision that was taken and applied.
        """
        self.decisions.append(decision)
        span = self._span(decision.window)
        measure = REDUNDANCY[decision.redundancy]
        on = '' if decision.redundancy == 'paper' else f' on {measure}'
        dashes = dashes_sentence(decision)
        runner.logger.info(f'redundancy of the attention layers, {span}, '
                           f'criterion {decision.criterion}{on}:\n'
                           f'{prune_table(decision.layers)}' +
                           (f'{dashes}\n' if dashes else ''))
        doubt = doubt_of(decision)
        if doubt and self.warns:
            advice = _AGAINST_SATURATION if decision.saturated else _AGAINST_RUSH
            runner.logger.warning(f'{span}: {doubt}; {advice}')
        if decision.skipped:
            runner.logger.info(f'{self._skipped(decision)}: '
                               f'{", ".join(decision.skipped)}')
        else:
            # Names the window: mmengine drops warnings that repeat.
            runner.logger.warning(f'nothing pruned on {span}: {decision.note}')
        scalars = {
            f'ela/{name}/{layer.name}': getattr(layer, name)
            for name in dict.fromkeys(('kl', measure))
            for layer in decision.layers if getattr(layer, name) is not None
        }
        scalars['ela/active'] = decision.active
        send(runner.visualizer, scalars, decision.iter)
        if self.picture and is_main_process():
            self._show(runner, decision)
        self.write(runner)

    def tell_gain(self, runner, decision: Decision) -> None:
        """Log how much a pruning has gained, once its steps are timed."""
        times = decision.times
        runner.logger.info(
            f'{self._skipped(decision)}; ' +
            (f'step {times.medians()}' if times.are_enough else
             f'steps are not compared: {times.steps[0]} before and '
             f'{times.steps[1]} after it were timed, fewer than '
             f'{LEAST_STEPS}'))
        self.write(runner)

    def tell_end(self, runner, count: int,
                 error: Optional[BaseException] = None) -> None:
        """Log which windows were not decided, when a training has ended.

        Args:
            runner (Runner): Runner whose training has ended.
            count (int): Epoch or iteration that would have been next, from 1.
            error (BaseException, optional): Exception that ended it, if any.
        """
        if isinstance(error, KeyboardInterrupt):
            window = self.windows.containing(count)
            tell_interrupted(runner, error, within(self.windows, window))
            return
        decided = [decision.window for decision in self.decisions]
        left = [window for window in self.windows.spans
                if window not in decided and window[1] >= count]
        if left:
            runner.logger.warning(
                early_end(self.windows, left, how_it_ended(runner, error)))

    def _span(self, window: Window) -> str:
        return window_name(window, self.windows.unit)

    def _skipped(self, decision: Decision) -> str:
        """Say how many layers a decision skips, and why others were before."""
        earlier = [name for d in self.decisions if d.iter < decision.iter
                   for name in d.skipped]
        by_hand = [name for edit in self.edits for name in edit.skipped]
        frozen = [x.name for x in self.backbone.attention_layers
                  if self.backbone.is_frozen(x)]
        return skipped_sentence(
            decision, gone_before(decision, earlier, by_hand, frozen))

    def write(self, runner) -> None:
        """Write the record; a full disk must not end a training."""
        if not is_main_process():
            return
        layers = self.backbone.attention_layers
        record = dict(
            format=FORMAT,
            windows=[list(window) for window in self.windows.spans],
            by_epoch=self.windows.by_epoch,
            criterion=self.criterion,
            redundancy=self.redundancy,
            skip=self.skip,
            layers=[layer.name for layer in layers],
            active=[layer.name for layer in layers if layer.active],
            decisions=[decision_to_json(d) for d in self.decisions])
        if self.windows.are_relative:
            record['windows_given'] = [list(g) for g in self.windows.given]
        if self.edits:
            record['edits'] = [edit_to_json(e) for e in self.edits]
        if self.step_times:
            record['step_times'] = [list(point) for point in self.step_times]
        try:
            write_record(record, runner.work_dir)
        except OSError as error:  # checkpoints hold all of it as well
            runner.logger.warning(
                f'the decisions record was not written: {error}')

    def _show(self, runner, decision: Decision) -> None:
        """Send the picture of a window to TensorBoard, WandB and the like."""
        try:
            # Imported here: a broken matplotlib must not stop a training.
            from ...plotting import to_array
            from .picture import decision_picture
            picture = decision_picture(decision, self.windows.unit)
            send_picture(runner.visualizer, 'ela_redundancy',
                         to_array(picture.figure), decision.iter)
        except Exception as error:
            runner.logger.warning('no picture of the redundancy: '
                                  f'{type(error).__name__}: {error}')
