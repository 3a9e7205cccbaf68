"""Norms of attention's own, which are trained from the start."""
from typing import Optional

from mmcv.cnn import build_norm_layer
from torch import nn


def build_trained_norm(norm_cfg: Optional[dict], channels: int) -> nn.Module:
    """Build a norm for maps that no pretrained weights belong to.

    Args:
        norm_cfg (dict, optional): What a backbone's norms are built of, by
            mmcv. It may describe pretrained, frozen ones: ``requires_grad`` is
            taken to be True, and of ``eps=0``, which divides by 0 where a
            channel of fresh features is constant, the norm's default takes
            the place. Defaults to dict(type='BN').
        channels (int): C.

    Returns:
        nn.Module: Of (B, C, H, W).
    """
    norm_cfg = {**(norm_cfg or dict(type='BN')), 'requires_grad': True}
    if norm_cfg.get('eps') == 0:
        del norm_cfg['eps']
    return build_norm_layer(norm_cfg, channels)[1]
