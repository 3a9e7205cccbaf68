"""Networks of families other than ResNet, for benchmarks."""
from typing import Dict, Tuple

from mmengine.registry import MODELS
from torch import nn

from ..errors import UsageError

#: Type and arguments of the backbone, by name of the network.
FAMILIES: Dict[str, Tuple[str, dict]] = {
    'convnext-tiny': ('mmpretrain.ELAConvNeXt', dict(arch='tiny')),
    'swin-tiny': ('mmpretrain.ELASwinTransformer', dict(arch='tiny')),
    'deit-tiny': ('mmpretrain.ELAVisionTransformer', dict(arch='deit-tiny')),
    'cspnext-s': ('mmdet.ELACSPNeXt',
                  dict(deepen_factor=0.33, widen_factor=0.5)),
    'pvt-v2-b0': ('mmdet.ELAPyramidVisionTransformerV2',
                  dict(embed_dims=32, num_layers=[2, 2, 2, 2])),
    'regnetx-3.2gf': ('mmpretrain.ELARegNet', dict(arch='regnetx_3.2gf')),
}
# Networks whose hosts can checkpoint activations.
_WITH_CP = ('convnext-tiny', 'swin-tiny', 'regnetx-3.2gf')


def build_family(network: str,
                 attends: bool,
                 with_cp: bool = False) -> nn.Module:
    """Build a network of :data:`FAMILIES`.

    Args:
        network (str): Name of the network.
        attends (bool): Whether it has MRLA-base; if False, it is the plain
            network.
        with_cp (bool): Whether to checkpoint activations. Defaults to False.

    Returns:
        nn.Module: The backbone.

    Raises:
        UsageError: If the host cannot checkpoint this network.
    """
    kind, options = FAMILIES[network]
    if with_cp and network not in _WITH_CP:
        raise UsageError(f'network {network!r} has no activation '
                         f'checkpointing: expected one of {_WITH_CP}')
    if with_cp:
        options = dict(options, with_cp=True)
    return MODELS.build(
        dict(type=kind, attention='base' if attends else None, **options))
