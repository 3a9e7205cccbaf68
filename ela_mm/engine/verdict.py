"""A window's decision, taken on the main rank with all that it asks for."""
import time
from typing import Dict, Optional

from mmengine.dist import is_main_process

from ..pruning import LayerKL
from ..pruning.decision import Decision, Moment, decide
from ..pruning.windows import Window
from .ranks import from_main_rank
from .sanity import first_not_finite


def verdict_of(hook, runner, window: Window,
               measured: Dict[str, LayerKL]) -> Decision:
    """Decide on a window; every rank must call it.

    Same statistics, but perhaps another scipy or processor, and norms of their
    own: the main rank decides for all.

    Args:
        hook (ELAPruneHook): Of the run.
        runner (Runner): At the window's end.
        window (Window): That has ended.
        measured (Dict[str, LayerKL]): In it.

    Returns:
        Decision: The main rank's.
    """
    return from_main_rank(
        _decide(hook, runner, window, measured) if is_main_process() else None)


def _decide(hook, runner, window: Window,
            measured: Dict[str, LayerKL]) -> Optional[Decision]:
    criterion = hook.criterion_of(window)
    network = hook.held_out and hook.held_out.trial(
        runner.model, list(measured), hook.skip)
    start = time.perf_counter()
    decision = decide(
        hook.backbone.attention_layers, measured, criterion, criterion.config,
        Moment(window, runner.epoch + 1, runner.iter + (not hook.by_epoch)),
        hook.skip, first_not_finite(runner.model), hook.rules, hook.redundancy,
        network, hook.first_kl)
    if network and network.tried:
        runner.logger.info(
            f'the network was tried without {network.tried} choices of '
            f'layers, on {hook.images} pictures held out, in '
            f'{time.perf_counter() - start:.0f} s')
    return decision
