"""ELA on ViTDet, a project of MMDetection that its package does not contain.

In a checkout of MMDetection, a config with

    custom_imports = dict(imports=['projects.ViTDet.vitdet',
                                   'ela_mm.hosts.mmdet_vitdet'])

in this order may use ``ELAViT`` in place of ``ViT``.
"""
import warnings
from typing import Type

from mmdet.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..models.backbones.vit import MapBlockGroup, ViTAttentionMixin
from .layer_rates import KnowsAttention


class ViTDetAttentionMixin(ViTAttentionMixin):
    """Adds layer attention to the project's ``ViT``, in groups of blocks.

    Its ``blocks`` take maps (B, H, W, C); there are no extra tokens.
    """
    kinds = {'base': MapBlockGroup}
    blocks_name = 'blocks'

    def token_channels(self) -> int:
        """Return the number of channels C of the map."""
        return self.patch_embed.proj.out_channels


def offer(host: Type[nn.Module]) -> Type[nn.Module]:
    """Register ``ELAViT``, and extend layer-wise learning rates to attention.

    Args:
        host (Type[nn.Module]): Class ``ViT`` of the project.

    Returns:
        Type[nn.Module]: Class ``ELAViT``.
    """
    cls = type('ELAViT', (ViTDetAttentionMixin, host), dict(
        __doc__='ViTDet\'s ViT with layer attention.', __module__=__name__))
    MODELS.register_module('ELAViT', module=cls, force=True)
    name = 'LayerDecayOptimizerConstructor'  # of the project
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
