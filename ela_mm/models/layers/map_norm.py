"""Layer norm over the channels of maps, for networks without batch norm."""
from mmengine.registry import MODELS
from torchvision.models.convnext import LayerNorm2d

MODELS.register_module('MapLayerNorm', module=LayerNorm2d, force=True)


def norm_for_maps(norm_cfg: dict) -> dict:
    """Turn the config of a norm for tokens into one of the same norm for maps.

    Args:
        norm_cfg (dict): mmcv config of a norm. ``'LN'`` normalises the last
            dimension of tokens (B, HW, C); only some hosts know ``'LN2d'``.

    Returns:
        dict: The config of a norm for maps (B, C, H, W), with the same
        parameters; other configs are returned as they are.
    """
    if norm_cfg['type'] in ('LN', 'LN2d'):
        return {**norm_cfg, 'type': 'MapLayerNorm'}
    return norm_cfg
