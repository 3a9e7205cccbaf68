"""Numbers for those who draw curves, such as TensorBoard and WandB."""
from typing import Dict, List

from mmengine.dist import is_main_process
from mmengine.hooks import LoggerHook
from mmengine.visualization import (
    BaseVisBackend,
    LocalVisBackend,
    Visualizer,
    WandbVisBackend,
)


def drawing(visualizer: Visualizer) -> List[BaseVisBackend]:
    """List the backends that draw curves.

    Not the local ``scalars.json``: the record has the numbers, and hosts'
    tools take every line that is none of training for one of validation.

    Args:
        visualizer (Visualizer): Of a run.

    Returns:
        List[BaseVisBackend]: The same on all ranks.
    """
    return [backend for backend in visualizer._vis_backends.values()
            if not isinstance(backend, LocalVisBackend)]


def send(visualizer: Visualizer, scalars: Dict[str, float], step: int) -> None:
    """Send scalars to the backends that draw curves, from the main rank.

    Args:
        visualizer (Visualizer): Of a run.
        scalars (Dict[str, float]): By tag.
        step (int): Iterations done.
    """
    if not is_main_process():
        return
    for backend in drawing(visualizer):
        if isinstance(backend, WandbVisBackend):
            # WandB counts calls as steps: these numbers wait for LoggerHook's.
            backend.experiment.log(scalars, commit=False)
        else:
            backend.add_scalars(scalars, step)


def logs_after_step(runner, batch_idx: int) -> bool:
    """Whether LoggerHook tells of the iteration that has just ended.

    Args:
        runner (Runner): While it trains.
        batch_idx (int): As hooks are given it.

    Returns:
        bool: The same on all ranks.
    """
    loader = runner.train_dataloader
    return any(
        isinstance(hook, LoggerHook) and
        (hook.every_n_inner_iters(batch_idx, hook.interval) or
         hook.end_of_epoch(loader, batch_idx) and
         (not hook.ignore_last or len(loader) <= hook.interval))
        for hook in runner.hooks)
