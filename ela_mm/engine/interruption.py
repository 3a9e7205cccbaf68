"""Logs where a run was when Ctrl-C ended it, and how to continue."""
import os.path as osp
import zipfile

from mmengine.hooks import CheckpointHook

from .checkpoints import Place, latest_intact
from .journal.sentences import where


def tell_interrupted(runner, error: KeyboardInterrupt,
                     window: str = '') -> None:
    """Log an interruption in one line, once for each error.

    Args:
        runner (Runner): Runner whose training was interrupted.
        error (KeyboardInterrupt): The error that ended it.
        window (str): Text to append to the place, such as ``', in the window
            of epoch 1'``. Defaults to ``''``.
    """
    if getattr(error, 'ela_told', False):
        return
    error.ela_told = True
    runner.logger.warning(f'interrupted {where(runner)}{window}; '
                          f'{how_to_go_on(runner)}')


def how_to_go_on(runner) -> str:
    """Say which checkpoint ``--resume`` will find.

    Args:
        runner (Runner): Runner whose training has ended.

    Returns:
        str: A clause that can follow a semicolon.
    """
    places = [
        Place(hook.out_dir, hook.filename_tmpl) for hook in runner.hooks
        if isinstance(hook, CheckpointHook) and hook.out_dir is not None
        and hook.filename_tmpl is not None
    ]
    # Reading all of the file would take long; --resume does that.
    path, _ = latest_intact(runner.work_dir, places, is_whole)
    if path is None:
        return ('there is no checkpoint yet: --resume would start at the '
                'beginning')
    return f'--resume goes on from {osp.basename(path)}'


def is_whole(path: str) -> bool:
    """Return whether a checkpoint is complete, by its zip directory alone."""
    return zipfile.is_zipfile(path)
