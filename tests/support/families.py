"""One small network of every family of backbones, and how to look into it."""
from importlib.util import find_spec
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import ela_mm  # noqa: F401
from ela_mm.hosts import mmdet_families, mmpretrain_stages
from ela_mm.hosts.mmpretrain_more import ELALeViT, ELAPyramidVig, ELAVig


class Family(NamedTuple):
    """A small network.

    Attributes:
        config (dict): Of the backbone, with the host as scope.
        size (Tuple[int, int]): Height and width of its pictures.
        sides (Sequence[int]): Of other pictures that it takes.
        frozen_stages (int, optional): The first value that freezes blocks, if
            any does; None where the host cannot do what it offers.
        strict (bool): Whether the host loads all that it saves.
        smooth (bool): Whether what it returns changes without jumps.
        patch (int): Pixels of a plain transformer's patches.
        plain (str): The host's own class.
        side (int): Of square pictures that it takes.
    """
    config: dict
    size: Tuple[int, int] = (32, 48)
    sides: Sequence[int] = (32, 40, 64)
    frozen_stages: Optional[int] = 1
    strict: bool = True
    smooth: bool = True
    patch: int = 8

    @property
    def side(self) -> int:
        return 32 if self.sides else self.size[0]

    @property
    def plain(self) -> str:
        return self.config['type'].replace('ELA', '')

    def build(self, **options) -> nn.Module:
        return MODELS.build({**self.config, **options})

    def build_plain(self, **options) -> nn.Module:
        config = {**self.config, **options, 'type': self.plain}
        config.pop('attention_groups', None)
        return MODELS.build(config)


_RESNET = dict(depth=50, base_channels=8, stem_channels=8, norm_eval=False)
# Stages of 1, 2, 2, 3 blocks with 16, 32, 48, 88 channels.
_REGNET = dict(w0=16, wa=10., wm=1.75, group_w=8, depth=8, bot_mul=1.0)

# Branches of 8 to 20 channels; the last takes head_dim to 4.
_HRNET = {
    f'stage{i}': dict(
        num_modules=1 + (i == 3), num_branches=i,
        block='BOTTLENECK' if i == 1 else 'BASIC', num_blocks=(2, ) * i,
        num_channels=(8, 16, 8, 20)[:i])
    for i in (1, 2, 3, 4)
}

_MMSEG_VIT = dict(
    embed_dims=32, num_layers=7, num_heads=2, mlp_ratio=1, img_size=32,
    patch_size=8, attention_groups=3, out_indices=(3, 6))

_VIT = dict(
    arch=dict(embed_dims=32, num_layers=7, num_heads=2,
              feedforward_channels=32),
    img_size=32, patch_size=8, attention_groups=3)

# Of the hosts', the smallest EfficientNet has 5 million parameters.
for _host in (mmdet_families, mmpretrain_stages):
    _host.ELAEfficientNet.arch_settings['b-tiny'] = (.25, .5, 32)
# These hosts take no other than their own.
ELALeViT.arch_zoo['mini'] = dict(
    embed_dims=[16, 24, 32], num_heads=[1, 2, 2], depths=[2, 3, 2],
    key_dims=[8, 8, 8])
ELAPyramidVig.arch_settings['mini'] = dict(
    blocks=[1, 2, 3, 2], channels=[8, 16, 24, 32])
ELAVig.arch_settings['mini'] = dict(num_blocks=7, channels=32)

_TWINS = dict(
    embed_dims=[8, 16, 24, 32], depths=[1, 2, 3, 2], num_heads=[1, 2, 2, 2],
    patch_sizes=[4, 2, 2, 2], strides=[4, 2, 2, 2], mlp_ratios=[1] * 4,
    sr_ratios=[4, 2, 1, 1])

