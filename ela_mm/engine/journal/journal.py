"""Tells of decisions: log, scalars, picture, and the record in the work dir."""
from typing import Any, Dict, List, Sequence

from mmengine.dist import is_main_process
from mmengine.visualization import LocalVisBackend, Visualizer

from ...pruning.decision import Decision
from ...pruning.doubt import doubt_of
from ...pruning.edit import MaskEdit
from ...pruning.kl import REDUNDANCY
from ...pruning.step_times import LEAST_STEPS
from ...pruning.windows import Windows
from .record import FORMAT, decision_to_json, edit_to_json, write_record
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
        self.step_times: Sequence[Sequence[float]] = ()

    def tell(self, runner, layers: List, decision: Decision) -> None:
        """Add a decision and tell of it.

        Args:
            runner (Runner): While it trains.
            layers (List[AttentionLayerInfo]): As they are after it.
            decision (Decision): Taken and applied.
        """
        self.decisions.append(decision)
        first, last = decision.window
        span = f'{self.windows.unit}s {first} to {last}'
        measure = REDUNDANCY[decision.redundancy]
        on = '' if decision.redundancy == 'paper' else f' on {measure}'
        runner.logger.info(f'redundancy of the attention layers, {span}, '
                           f'criterion {decision.criterion}{on}:\n'
                           f'{prune_table(decision.layers)}')
        doubt = doubt_of(decision)
        if doubt and self.warns:
            advice = _AGAINST_SATURATION if decision.saturated else _AGAINST_RUSH
            runner.logger.warning(f'{span}: {doubt}; {advice}')
        if decision.skipped:
            runner.logger.info(
                f'{_pruned(decision)}: {", ".join(decision.skipped)}')
        else:
            # With the window in it: mmengine drops a warning that it repeats.
            runner.logger.warning(f'nothing pruned on {span}: {decision.note}')
        scalars = {
            f'ela/{name}/{layer.name}': getattr(layer, name)
            for name in dict.fromkeys(('kl', measure))
            for layer in decision.layers if getattr(layer, name) is not None
        }
        scalars['ela/active'] = decision.active
        _send(runner.visualizer, scalars, decision.iter)
        if self.picture and is_main_process():
            self._show(runner, decision)
        self.write(runner, layers)

    def tell_gain(self, runner, layers: List, decision: Decision) -> None:
        """Say what a pruning bought, once its steps are timed."""
        times = decision.times
        runner.logger.info(
            f'{_pruned(decision)}; ' +
            (f'step {times.medians()}' if times.are_enough else
             f'steps are not compared: {times.steps[0]} before and '
             f'{times.steps[1]} after it were timed, fewer than '
             f'{LEAST_STEPS}'))
        self.write(runner, layers)

    def tell_end(self, runner, count: int) -> None:
        """Say which windows a training did not reach, or not end.

        Args:
            runner (Runner): That has ended, well or by an exception.
            count (int): The epoch or iteration that would have been next.
        """
        decided = [decision.window for decision in self.decisions]
        left = [window for window in self.windows.spans
                if window not in decided and window[1] >= count]
        if left:
            runner.logger.warning(
                f'the training ended before window {left[0]} did: nothing was '
                'decided in it' +
                (f', nor in {len(left) - 1} later ones' if left[1:] else ''))

    def write(self, runner, layers: List) -> None:
        """Replace the record; a full disk is no reason to end a training."""
        if not is_main_process():
            return
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



def _send(visualizer: Visualizer, scalars: Dict[str, float], step: int) -> None:
    """Send scalars to TensorBoard, WandB and the like.

    Not to the local ``scalars.json``: the record has these numbers, and hosts'
    tools take every line that is none of training for one of validation.
    """
    if not is_main_process():
        return
    for backend in visualizer._vis_backends.values():
        if not isinstance(backend, LocalVisBackend):
            backend.add_scalars(scalars, step)


def _pruned(decision: Decision) -> str:
    return (f'pruned {len(decision.skipped)} of {decision.total} attention '
            f'layers, {decision.active} active')
