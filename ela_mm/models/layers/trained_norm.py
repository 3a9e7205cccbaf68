"""The norms of attention layers, which are always trained."""
from typing import Optional

from mmcv.cnn import build_norm_layer
from torch import nn


def build_trained_norm(norm_cfg: Optional[dict], channels: int) -> nn.Module:
    """Build a norm for which there are no pretrained weights.

    Args:
        norm_cfg (dict, optional): The config of the backbone's norms, which may
            describe pretrained, frozen ones. So ``requires_grad`` is taken to be
            True, and ``eps=0`` is replaced by the norm's default: it would
            divide by 0 where a channel of new features is constant. Defaults to
            dict(type='BN').
        channels (int): C.

    Returns:
        nn.Module: A norm of maps (B, C, H, W).
    """
    norm_cfg = {**(norm_cfg or dict(type='BN')), 'requires_grad': True}
    if norm_cfg.get('eps') == 0:
        del norm_cfg['eps']
    return build_norm_layer(norm_cfg, channels)[1]
