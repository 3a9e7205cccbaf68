"""What a run is checked for before it trains, and before it decides."""
from typing import Optional

from mmengine.runner import IterBasedTrainLoop
from torch import nn

from ..errors import UsageError


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
