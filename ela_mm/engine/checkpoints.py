"""Which checkpoint to go on from, when a run may have died at any moment.

mmengine writes a checkpoint in place and then its name into the file
``last_checkpoint``, in place as well. A run that is killed, or whose disk is
full, leaves either of them cut off.
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

# In the meta of a deploy checkpoint: it has no state to resume from.
DEPLOY_KEY = 'ela_deploy'
_MAGIC = b'PK'  # torch >= 1.6 writes checkpoints as zip archives
_IS_FOLDER = 0x10  # of a zip archive's external attributes


class Place(NamedTuple):
    """Where a run's checkpoints lie.

    Attributes:
        folder (str): Its path.
        template (str): Of their names below it, with one field for the epoch
            or iteration, as CheckpointHook's ``filename_tmpl``.
    """
    folder: str
    template: str

    def checkpoints(self) -> List[str]:
        """List what is there; the best ones have other names."""
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
    """Whether a checkpoint can be read, by reading it as mmengine will.

    The check sums come first, since torch ignores them; then torch loads it,
    whose tensors stay on the disk where its version can map them.

    Args:
        path (str): A local file. All of it is read.

    Returns:
        bool: False if it is empty, cut off, holds wrong bytes or is no
        checkpoint. A whole one with types that torch refuses is intact: who
        loads it is told. Values in torch's old format, which has no check
        sums, may be wrong.
    """
    is_zip = False
    try:
        with open(path, 'rb') as file:
            is_zip = file.read(len(_MAGIC)) == _MAGIC
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                # torch takes what is marked as a folder for an empty record,
                # and leaves the memory as it was.
                if archive.testzip() is not None or any(
                        record.external_attr & _IS_FOLDER
                        for record in archive.infolist()):
                    return False
        maps = is_zip and digit_version(torch.__version__) >= digit_version(
            '2.1')
        torch.load(path, map_location='cpu', **dict(mmap=True) if maps else {})
    except pickle.UnpicklingError:  # check sums are right: it was saved so
        return is_zip
    except Exception:  # a wrong bit raises whatever it happens to lead to
        return False
    return True


def is_within_epoch(checkpoint: dict) -> bool:
    """Whether an epoch-based run saved it before the end of an epoch.

    Args:
        checkpoint (dict): mmengine's. Its ``meta`` counts finished epochs, its
            message hub knows the one that was running, both from 0.

    Returns:
        bool: True if mmengine will start that epoch over.
    """
    hub = checkpoint.get('message_hub', {}).get('runtime_info', {})
    return hub.get('epoch') == checkpoint['meta']['epoch']


def saves_after_step(runner) -> bool:
    """Whether a checkpoint follows the iteration that has just ended.

    Args:
        runner (Runner): While it trains.

    Returns:
        bool: As its CheckpointHooks say.
    """
    return any(
        isinstance(hook, CheckpointHook) and not hook.by_epoch and
        (hook.every_n_train_iters(runner, hook.interval, hook.save_begin) or
         (hook.save_last and hook.is_last_train_iter(runner)))
        for hook in runner.hooks)


def places_of(cfg: Config) -> List[Place]:
    """Ask the CheckpointHooks of a config where they write.

    Args:
        cfg (Config): With a ``work_dir``.

    Returns:
        List[Place]: One a hook.
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
    """Find the checkpoint to go on from.

    It is the one that ``last_checkpoint`` names. Where that file or the one it
    names is missing or damaged, it is the last that was written and can be
    read.

    Args:
        work_dir (str): Of the run.
        places (Sequence[Place]): From :func:`places_of`. Defaults to
            ``epoch_*.pth`` and ``iter_*.pth`` in the work dir.
        intact (Callable): Tells whether a file can be read. Defaults to
            :func:`is_intact`, which reads all of it.

    Returns:
        tuple: Its path or None, and the paths of those found damaged.
    """
    folders = [place.folder for place in places] or [work_dir]
    # Names of before a template was set are older, and better than none.
    every = [*places, *(Place(folder, f'{unit}_{{}}.pth')
                        for folder in folders for unit in ('epoch', 'iter'))]
    written = {path for place in every for path in place.checkpoints()}
    candidates = _newest_first(sorted(written))
    name_file = osp.join(work_dir, 'last_checkpoint')
    if osp.isfile(name_file):
        with open(name_file, errors='replace') as file:  # in the host's encoding
            named = file.read().strip()
        if '://' in named:
            return named, []
        # A folder that was copied or moved has its own; a work dir may have an
        # older one of that name.
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
    """Of those that are files, by the time of writing."""
    return sorted(filter(osp.isfile, paths), key=osp.getmtime, reverse=True)


def resume_latest(cfg: Config) -> None:
    """Let a run go on from the latest intact checkpoint of its work dir.

    Without one it starts at the beginning, as the config says: with its
    ``load_from``, if it has one. What is found goes to the standard output.

    Args:
        cfg (Config): Changed in place.
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
    """Say so if a run may at times have no checkpoint at all."""
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    if hook.get('max_keep_ckpts') == 1:
        _say('default_hooks.checkpoint.max_keep_ckpts=1: mmengine deletes the '
             'old checkpoint before it writes the new one; a run that dies in '
             'between has nothing to resume from. 2 is safe')


def _say(text: str) -> None:
    """Print once; there is no logger yet, nor a process group."""
    rank = os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0'))
    if rank == '0':
        print(text, flush=True)
