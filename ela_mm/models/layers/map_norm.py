"""Layer norm over the channels of maps, for networks that have no batch norm."""
from mmengine.registry import MODELS
from torchvision.models.convnext import LayerNorm2d

MODELS.register_module('MapLayerNorm', module=LayerNorm2d, force=True)


def norm_for_maps(norm_cfg: dict) -> dict:
    """Turn a norm of tokens into the same of maps.

    Args:
        norm_cfg (dict): As mmcv builds it. ``'LN'`` is over the last
            dimension of tokens (B, HW, C); ``'LN2d'`` is known to some hosts
            alone.

    Returns:
        dict: Of a norm of maps (B, C, H, W), with the same parameters.
    """
    if norm_cfg['type'] in ('LN', 'LN2d'):
        return {**norm_cfg, 'type': 'MapLayerNorm'}
    return norm_cfg
