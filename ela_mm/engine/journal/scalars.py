"""Sends scalars and pictures to backends such as TensorBoard and WandB."""
from typing import Dict, List

import numpy as np
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

    The local ``scalars.json`` is not among them: the record has the numbers,
    and tools of the hosts take every line that is not of training for one of
    validation.

    Args:
        visualizer (Visualizer): Visualizer of a run.

    Returns:
        List[BaseVisBackend]: Backends; the same on all ranks.
    """
    return [backend for backend in visualizer._vis_backends.values()
            if not isinstance(backend, LocalVisBackend)]


def send(visualizer: Visualizer, scalars: Dict[str, float], step: int) -> None:
    """Send scalars to the backends that draw curves, from rank 0.

    Args:
        visualizer (Visualizer): Visualizer of a run.
        scalars (Dict[str, float]): Scalars by tag.
        step (int): Number of iterations done.
    """
    if not is_main_process():
        return
    for backend in drawing(visualizer):
        if isinstance(backend, WandbVisBackend):
            # WandB counts calls as steps: wait for LoggerHook to commit.
            backend.experiment.log(scalars, commit=False)
        else:
            backend.add_scalars(scalars, step)


def send_picture(visualizer: Visualizer, name: str, picture: np.ndarray,
                 step: int) -> None:
    """Send a picture to all backends, the local one included.

    WandB shows it at the next point of the log, and says the step in its
    caption.

    Args:
        visualizer (Visualizer): Visualizer of a run, on rank 0.
        name (str): Name of the picture.
        picture (np.ndarray): RGB picture of shape (H, W, 3), uint8.
        step (int): Number of iterations done.
    """
    for backend in visualizer._vis_backends.values():
        if isinstance(backend, WandbVisBackend):
            wandb = backend.experiment
            image = wandb.Image(picture, caption=f'iteration {step}')
            wandb.log({name: image}, commit=False)  # as above
        else:
            backend.add_image(name, picture, step=step)


def logs_after_step(runner, batch_idx: int) -> bool:
    """Return whether LoggerHook logs the iteration that has just ended.

    Args:
        runner (Runner): Runner in training.
        batch_idx (int): Index of the batch, as hooks are given it.

    Returns:
        bool: Whether it does; the same on all ranks.
    """
    loader = runner.train_dataloader
    return any(
        isinstance(hook, LoggerHook) and
        (hook.every_n_inner_iters(batch_idx, hook.interval) or
         hook.end_of_epoch(loader, batch_idx) and
         (not hook.ignore_last or len(loader) <= hook.interval))
        for hook in runner.hooks)
