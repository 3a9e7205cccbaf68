"""ELA on ViTDet, one of MMDetection's projects, which its package leaves out.

In a checkout of MMDetection, a config says

    custom_imports = dict(imports=['projects.ViTDet.vitdet',
                                   'ela_mm.hosts.mmdet_vitdet'])

in this order, and may then name ``ELAViT`` where it named ``ViT``.
"""
import warnings
from typing import Type

from mmdet.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..models.backbones.vit import MapBlockGroup, ViTAttentionMixin
from .layer_rates import KnowsAttention


class ViTDetAttentionMixin(ViTAttentionMixin):
    """Adds layer attention to the project's ``ViT``, in groups of blocks.

    Its ``blocks`` take maps (B, H, W, C); there is no token beside the patches.
    """
    kinds = {'base': MapBlockGroup}
    blocks_name = 'blocks'

    def token_channels(self) -> int:
        """C of the map."""
        return self.patch_embed.proj.out_channels


def offer(host: Type[nn.Module]) -> Type[nn.Module]:
    """Register ``ELAViT``, and let layer-wise learning rates know attention.

    Args:
        host (Type[nn.Module]): The project's ``ViT``.

    Returns:
        Type[nn.Module]: ``ELAViT``.
    """
    cls = type('ELAViT', (ViTDetAttentionMixin, host), dict(
        __doc__='ViTDet\'s ViT with layer attention.', __module__=__name__))
    MODELS.register_module('ELAViT', module=cls, force=True)
    name = 'LayerDecayOptimizerConstructor'  # the project's own, too
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.module_dict.get(name)
    if constructor is not None and not issubclass(constructor, KnowsAttention):
        OPTIM_WRAPPER_CONSTRUCTORS.register_module(
            name, force=True,
            module=type(name, (KnowsAttention, constructor), {}))
    return cls


if 'ViT' in MODELS.module_dict:
    ELAViT = offer(MODELS.module_dict['ViT'])
else:
    warnings.warn(
        "mmdet knows no backbone 'ViT', and so there is no 'ELAViT': name "
        "'projects.ViTDet.vitdet' of a checkout of MMDetection in "
        "custom_imports, before 'ela_mm.hosts.mmdet_vitdet'",
        stacklevel=2)
