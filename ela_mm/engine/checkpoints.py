"""Finds the checkpoint to resume from, even if the run died while saving.

mmengine overwrites a checkpoint in place, and then the file ``last_checkpoint``
with its name. A run that is killed, or whose disk is full, may leave either of
them truncated.
"""
import glob
import logging
import os
import os.path as osp
import pickle
import re
import string
import zipfile
from types import SimpleNamespace
from typing import Callable, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.utils import digit_version

# Key in the meta of a deploy checkpoint, which has no state to resume from.
DEPLOY_KEY = 'ela_deploy'
_MAGIC = b'PK'  # torch >= 1.6 writes checkpoints as zip archives
_IS_FOLDER = 0x10  # flag in the external attributes of a zip record


class Place(NamedTuple):
    """Where a CheckpointHook writes, and under which names.

    Attributes:
        folder (str): Path of the folder.
        template (str): Template of the file names, with one field for the
            epoch or iteration; ``filename_tmpl`` of CheckpointHook.
    """
    folder: str
    template: str

    def checkpoints(self) -> List[str]:
        """List existing checkpoints; not the best ones, named otherwise."""
        parts = [(text, field is not None) for text, field, _, _ in
                 string.Formatter().parse(self.template)]
        shape = ''.join(glob.escape(text) + '*' * numbered
                        for text, numbered in parts)
        name = ''.join(re.escape(text) + r'\d+' * numbered
                       for text, numbered in parts)
        found = glob.glob(osp.join(glob.escape(self.folder), shape))
        return [path for path in found
                if re.fullmatch(name, osp.relpath(path, self.folder))]


def is_intact(path: str) -> bool:
    """Return whether a checkpoint can be read, by reading all of it.

    Checksums are compared first, since torch ignores them. Then torch loads
    the file, memory-mapped if its version can do so.

    Args:
        path (str): Path of a local file.

    Returns:
        bool: False if the file is empty, truncated, corrupted or not a
        checkpoint. A complete file with types that torch refuses counts as
        intact: loading it raises a clear error. In torch's old format, which
        has no checksums, wrong values go unnoticed.
    """
    is_zip = False
    try:
        with open(path, 'rb') as file:
            is_zip = file.read(len(_MAGIC)) == _MAGIC
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                # torch takes a record marked as a folder for an empty one, and
                # leaves the memory of its tensor uninitialised.
                if archive.testzip() is not None or any(
                        record.external_attr & _IS_FOLDER
                        for record in archive.infolist()):
                    return False
        maps = is_zip and digit_version(torch.__version__) >= digit_version(
            '2.1')
        torch.load(path, map_location='cpu', **dict(mmap=True) if maps else {})
    except pickle.UnpicklingError:  # checksums are right: it was saved so
        return is_zip
    except Exception:  # a wrong bit may raise anything
        return False
    return True


def is_within_epoch(checkpoint: dict) -> bool:
    """Return whether an epoch-based run saved a checkpoint within an epoch.

    Args:
        checkpoint (dict): Checkpoint of mmengine. Its ``meta`` counts finished
            epochs; its message hub has the index of the running one, from 0.

    Returns:
        bool: True if mmengine will start that epoch over.
    """
    hub = checkpoint.get('message_hub', {}).get('runtime_info', {})
    return hub.get('epoch') == checkpoint['meta']['epoch']


def saves_after_step(runner) -> bool:
    """Return whether a checkpoint is saved after the iteration just ended.

    Args:
        runner (Runner): Runner, while it trains.

    Returns:
        bool: Whether one of its CheckpointHooks will save.
    """
    return any(
        isinstance(hook, CheckpointHook) and not hook.by_epoch and
        (hook.every_n_train_iters(runner, hook.interval, hook.save_begin) or
         (hook.save_last and hook.is_last_train_iter(runner)))
        for hook in runner.hooks)


