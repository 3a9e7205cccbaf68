"""Checks a run before it trains, and before a window is decided."""
from typing import Any, Dict, Optional

from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import IterBasedTrainLoop
from torch import nn

from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import SKIP_MODES
from ..pruning.windows import Course, Windows
from .surgery import check_parallelism
from .warm_up import warm_up_of


def check_options(hook) -> None:
    """Check that the options of a hook can be combined.

    Args:
        hook (ELAPruneHook): Hook that is being constructed.

    Raises:
        UsageError: If they cannot.
    """
    if hook.skip not in SKIP_MODES:
        raise UsageError(f'skip={hook.skip!r}: expected one of {SKIP_MODES}')
    if not isinstance(hook.by_epoch, bool):
        raise UsageError(f'by_epoch={hook.by_epoch!r}: expected True or False')
    if hook.rules.min_stability and hook.images:
        raise UsageError(
            f'min_stability={hook.rules.min_stability}: expected 0 with a '
            'criterion that asks the network, since single steps of a window '
            'do not say what it would have decided on them')


def check_run(hook, runner) -> None:
    """Check that a hook can prune its run.

    Args:
        hook (ELAPruneHook): Hook of the runner.
        runner (Runner): Runner before training.

    Raises:
        UsageError: On a second hook of this type, a priority that lets
            checkpoints be saved first, a kind of parallelism that pruning does
            not support, a training set without batches, or windows that do not
            fit the training.
    """
    if sum(isinstance(other, type(hook)) for other in runner.hooks) > 1:
        raise UsageError(
            f'two {type(hook).__name__}s: both would prune, and record and '
            'checkpoint keep one. Give one hook all windows, each with a '
            'criterion of its own where it needs one: windows=[dict('
            "first=1, last=1, criterion=dict(type='EBQM')), ...]")
    check_place(hook, runner, "before its window's decision, which a run that "
                'resumes from it would never take')
    check_parallelism(runner)
    check_loader(runner)
    resolve_windows(hook._windows, runner)


def check_place(hook: Hook, runner, saved: str) -> None:
    """Check that a hook runs before checkpoints are saved.

    Args:
        hook (Hook): Hook of the runner.
        runner (Runner): Runner before training.
        saved (str): What is wrong with a checkpoint otherwise, as the end of
            "a checkpoint would be saved ...".

    Raises:
        UsageError: If priorities let a CheckpointHook run before the hook.
    """
    for other in runner.hooks[:runner.hooks.index(hook)]:
        if isinstance(other, CheckpointHook):
            raise UsageError(
                f'{type(hook).__name__} has the priority {hook.priority}, '
                f'{type(other).__name__} {other.priority}: a checkpoint would '
                f'be saved {saved}. Leave both priorities out')


def resolve_windows(windows: Windows, runner) -> None:
    """Compute the spans of windows in a run.

    Args:
        windows (Windows): Windows of the hook, changed in place.
        runner (Runner): Runner whose train loop and schedulers are built.

    Raises:
        UsageError: If a window does not fit the training.
    """
    windows.check_loop(not isinstance(runner.train_loop, IterBasedTrainLoop))
    windows.resolve(
        Course(runner.max_epochs if windows.by_epoch else runner.max_iters,
               warm_up_of(runner, windows.by_epoch)))


def what_has_to_agree(runner) -> Dict[str, Any]:
    """Collect what has to be equal on all ranks, lest the training hang.

    Args:
        runner (Runner): Runner right before training.

    Returns:
        Dict[str, Any]: Values by name, for
        :func:`~ela_mm.engine.ranks.check_agreement`.
    """
    loop = runner.train_loop
    endless = isinstance(loop, IterBasedTrainLoop)
    return dict(
        batches_per_epoch=None if endless else len(loop.dataloader),
        iterations_done=runner.iter)


def check_loader(runner) -> None:
    """Check that the training data loader yields batches.

    Args:
        runner (Runner): Runner before training.

    Raises:
        UsageError: If its dataset is empty, or if an iteration-based loop
            would wait for a batch without end. A dataset that is merely
            smaller than a batch gives a warning.
    """
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


def first_not_finite(model: nn.Module) -> Optional[str]:
    """Find the first parameter with NaN or infinite elements.

    Args:
        model (nn.Module): Any module.

    Returns:
        str | None: Name of the parameter, as in ``named_parameters``; None if
        all are finite.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return name
    return None


def check_finite(model: nn.Module) -> None:
    """Check that a network can be looked at: NaN compares as nothing.

    Args:
        model (nn.Module): Any module.

    Raises:
        UsageError: Naming the first parameter that is not finite.
    """
    name = first_not_finite(model)
    if name is not None:
        raise UsageError(f'{name} of the network is not finite, since its '
                         'training has diverged: there is nothing to measure; '
                         'take an earlier checkpoint')
