"""Tells of decisions: log, scalars, picture, and the record in the work dir."""
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
from .scalars import drawing, send
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
    """What a run has decided so far, and everybody who is told.

    Args:
        windows (Windows): Of the run.
        criterion (dict): ``type`` and every parameter.
        skip (str): How layers are skipped.
        picture (bool): Whether a picture of each window goes to the
            Visualizer, as ``ela_redundancy``.
        warns (bool): Whether a ranking of layers that do not differ is a
            warning. Defaults to True.
        redundancy (str): What criteria rank by. Defaults to ``'paper'``.

    Attributes:
        decisions (List[Decision]): One per window that has ended.
        edits (List[MaskEdit]): What was changed by hand in a checkpoint that
            the run has gone on from.
        backbone (LayerAttentionMixin | None): Of the run, once it begins.
        step_times (Sequence): Epoch (or iteration), first quartile, median
            and third quartile of the seconds of its steps.
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
        """Say when the windows are, before the first step, and write.

        Args:
            runner (Runner): About to train, or to go on.
            backbone (LayerAttentionMixin): With its weights and mask.
        """
        self.backbone, windows = backbone, self.windows
        length = (f'{runner.max_epochs} epochs' if windows.by_epoch else
                  f'{runner.max_iters} iterations')
        names = ', '.join(map(windows.name, windows.spans))
        runner.logger.info(f'windows of ELAPruneHook: {names}, of {length}')
        self.write(runner)

    def tell_begin(self, runner, window: Window) -> None:
        """Say that a window begins, and how many layers are active."""
        active = sum(x.active for x in self.backbone.attention_layers)
        runner.logger.info(
            f'measuring {self._span(window)}: how redundant {active} attention '
            'layers are')

    def tell_so_far(self, runner, measured: Callable[[], Dict[str, LayerKL]]
                    ) -> None:
        """Send the means of a window that goes on.

        Args:
            runner (Runner): After a step that LoggerHook tells of.
            measured (Callable): Gives the means so far. Called, on all ranks,
                where there is anybody who draws curves.
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
        """Add a decision and tell of it.

        Args:
            runner (Runner): While it trains.
            decision (Decision): Taken and applied.
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
            # With the window in it: mmengine drops a warning that it repeats.
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
        """Say what a pruning bought, once its steps are timed."""
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
        """Say which windows a training did not reach, or not end.

        Args:
            runner (Runner): That has ended.
            count (int): The epoch or iteration that would have been next.
            error (BaseException, optional): That has ended it.
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
        """How many layers a decision skips, and which were out before it."""
        earlier = [name for d in self.decisions if d.iter < decision.iter
                   for name in d.skipped]
        by_hand = [name for edit in self.edits for name in edit.skipped]
        frozen = [x.name for x in self.backbone.attention_layers
                  if self.backbone.is_frozen(x)]
        return skipped_sentence(
            decision, gone_before(decision, earlier, by_hand, frozen))

    def write(self, runner) -> None:
        """Replace the record; a full disk is no reason to end a training."""
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
        except OSError as error:  # the checkpoints hold all of it, too
            runner.logger.warning(
                f'the decisions record was not written: {error}')

    def _show(self, runner, decision: Decision) -> None:
        """Send the window's picture to TensorBoard, WandB and the like."""
        try:
            # Not at the top: a broken matplotlib must not stop a training.
            from ...plotting import to_array
            from .picture import decision_picture
            picture = decision_picture(decision, self.windows.unit)
            runner.visualizer.add_image(
                'ela_redundancy',
                to_array(picture.figure),
                step=decision.iter)
        except Exception as error:
            runner.logger.warning('no picture of the redundancy: '
                                  f'{type(error).__name__}: {error}')