def places_of(cfg: Config) -> List[Place]:
    """Find out where the CheckpointHooks of a config write.

    Args:
        cfg (Config): Config with a ``work_dir``.

    Returns:
        List[Place]: One place for each hook.
    """
    configs = [
        (cfg.get('default_hooks') or {}).get('checkpoint',
                                             dict(type='CheckpointHook')),
        *(cfg.get('custom_hooks') or [])
    ]
    runner = SimpleNamespace(
        work_dir=osp.abspath(cfg.work_dir),
        logger=logging.getLogger(__name__),
        message_hub=SimpleNamespace(runtime_info={}))
    places = []
    with HOOKS.switch_scope_and_registry(cfg.get('default_scope')) as hooks:
        for config in configs:
            if not isinstance(config, dict):
                continue
            kind = config.get('type')
            kind = hooks.get(kind) if isinstance(kind, str) else kind
            if isinstance(kind, type) and issubclass(kind, CheckpointHook):
                hook = hooks.build(
                    {k: v for k, v in config.items() if k != 'priority'})
                hook.before_train(runner)
                places.append(Place(hook.out_dir, hook.filename_tmpl))
    return places


def latest_intact(
        work_dir: str,
        places: Sequence[Place] = (),
        intact: Callable[[str], bool] = is_intact
) -> Tuple[Optional[str], List[str]]:
    """Find the checkpoint to resume from.

    It is the one that ``last_checkpoint`` names. If that file, or the
    checkpoint it names, is missing or damaged, it is the newest checkpoint
    that can be read.

    Args:
        work_dir (str): Work dir of the run.
        places (Sequence[Place]): Places where the run writes checkpoints,
            from :func:`places_of`. Defaults to ``epoch_*.pth`` and
            ``iter_*.pth`` in the work dir.
        intact (Callable): Function that tells from a path whether the file can
            be read. Defaults to :func:`is_intact`, which reads all of it.

    Returns:
        tuple: The path of the checkpoint, or None, and the list of paths that
        were found damaged.
    """
    folders = [place.folder for place in places] or [work_dir]
    # Also mmengine's default names, which the run may have had before a
    # template was set.
    every = [*places, *(Place(folder, f'{unit}_{{}}.pth')
                        for folder in folders for unit in ('epoch', 'iter'))]
    written = {path for place in every for path in place.checkpoints()}
    candidates = _newest_first(sorted(written))
    name_file = osp.join(work_dir, 'last_checkpoint')
    if osp.isfile(name_file):
        with open(name_file, errors='replace') as file:  # platform's encoding
            named = file.read().strip()
        if '://' in named:
            return named, []
        # A run's folder may have been copied or moved since: look for the name
        # in its folders too, and take the newest of that name.
        candidates[:0] = _newest_first([
            *(osp.join(folder, osp.basename(named)) for folder in folders),
            named])
    damaged = []
    for path in dict.fromkeys(candidates):
        if intact(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def _newest_first(paths: Iterable[str]) -> List[str]:
    """Sort existing files by the time of writing, newest first."""
    return sorted(filter(osp.isfile, paths), key=osp.getmtime, reverse=True)


def resume_latest(cfg: Config) -> None:
    """Make a config resume from the latest intact checkpoint of its work dir.

    Without such a checkpoint the run starts at the beginning, with the
    ``load_from`` of the config. What was found is printed.

    Args:
        cfg (Config): Config of the run, changed in place.
    """
    path, damaged = latest_intact(cfg.work_dir, places_of(cfg))
    for name in damaged:
        _say(f'{name} is damaged, probably cut off while it was written: '
             'passed over')
    if path is None:
        _say(f'nothing to resume in {cfg.work_dir}: training starts at the '
             'beginning')
        cfg.resume = False  # mmengine would trust last_checkpoint
    else:
        _say(f'resuming from {path}')
        cfg.resume, cfg.load_from = True, path


def warn_of_single_checkpoint(cfg: Config) -> None:
    """Warn if a config makes runs keep only one checkpoint."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if hook.get('max_keep_ckpts') == 1:
        _say('default_hooks.checkpoint.max_keep_ckpts=1: mmengine deletes the '
             'old checkpoint before it writes the new one; a run that dies in '
             'between has nothing to resume from. 2 is safe')


def _say(text: str) -> None:
    """Print on rank 0; there is no logger or process group yet."""
    rank = os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0'))
    if rank == '0':
        print(text, flush=True)
