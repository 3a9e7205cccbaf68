"""Which checkpoint to go on from, when a run may have died at any moment.

mmengine writes a checkpoint in place and then its name into the file
``last_checkpoint``, in place as well. A run that is killed, or whose disk is
full, leaves either of them cut off.
"""
import glob
import os
import os.path as osp
import re
import zipfile
from typing import List, Optional, Tuple

from mmengine.config import Config
from mmengine.hooks import CheckpointHook

# In the meta of a deploy checkpoint: it has no state to resume from.
DEPLOY_KEY = 'ela_deploy'
_MAGIC = b'PK'  # torch >= 1.6 writes checkpoints as zip archives
_CHECKPOINT = re.compile(r'(epoch|iter)_\d+\.pth')  # not best_*.pth


def is_intact(path: str) -> bool:
    """Whether a checkpoint was written to its end.

    Args:
        path (str): A local file. All of it is read.

    Returns:
        bool: False if it is empty, cut off or holds wrong bytes. A file of
        torch's old format, which has no check sums, counts as intact.
    """
    with open(path, 'rb') as file:
        start = file.read(len(_MAGIC))
    if start != _MAGIC:
        return bool(start.strip(b'\0'))
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError):
        return False


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


def latest_intact(work_dir: str) -> Tuple[Optional[str], List[str]]:
    """The checkpoint to go on from.

    It is the one that ``last_checkpoint`` names. Where that file or the one it
    names is missing or cut off, it is the last ``epoch_*.pth`` or
    ``iter_*.pth`` that was written to its end.

    Args:
        work_dir (str): Of the run.

    Returns:
        tuple: Its path or None, and the paths of those found damaged.
    """
    written = [
        path for path in glob.glob(osp.join(glob.escape(work_dir), '*.pth'))
        if _CHECKPOINT.fullmatch(osp.basename(path))
    ]
    candidates = sorted(written, key=osp.getmtime, reverse=True)
    name_file = osp.join(work_dir, 'last_checkpoint')
    if osp.isfile(name_file):
        with open(name_file, errors='replace') as file:
            named = file.read().strip()
        if '://' in named:
            return named, []
        # The first also where the folder was copied or moved.
        candidates[:0] = [osp.join(work_dir, osp.basename(named)), named]
    damaged = []
    for path in dict.fromkeys(candidates):
        if osp.isfile(path):
            if is_intact(path):
                return path, damaged
            damaged.append(path)
    return None, damaged


def resume_latest(cfg: Config) -> None:
    """Let a run go on from the latest intact checkpoint of its work dir.

    Without one it starts at the beginning, as the config says: with its
    ``load_from``, if it has one. What is found goes to the standard output.

    Args:
        cfg (Config): Changed in place.
    """
    path, damaged = latest_intact(cfg.work_dir)
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
