"""What a run is checked for before it trains, and before it decides."""
from typing import Any, Dict, Optional

from mmengine.runner import IterBasedTrainLoop
from torch import nn

from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import SKIP_MODES
from ..pruning.windows import Course, Windows
from .surgery import check_parallelism
from .warm_up import warm_up_of


def check_options(hook) -> None:
    """See whether a hook's options go together.

    Args:
        hook (ELAPruneHook): While it is built.

    Raises:
        UsageError: If they do not.
    """
    if hook.skip not in SKIP_MODES:
        raise UsageError(f'skip={hook.skip!r}: expected one of {SKIP_MODES}')
    if hook.rules.min_stability and hook.images:
        raise UsageError(
            f'min_stability={hook.rules.min_stability}: expected 0 with a '
            'criterion that asks the network, since single steps of a window '
            'do not say what it would have decided on them')


def check_run(hook, runner) -> None:
    """See whether a run can be pruned as a hook is told to.

    Args:
        hook (ELAPruneHook): Of the runner.
        runner (Runner): Before training.

    Raises:
        UsageError: If it cannot.
    """
    if sum(isinstance(other, type(hook)) for other in runner.hooks) > 1:
        raise UsageError(
            f'two {type(hook).__name__}s: both would prune, and record and '
            'checkpoint keep one. Give one hook all windows, each with a '
            'criterion of its own where it needs one: windows=[dict('
            "first=1, last=1, criterion=dict(type='EBQM')), ...]")
    check_parallelism(runner)
    check_loader(runner)
    resolve_windows(hook._windows, runner)


def resolve_windows(windows: Windows, runner) -> None:
    """Find out when windows are in a run.

    Args:
        windows (Windows): Of its hook.
        runner (Runner): With its train loop and schedulers built.

    Raises:
        UsageError: If one has no place in it.
    """
    windows.check_loop(not isinstance(runner.train_loop, IterBasedTrainLoop))
    windows.resolve(
        Course(runner.max_epochs if windows.by_epoch else runner.max_iters,
               warm_up_of(runner, windows.by_epoch)))


def what_has_to_agree(runner) -> Dict[str, Any]:
    """Say what every rank needs to have alike, or they wait for each other.

    Args:
        runner (Runner): Right before training.

    Returns:
        Dict[str, Any]: By name, for
        :func:`~ela_mm.engine.ranks.check_agreement`.
    """
    loop = runner.train_loop
    endless = isinstance(loop, IterBasedTrainLoop)
    return dict(
        batches_per_epoch=None if endless else len(loop.dataloader),
        iterations_done=runner.iter)


def check_loader(runner) -> None:
    """See whether there is anything to train on.

    Args:
        runner (Runner): Before training.

    Raises:
        UsageError: If there never will be.
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
    """Name the first parameter that is not finite, None if all are.

    Args:
        model (nn.Module): Any.

    Returns:
        str | None: As in ``named_parameters``.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return name
    return None
