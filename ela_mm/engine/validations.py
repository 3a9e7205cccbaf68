"""Records which checkpoints a run has validated, and with which metrics.

A checkpoint is saved before its epoch is validated, so it cannot hold the
result. A file in the work dir does.
"""
import json
import numbers
import os
import os.path as osp
from contextlib import suppress
from typing import Any, Dict, Optional

import numpy as np
import torch
from mmengine.dist import is_main_process

from .journal.record import write_whole

FILE_NAME = 'ela_validated.json'
# Key in a checkpoint of its name in that file.
KEY = 'ela_validated_as'


def new_name() -> str:
    """Make a unique name for a checkpoint."""
    return os.urandom(8).hex()


def remember(work_dir: str, name: str, metrics: Dict[str, Any]) -> None:
    """Record that a checkpoint was validated; errors of the disk are ignored.

    Args:
        work_dir (str): Work dir of the run.
        name (str): Name of the checkpoint, from :func:`new_name`.
        metrics (Dict[str, Any]): Metrics of the validation. If one of them is
            not a number, nothing is written, since :func:`recall` could not
            return it unchanged.
    """
    plain = {key: _plain(value) for key, value in metrics.items()}
    if not is_main_process() or None in plain.values():
        return
    known = {**_read(work_dir), name: plain}
    with suppress(OSError):
        write_whole(json.dumps(known, indent=1), osp.join(work_dir, FILE_NAME))


def recall(work_dir: str, name: Optional[str]) -> Optional[Dict[str, float]]:
    """Read the metrics of a checkpoint that was validated before.

    Args:
        work_dir (str): Work dir of the run.
        name (str, optional): Name of the checkpoint; None if it has none.

    Returns:
        Dict[str, float] | None: The metrics; None if no complete validation
        of it is recorded.
    """
    metrics = _read(work_dir).get(name)
    if not isinstance(metrics, dict) or not metrics or not all(
            isinstance(value, (int, float)) for value in metrics.values()):
        return None
    return metrics


def forget(checkpoint: Dict[str, Any]) -> Dict[str, Any]:
    """Copy a checkpoint without the note that it was validated.

    For a checkpoint whose network is changed: the results are not of the new
    one, which a resumed run has to validate.

    Args:
        checkpoint (Dict[str, Any]): Checkpoint of mmengine; not changed.

    Returns:
        Dict[str, Any]: A shallow copy.
    """
    copy = {key: value for key, value in checkpoint.items() if key != KEY}
    hub = copy.get('message_hub') or {}
    info = hub.get('runtime_info') or {}
    if info.get('loop_stage') == 'val':  # saved by the validation itself
        copy['message_hub'] = {
            **hub, 'runtime_info': {**info, 'loop_stage': 'train'}}
    return copy


def _read(work_dir: str) -> Dict[str, Any]:
    try:
        with open(osp.join(work_dir, FILE_NAME), encoding='utf-8') as file:
            known = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}  # the checkpoint will be validated once more
    return known if isinstance(known, dict) else {}


def _plain(value: Any) -> Optional[float]:
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        value = value.item() if value.size == 1 or (
            isinstance(value, torch.Tensor) and value.numel() == 1) else None
    return value if isinstance(value, numbers.Real) else None
