"""Batch norms that also take one number per channel while they train."""
import logging
from functools import lru_cache
from typing import Tuple

import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, fx, nn

from ...compat.compiling import is_compiling


class BatchNorm1dOfAnyBatch(nn.BatchNorm1d):
    """Batch norm of (B, C), with B = 1 in training too.

    One number per channel has no variance, which PyTorch's norms answer with
    an error. Here it is normalised by the running statistics, which stay as
    they are: this project's choice.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C)."""
        return _normalize(self, x)


class BatchNorm2dOfAnyBatch(nn.BatchNorm2d):
    """Batch norm of (B, C, H, W), with one number per channel too.

    As :class:`BatchNorm1dOfAnyBatch`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        return _normalize(self, x)


@fx.wrap  # a graph of torch.fx has no branches
def _normalize(norm: nn.Module, x: Tensor) -> Tensor:
    if not norm.training or x.numel() != x.shape[1]:
        return nn.modules.batchnorm._BatchNorm.forward(norm, x)
    if not is_compiling():
        _say_single(tuple(x.shape))
    return F.batch_norm(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        training=False,
        eps=norm.eps)


@lru_cache(maxsize=None)
def _say_single(shape: Tuple[int, ...]) -> None:
    """Say it once a shape."""
    print_log(
        f'a norm of a compared system in training: an input of shape {shape} '
        'has one number per channel and so no variance; running statistics '
        'are used. Larger batches or pictures would update them', 'current',
        logging.WARNING)