FAMILIES: Dict[str, Family] = {
    'regnet': Family(dict(type='mmdet.ELARegNet', arch=_REGNET,
                          norm_eval=False)),
    'res2net': Family(dict(type='mmpretrain.ELARes2Net', **{
        **_RESNET, 'base_channels': 16, 'stem_channels': 16}, base_width=8)),
    'resnest': Family(dict(type='mmdet.ELAResNeSt', **_RESNET)),
    'trident': Family(dict(
        type='mmdet.ELATridentResNet', **_RESNET, num_branch=3,
        test_branch_idx=1, trident_dilations=(1, 2, 3), num_stages=3,
        strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2, ))),
    'detectors': Family(dict(type='mmdet.ELADetectoRS_ResNet', **_RESNET)),
    'convnext': Family(dict(
        type='mmpretrain.ELAConvNeXt', drop_path_rate=.1, out_indices=(1, 3),
        arch=dict(depths=[1, 2, 3, 2], channels=[8, 16, 24, 32]),
        layer_scale_init_value=.5, gap_before_final_norm=False)),
    'convnext_v2': Family(dict(
        type='mmpretrain.ELAConvNeXt', use_grn=True,
        arch=dict(depths=[1, 2, 2, 2], channels=[8, 16, 24, 32]),
        layer_scale_init_value=0.)),
    'cspnext': Family(dict(
        type='mmdet.ELACSPNeXt', widen_factor=.125, deepen_factor=.67),
        (64, 96)),
    'cspdarknet': Family(dict(
        type='mmdet.ELACSPDarknet', widen_factor=.125, deepen_factor=.33),
        (64, 96)),
    'repvgg': Family(dict(
        type='mmpretrain.ELARepVGG', base_channels=16, out_indices=(1, 3),
        arch=dict(num_blocks=[1, 2, 3, 2], width_factor=[1, 1, .5, .25],
                  group_layer_map=None, se_cfg=None))),
    'poolformer': Family(dict(
        type='mmpretrain.ELAPoolFormer', out_indices=[2, 6], arch=dict(
            layers=[1, 2, 3, 2], embed_dims=[8, 16, 24, 32],
            mlp_ratios=[1] * 4, layer_scale_init_value=.5))),
    'riformer': Family(dict(
        type='mmpretrain.ELARIFormer', out_indices=[2, 6], arch=dict(
            layers=[1, 2, 3, 2], embed_dims=[8, 16, 24, 32],
            mlp_ratios=[1] * 4, layer_scale_init_value=.5))),
    'mobilenet': Family(dict(
        type='mmpretrain.ELAMobileNetV2', widen_factor=.25,
        out_indices=(3, 6))),
    'mobilenet_det': Family(dict(
        type='mmdet.ELAMobileNetV2', widen_factor=.25, out_indices=(3, 6))),
    'mobilenet_seg': Family(dict(
        type='mmseg.ELAMobileNetV2', widen_factor=.25, out_indices=(3, 6))),
    'efficientnet_v2': Family(dict(
        type='mmpretrain.ELAEfficientNetV2', arch='b0', out_indices=(3, 6)),
        frozen_stages=2),
    'mobileone': Family(dict(
        type='mmpretrain.ELAMobileOne', out_indices=(1, 3), arch=dict(
            num_blocks=[1, 2, 3, 2], width_factor=[.125, .125, .0625, .0625],
            num_conv_branches=[1, 2, 1, 1], num_se_blocks=[0, 0, 1, 0]))),
    'mobilenet_v3': Family(dict(
        type='mmpretrain.ELAMobileNetV3', arch='small_050',
        out_indices=(4, 12)), frozen_stages=5),
    'efficientnet': Family(dict(
        type='mmpretrain.ELAEfficientNet', arch='b-tiny', out_indices=(3, 6)),
        frozen_stages=2),
    'efficientnet_det': Family(dict(
        type='mmdet.ELAEfficientNet', arch='b-tiny', out_indices=(3, 5)),
        frozen_stages=2),
    'mobilenet_v3_seg': Family(dict(
        type='mmseg.ELAMobileNetV3', arch='small', out_indices=(1, 5, 12)),
        frozen_stages=5),
    'vgg': Family(dict(
        type='mmpretrain.ELAVGG', depth=13, num_stages=3, dilations=(1, 1, 1),
        out_indices=(0, 2))),
    'hornet': Family(dict(
        type='mmpretrain.ELAHorNet', out_indices=(1, 3), arch=dict(
            base_dim=8, depths=[1, 2, 3, 2], orders=[2, 3, 2, 3],
            dw_cfg=[dict(type='DW', kernel_size=3)] * 4)), frozen_stages=0),
    'edgenext': Family(dict(
        type='mmpretrain.ELAEdgeNeXt', out_indices=(1, 3), arch=dict(
            channels=[8, 16, 24, 32], depths=[1, 2, 3, 2],
            num_heads=[2, 2, 2, 2]),
        use_pos_embd_csa=[False] * 4)),  # which is in float32 alone
    'repmlp': Family(dict(
        type='mmpretrain.ELARepMLPNet', img_size=32, out_indices=(1, 3),
        arch=dict(channels=[8, 16, 24, 32], depths=[1, 2, 3, 2],
                  sharesets_nums=[1, 2, 2, 4])), (32, 32), sides=()),
    'tinyvit': Family(dict(
        type='mmpretrain.ELATinyViT', img_size=(32, 32), window_size=[2] * 4,
        arch=dict(channels=[8, 16, 24, 32], num_heads=[1, 2, 2, 2],
                  depths=[1, 2, 3, 2]), out_indices=[2, 3]), (32, 32),
        sides=()),
    'pcpvt': Family(dict(type='mmpretrain.ELAPCPVT', arch=_TWINS,
                         out_indices=(1, 3), norm_after_stage=True)),
    'pcpvt_seg': Family(dict(
        type='mmseg.ELAPCPVT', **_TWINS, out_indices=(1, 3),
        norm_after_stage=True)),
    'svt_seg': Family(dict(
        type='mmseg.ELASVT', **_TWINS, windiow_sizes=[2] * 4,
        norm_after_stage=False)),
    'svt': Family(dict(type='mmpretrain.ELASVT', out_indices=(1, 3), arch={
        **_TWINS, 'window_sizes': [2] * 4})),
    'levit': Family(dict(
        type='mmpretrain.ELALeViT', arch='mini', img_size=64,
        out_indices=(0, 2)), (64, 64), sides=()),
    'replknet': Family(dict(
        type='mmpretrain.ELARepLKNet', out_indices=(1, 3), arch=dict(
            large_kernel_sizes=[5, 5, 3, 3], layers=[1, 2, 3, 2],
            channels=[8, 16, 24, 32], small_kernel=3, dw_ratio=1))),
    'van': Family(dict(
        type='mmpretrain.ELAVAN', out_indices=(1, 3), arch=dict(
            embed_dims=[8, 16, 24, 32], depths=[1, 2, 3, 2],
            ffn_ratios=[1] * 4)), frozen_stages=0),
    'densenet': Family(dict(
        type='mmpretrain.ELADenseNet', out_indices=(1, 3), arch=dict(
            growth_rate=8, depths=[2, 3, 4, 2], init_channels=16))),
    'efficientformer': Family(dict(
        type='mmpretrain.ELAEfficientFormer', out_indices=(1, 3), arch=dict(
            layers=[1, 2, 2, 3], embed_dims=[8, 16, 24, 32],
            downsamples=[False, True, True, True], vit_num=2)), (224, 224),
        sides=()),
    'pvig': Family(dict(type='mmpretrain.ELAPyramidVig', arch='mini',
                        out_indices=[1, 3]), (224, 224), sides=(),
                   smooth=False),  # patches have the neighbours they have
    'mobilevit': Family(dict(
        type='mmpretrain.ELAMobileViT', arch='xx_small',
        out_indices=(2, 4))),
    'csp_darknet': Family(dict(type='mmpretrain.ELACSPDarkNet', depth=53,
                               out_indices=(1, 4)), frozen_stages=0),
    'csp_resnext': Family(dict(type='mmpretrain.ELACSPResNeXt', depth=50,
                               out_indices=(1, 3)), frozen_stages=0),
    'davit': Family(dict(
        type='mmpretrain.ELADaViT', window_size=2, pad_small_map=True,
        arch=dict(embed_dims=16, depths=[1, 2, 3, 2], num_heads=[1, 2, 4, 8]),
        out_indices=(1, 3)), (64, 96), frozen_stages=0),
    'mvit': Family(dict(
        type='mmpretrain.ELAMViT', img_size=32, out_scales=[0, 2], arch=dict(
            embed_dims=16, num_layers=7, num_heads=1,
            downscale_indices=[1, 4]))),
    'vig': Family(dict(
        type='mmpretrain.ELAVig', arch='mini', out_indices=[3, 6],
        attention_groups=3), (224, 224), sides=(), smooth=False),
    'convmixer': Family(dict(
        type='mmpretrain.ELAConvMixer', out_indices=[3, 6], arch=dict(
            embed_dims=16, depth=7, patch_size=8, kernel_size=3),
        attention_groups=3)),
    'mlp_mixer': Family(dict(
        type='mmpretrain.ELAMlpMixer', img_size=32, patch_size=8, arch=dict(
            embed_dims=32, num_layers=7, tokens_mlp_dims=16,
            channels_mlp_dims=32), attention_groups=3), (32, 32), sides=()),
    't2t': Family(dict(
        type='mmpretrain.ELAT2T_ViT', img_size=64, embed_dims=32,
        num_layers=5, t2t_cfg=dict(token_dims=16), layer_cfgs=dict(
            num_heads=2, feedforward_channels=32), out_indices=[2, 4],
        out_type='featmap', attention_groups=3), (64, 96), patch=16),
    'conformer': Family(dict(
        type='mmpretrain.ELAConformer', base_channels=32, out_indices=[3, 9],
        arch=dict(embed_dims=32, depths=9, num_heads=2, channel_ratio=1)),
        frozen_stages=None),
    'mixmim': Family(dict(
        type='mmpretrain.ELAMixMIMTransformer', img_size=64, arch=dict(
            embed_dims=16, depths=[1, 2, 3, 2], num_heads=[1, 2, 2, 2]),
        window_size=[2] * 4), (64, 64), sides=()),
    'shufflenet_v1': Family(dict(
        type='mmpretrain.ELAShuffleNetV1', widen_factor=.5,
        out_indices=(1, 2))),
    'shufflenet_v2': Family(dict(
        type='mmpretrain.ELAShuffleNetV2', widen_factor=.5,
        out_indices=(1, 3))),
    'hivit': Family(dict(
        type='mmpretrain.ELAHiViT', img_size=32, patch_size=8,
        out_indices=[6], arch=dict(
            embed_dims=32, depths=[1, 1, 7], num_heads=2),
        attention_groups=3), (32, 32), sides=(), frozen_stages=None),
    'swin_det': Family(dict(
        type='mmdet.ELASwinTransformer', embed_dims=16, depths=(1, 2, 3, 2),
        num_heads=(1, 2, 4, 8), window_size=2)),
    'swin': Family(dict(
        type='mmpretrain.ELASwinTransformer', img_size=32, window_size=2,
        arch=dict(embed_dims=16, depths=[1, 2, 3, 2], num_heads=[1, 2, 4, 8]),
        out_indices=(1, 3), pad_small_map=True)),
    'swin_v2': Family(dict(
        type='mmpretrain.ELASwinTransformerV2', img_size=32, window_size=4,
        arch=dict(embed_dims=16, depths=[1, 2, 3, 2], num_heads=[1, 2, 4, 8],
                  extra_norm_every_n_blocks=0),
        out_indices=(1, 3), pad_small_map=True), strict=False),
    'pvt': Family(dict(
        type='mmdet.ELAPyramidVisionTransformer', embed_dims=8,
        pretrain_img_size=32, num_layers=[1, 2, 3, 2])),
    'vit': Family(dict(
        type='mmpretrain.ELAVisionTransformer', **_VIT, drop_path_rate=.1,
        out_indices=[3, 6], out_type='featmap')),
    'distilled': Family(dict(
        type='mmpretrain.ELADistilledVisionTransformer', **_VIT)),
    'xcit': Family(dict(
        type='mmpretrain.ELAXCiT', img_size=32, patch_size=8, embed_dims=32,
        depth=5, cls_attn_layers=1, num_heads=2, mlp_ratio=1.,
        use_pos_embed=False,  # which is in float32 alone
        attention_groups=3), frozen_stages=2),
    'vit_sam': Family(dict(
        type='mmpretrain.ELAViTSAM', img_size=32, patch_size=8, window_size=3,
        arch=dict(embed_dims=32, num_layers=5, num_heads=2,
                  feedforward_channels=32, global_attn_indexes=[2, 4]),
        attention_groups=3, out_channels=8, out_indices=[1, 4])),
    'vit_seg': Family(dict(
        type='mmseg.ELAVisionTransformer', **_MMSEG_VIT, final_norm=True)),
    'beit_seg': Family(dict(type='mmseg.ELABEiT', **_MMSEG_VIT), (32, 32),
                       sides=()),
    'mae_seg': Family(dict(type='mmseg.ELAMAE', **_MMSEG_VIT), (32, 32),
                      sides=()),
    'swin_seg': Family(dict(
        type='mmseg.ELASwinTransformer', embed_dims=16, depths=(1, 2, 3, 2),
        num_heads=(1, 2, 4, 8), window_size=2, out_indices=(1, 3))),
    'mit': Family(dict(
        type='mmseg.ELAMixVisionTransformer', embed_dims=8,
        num_layers=[1, 2, 3, 2])),
    'hrnet': Family(dict(
        type='mmdet.ELAHRNet', extra=_HRNET, norm_eval=False), (32, 64),
        sides=(32, 64)),
    'hrnet_cls': Family(dict(type='mmpretrain.ELAHRNet', extra=_HRNET),
                        (32, 64), sides=(32, 64)),
    'hrnet_seg': Family(dict(type='mmseg.ELAHRNet', extra=_HRNET), (32, 64),
                        sides=(32, 64)),
    'beit': Family(dict(
        type='mmpretrain.ELABEiTViT', **_VIT, layer_scale_init_value=.1,
        out_type='avg_featmap'), (32, 32), sides=()),
    'pvt_v2': Family(dict(
        type='mmdet.ELAPyramidVisionTransformerV2', embed_dims=8,
        num_layers=[1, 2, 3, 2])),
}
FAMILIES = {name: family for name, family in FAMILIES.items()
            if find_spec(family.config['type'].split('.')[0])}

