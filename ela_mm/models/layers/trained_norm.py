"""The norms of attention layers, which are always trained."""
from typing import Optional

from mmcv.cnn import build_norm_layer
from torch import nn


def build_trained_norm(norm_cfg: Optional[dict], channels: int) -> nn.Module:
    """Build a norm that is trained from scratch.

    The config may describe a backbone's pretrained, frozen norms. So
    ``requires_grad`` is set to True, and ``eps=0`` is replaced by the norm's
    default: it would divide by 0 where a channel of new features is constant.

    Args:
        norm_cfg (dict, optional): mmcv config of a norm. Defaults to
            dict(type='BN').
        channels (int): C, the channels to normalise.

    Returns:
        nn.Module: The norm, for maps (B, C, H, W).
    """
    norm_cfg = {**(norm_cfg or dict(type='BN')), 'requires_grad': True}
    if norm_cfg.get('eps') == 0:
        del norm_cfg['eps']
    return build_norm_layer(norm_cfg, channels)[1]
