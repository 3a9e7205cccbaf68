"""Tries the first batches of a training, whose errors would end it."""
import re
from contextlib import contextmanager
from itertools import islice
from typing import Any, Iterator, List

import torch
from mmengine.hooks import Hook, RuntimeInfoHook
from mmengine.runner import Runner
from torch.utils.data import DataLoader, IterableDataset

from ..errors import UsageError

# Whether memory suffices, depends on the machine, not on the config.
_OUT_OF_MEMORY = re.compile('out of memory|(not enough|allocate) memory', re.I)


class FirstBatchError(UsageError):
    """An error that the first batch of a training or a validation raises."""


@contextmanager
def first(what: str, prepared_by: List[str] = ()) -> Iterator[None]:
    """Name what raises an error, as the training itself would.

    Args:
        what (str): What is tried, in words.
        prepared_by (List[str]): Names of hooks that have not run, and may
            prepare the network for it. Defaults to none.

    Raises:
        FirstBatchError: On any error but lack of memory, which is raised as
            it is.
        RuntimeError: Instead, where hooks have not run: the training need not
            raise it.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
            raise
        text = f'{what} raises {type(error).__name__}: {error}'
        if prepared_by:
            raise RuntimeError(
                f'{text} (a plan does not run {", ".join(prepared_by)}, which '
                'may prepare it)') from error
        raise FirstBatchError(text) from error


def preparing_hooks(runner: Runner, mode: str) -> List[str]:
    """Name the hooks of others that act before the first step of a mode.

    Args:
        runner (Runner): Runner of the training.
        mode (str): ``'train'`` or ``'val'``.

    Returns:
        List[str]: Class names, without mmengine's hooks and this package's.
    """
    points = ['before_run', 'before_train', '_before_epoch', '_before_iter', *(
        f'before_{mode}{part}' for part in ('', '_epoch', '_iter'))]
    return [
        type(hook).__name__ for hook in runner.hooks
        if type(hook).__module__.split('.')[0] not in ('mmengine', 'ela_mm')
        and any(getattr(type(hook), point) is not getattr(Hook, point)
                for point in points)
    ]


def first_batch(loader: DataLoader) -> Any:
    """Load the first batch in this process, in the order of the sampler.

    Files are often sorted by class: the first of them would show one label.

    Args:
        loader (DataLoader): Loader of the set.

    Returns:
        Any: A batch, as the loader makes it.
    """
    data = loader.dataset
    if isinstance(data, IterableDataset):
        samples = list(islice(data, loader.batch_size or 1))
    else:
        samples = [data[i] for i in next(iter(loader.batch_sampler))]
    return loader.collate_fn(samples)


def try_samples(runner: Runner) -> None:
    """Load the first batch of training, and that of validation if there is one.

    Args:
        runner (Runner): Runner whose training loop is built.

    Raises:
        FirstBatchError: If one raises an error.
    """
    with first('the first batch of training'):
        first_batch(runner.train_dataloader)
    if runner.val_loop is not None:
        with first('the first batch of validation'):
            first_batch(runner.val_dataloader)


def try_validation(runner: Runner) -> None:
    """Let the network predict on the first batch of validation, if there is one.

    Args:
        runner (Runner): Runner whose training loop is built.

    Raises:
        FirstBatchError: If that raises an error, as :func:`first` does.
    """
    if runner.val_loop is None:
        return
    batch = first_batch(runner.val_dataloader)
    runner.model.eval()
    with first('the first step of validation',
               preparing_hooks(runner, 'val')), torch.no_grad():
        runner.model.val_step(batch)
    runner.model.train()


def begin(runner: Runner) -> None:
    """Tell MessageHub that the first epoch begins: some models ask it."""
    for hook in runner.hooks:
        if isinstance(hook, RuntimeInfoHook):
            hook.before_train(runner)
