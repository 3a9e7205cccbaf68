"""Which checkpoints a run has validated to the end, and what came out.

A checkpoint is written before its epoch is validated, and cannot say that it
was. A file beside it does.
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
# In a checkpoint: what it is called in that file.
KEY = 'ela_validated_as'


def new_name() -> str:
    """Make a name for a checkpoint, which nothing else has."""
    return os.urandom(8).hex()


def remember(work_dir: str, name: str, metrics: Dict[str, Any]) -> None:
    """Write down that a checkpoint was validated; a full disk is no error.

    Args:
        work_dir (str): Of the run.
        name (str): Of the checkpoint, from :func:`new_name`.
        metrics (Dict[str, Any]): What came out. Where one is no number,
            nothing is written: it could not be given back as it was.
    """
    plain = {key: _plain(value) for key, value in metrics.items()}
    if not is_main_process() or None in plain.values():
        return
    known = {**_read(work_dir), name: plain}
    with suppress(OSError):
        write_whole(json.dumps(known, indent=1), osp.join(work_dir, FILE_NAME))


def recall(work_dir: str, name: Optional[str]) -> Optional[Dict[str, float]]:
    """Read what came out when a checkpoint was validated.

    Args:
        work_dir (str): Of the run.
        name (str, optional): Of the checkpoint; None where it has none.

    Returns:
        Dict[str, float] | None: None if it was not validated to the end, as
        far as is known.
    """
    metrics = _read(work_dir).get(name)
    if not isinstance(metrics, dict) or not metrics or not all(
            isinstance(value, (int, float)) for value in metrics.values()):
        return None
    return metrics


def _read(work_dir: str) -> Dict[str, Any]:
    try:
        with open(osp.join(work_dir, FILE_NAME), encoding='utf-8') as file:
            known = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}  # it will be validated once more
    return known if isinstance(known, dict) else {}


def _plain(value: Any) -> Optional[float]:
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        value = value.item() if value.size == 1 or (
            isinstance(value, torch.Tensor) and value.numel() == 1) else None
    return value if isinstance(value, numbers.Real) else None
