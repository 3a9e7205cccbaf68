"""Writes deploy checkpoints, without skipped layers.

A training checkpoint has the parameters of skipped layers, so that it loads
everywhere, and the state that resuming needs. A deploy checkpoint has neither.
It loads with the config of the training.
"""
import os
import tempfile
from contextlib import contextmanager
from typing import Iterator, List, NamedTuple

import torch
from torch import nn

from ..engine.checkpoints import DEPLOY_KEY
from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import ela_backbones


class Deployed(NamedTuple):
    """What :func:`write_deploy_checkpoint` did.

    Attributes:
        has_mask (bool): Whether the checkpoint has a mask; without one, all
            layers are active.
        layers (int): Number of prunable attention layers.
        active (int): Number of active ones.
        left_out (List[str]): Keys of the state dict that were left out.
        parameters (int): Number of elements of these, norm statistics included.
        bytes_before (int): Size of the checkpoint in bytes.
        bytes_after (int): Size of the deploy checkpoint in bytes.
    """
    has_mask: bool
    layers: int
    active: int
    left_out: List[str]
    parameters: int
    bytes_before: int
    bytes_after: int


def write_deploy_checkpoint(model: nn.Module, checkpoint: dict, source: str,
                            target: str) -> Deployed:
    """Write a checkpoint without skipped layers and state of training.

    With the same config it loads like any other checkpoint, also strictly and
    with ``weights_only=True``. Fine-tuning from it trains the pruned network:
    skipped layers stay skipped, with fresh parameters.

    Args:
        model (nn.Module): Model from :func:`~ela_mm.apis.loading.load_model`.
        checkpoint (dict): Checkpoint from the same function; not changed.
        source (str): Path of that checkpoint.
        target (str): Path to write to, atomically.

    Returns:
        Deployed: What was done.

    Raises:
        UsageError: If ``target`` is ``source``.
    """
    if os.path.realpath(source) == os.path.realpath(target):
        raise UsageError(f'{target!r} is the checkpoint itself: expected '
                         'another file to write to')
    backbones = ela_backbones(model)
    unused = {
        f'{prefix}.{name}'
        for prefix, backbone in backbones.items()
        for names in backbone.unused_state().values() for name in names
    }
    state = checkpoint['state_dict']
    kept = {k: v for k, v in state.items() if k not in unused}
    meta = {**checkpoint.get('meta', {}), DEPLOY_KEY: True}
    with whole_file(target) as file:
        torch.save(dict(meta=meta, state_dict=kept), file)
    layers = [x for b in backbones.values() for x in b.attention_layers]
    left_out = [k for k in state if k in unused]
    return Deployed(
        has_mask=any(f'{prefix}.active' in state for prefix in backbones),
        layers=len(layers),
        active=sum(layer.active for layer in layers),
        left_out=left_out,
        parameters=sum(state[k].numel() for k in left_out),
        bytes_before=os.path.getsize(source),
        bytes_after=os.path.getsize(target))


@contextmanager
def whole_file(path: str) -> Iterator[str]:
    """Yield a temporary path in the same folder, which replaces ``path``."""
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.export_', dir=folder) as place:
        name = os.path.join(place, os.path.basename(path))
        yield name
        os.replace(name, path)
