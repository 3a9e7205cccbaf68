"""What a run says when Ctrl-C ends it: where it stood, and how it goes on."""
import os.path as osp
import zipfile

from mmengine.hooks import CheckpointHook

from .checkpoints import Place, latest_intact
from .journal.sentences import where


def tell_interrupted(runner, error: KeyboardInterrupt,
                     window: str = '') -> None:
    """Log one line; nothing if that was done of the same error.

    Args:
        runner (Runner): That was to train.
        error (KeyboardInterrupt): That has come out of it.
        window (str): What to add to the place, such as ``', in the window of
            epoch 1'``. Defaults to nothing.
    """
    if getattr(error, 'ela_told', False):
        return
    error.ela_told = True
    runner.logger.warning(f'interrupted {where(runner)}{window}; '
                          f'{how_to_go_on(runner)}')


def how_to_go_on(runner) -> str:
    """Say what ``--resume`` will find.

    Args:
        runner (Runner): That has trained, or was to.

    Returns:
        str: Goes on after a semicolon.
    """
    places = [
        Place(hook.out_dir, hook.filename_tmpl) for hook in runner.hooks
        if isinstance(hook, CheckpointHook) and hook.out_dir is not None
        and hook.filename_tmpl is not None
    ]
    # To read all of it would take long; --resume does.
    path, _ = latest_intact(runner.work_dir, places, is_whole)
    if path is None:
        return ('there is no checkpoint yet: --resume would start at the '
                'beginning')
    return f'--resume goes on from {osp.basename(path)}'


def is_whole(path: str) -> bool:
    """Whether a checkpoint has its end, by its table of contents alone."""
    return zipfile.is_zipfile(path)