# Of the same mixin as another of the families, in another host.
TWINS = ('riformer', 'mobilenet', 'mobilenet_det', 'mobilenet_seg',
         'efficientnet_v2', 'swin_seg', 'swin_v2', 'vit_seg', 'beit_seg',
         'hrnet_cls', 'hrnet_seg', 'vgg', 'edgenext', 'repmlp', 'svt',
         'efficientnet_det', 'mobilenet_v3_seg', 'pcpvt_seg', 'svt_seg',
         'efficientformer', 'pvig', 'mobilevit', 'csp_darknet',
         'csp_resnext', 'davit', 'vig', 'mlp_mixer', 't2t', 'mixmim', 'shufflenet_v1',
         'shufflenet_v2')


def each_family():
    """A parameter ``name`` of tests; the twins are slow ones."""
    return pytest.mark.parametrize('name', [
        pytest.param(name, marks=pytest.mark.slow if name in TWINS else ())
        for name in FAMILIES])


def randomize(net: nn.Module) -> nn.Module:
    """Give every parameter a value of its own, scales of 0 included."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:  # of norms, biases and scales
                parameter += .3 * noise.to(parameter.dtype)
            else:
                parameter.copy_(noise / parameter[0].numel()**.5)
    return net


def pictures(family: Family, size=None, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *(size or family.size))


def flat(outs) -> List[Tensor]:
    """A backbone's outputs, whatever tuples it returns."""
    if isinstance(outs, Tensor):
        return [outs]
    return [x for out in outs for x in flat(out)]


def loss_of(outs) -> Tensor:
    return sum(out.square().mean() for out in flat(outs))
