"""Takes the decision on a window, on rank 0."""
import time
from typing import Dict, Optional

from mmengine.dist import is_main_process

from ..pruning import LayerKL
from ..pruning.decision import Decision, Moment, decide
from ..pruning.windows import Window
from .ranks import from_main_rank
from .sanity import first_not_finite
from .trial import Trial


def verdict_of(hook, runner, window: Window,
               measured: Dict[str, LayerKL]) -> Decision:
    """Decide on a window; every rank must call this.

    Rank 0 decides for all: statistics are equal, but ranks may have different
    versions of scipy, different processors, and their own statistics of norms.
    A criterion that measures on the network does so on all ranks in step, since
    the losses of some detectors exchange numbers; those of rank 0 count.

    Args:
        hook (ELAPruneHook): Hook of the run.
        runner (Runner): Runner at the end of the window.
        window (Window): The window that has ended.
        measured (Dict[str, LayerKL]): Measurements of the window, by layer.

    Returns:
        Decision: The decision of rank 0.
    """
    network = hook.held_out and hook.held_out.trial(
        runner.model, list(measured), hook.skip)
    if is_main_process():
        if network:
            network.announce = from_main_rank
        return from_main_rank(_decide(hook, runner, window, measured, network))
    while True:
        # Nobody waits for longer than one set of layers takes.
        told = from_main_rank(None)
        if isinstance(told, Decision):
            return told
        network.follow(told)


def _decide(hook, runner, window: Window, measured: Dict[str, LayerKL],
            network: Optional[Trial]) -> Decision:
    criterion = hook.criterion_of(window)
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
