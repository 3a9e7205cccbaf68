"""The ResNet family, whose hosts build stages by ``make_res_layer``.

Plugins that a config puts into blocks are handled here as well.
"""
from typing import Dict, List, Optional, Sequence

from torch import nn

from ...errors import UsageError
from ..compared.plugins import (
    apply_plugins,
    check_plugins,
    init_plugins,
    plugin_norms,
    with_defaults,
)
from .fresh_norms import FreshNormsMixin
from .stages import AttentionLayerInfo, Stage, StageSpec


class ResNetAttentionMixin(FreshNormsMixin):
    """Adds layer attention to a ResNet class of a host.

    Args:
        *args: Arguments of the host's class.
        plugins (Sequence[dict], optional): Modules to put into the blocks,
            such as ``[dict(cfg=dict(type='SEAttention'),
            position='after_conv3', stages=(False, True, True, True))]``; see
            :func:`~ela_mm.models.compared.plugins.apply_plugins`. Defaults to
            None.
        **kwargs: Arguments of the host's class and of
            :class:`~ela_mm.models.backbones.layer_attention_mixin.LayerAttentionMixin`.

    Raises:
        UsageError: On a malformed plugin.
    """
    # See StageSpec.last_norm_reader.
    last_norm_reader: Optional[str] = None

    def __init__(self,
                 *args,
                 plugins: Optional[Sequence[dict]] = None,
                 **kwargs) -> None:
        check_plugins(plugins or (), kwargs.get('num_stages', 4))
        self._plugins = with_defaults(plugins or ())
        super().__init__(*args, **self._leave_to_host(kwargs))

    def _leave_to_host(self, kwargs: dict) -> dict:
        """Add to the arguments those plugins that the host handles itself."""
        return kwargs

    # --- building ------------------------------------------------------------

    def _stage_channels(self, kwargs: dict) -> int:
        """Return the output channels of the stage that is being built."""
        raise NotImplementedError(
            f'{type(self).__name__} must say how its host names the channels '
            'of a stage: override _stage_channels')

    def make_res_layer(self, **kwargs) -> nn.Module:
        """Build a stage as the host does and add attention to it."""
        blocks = super().make_res_layer(**kwargs)
        apply_plugins(blocks, self._plugins, len(self.res_layers),
                      self.last_norm_reader)
        if self.attention_kind is None:
            return blocks
        channels = self._stage_channels(kwargs)
        # RegNet has the widths of all stages; elsewhere they are multiples of
        # the first.
        self.fit_head_dim(getattr(self, 'stage_widths', [channels]))
        spec = StageSpec(
            # The host adds the name to res_layers once the stage is built.
            name=f'layer{len(self.res_layers) + 1}',
            channels=channels,
            norm_cfg=kwargs['norm_cfg'],
            # mmpretrain passes a rate for each block; mmdet has no drop path.
            drop_path_rates=kwargs.get('drop_path_rate', [0.] * len(blocks)),
            with_cp=kwargs.get('with_cp', False),
            last_norm_reader=self.last_norm_reader,
            last=len(self.res_layers) + 1 == len(self.stage_blocks))
        return self.attention_kind.build(blocks, spec,
                                         **self.attention_options)

    @property
    def attention_stages(self) -> List[Stage]:
        """Stages with attention, in order; empty if ``attention=None``."""
        if self.attention_kind is None:
            return []
        return [getattr(self, name) for name in self.res_layers]

    def init_weights(self) -> None:
        """Initialise as the host does, and plugins as they do by default."""
        super().init_weights()
        if getattr(self, 'init_cfg', None) and not _is_pretrained(
                self.init_cfg):
            for name in self.res_layers:
                init_plugins(getattr(self, name))

    # --- norms ---------------------------------------------------------------

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether the host's ``frozen_stages`` freezes a layer."""
        return layer.stage <= self.frozen_stages

    def new_norms(self) -> Dict[str, List[nn.Module]]:
        """List the norms of attention and plugins, by block."""
        norms = {}
        for name in self.res_layers:
            stage = getattr(self, name)
            for i in range(len(stage)):
                norms[f'{name}.{i}'] = plugin_norms(stage[i]) + (
                    stage.norms(i) if isinstance(stage, Stage) else [])
        return norms

    def frozen_norms(self) -> List[str]:
        """List the names of the blocks in frozen stages."""
        frozen = self.res_layers[:max(self.frozen_stages, 0)]
        return [name for name in self.new_norms()
                if name.split('.')[0] in frozen]


class PlanesMixin(ResNetAttentionMixin):
    """ResNet classes of mmdet and mmseg, which build stages from ``planes``.

    Bottlenecks of these hosts take plugins as well.
    """

    def _stage_channels(self, kwargs: dict) -> int:
        return kwargs['planes'] * self.block.expansion

    def _leave_to_host(self, kwargs: dict) -> dict:
        """Pass on all plugins but those with options that only we have."""
        own = [plugin for plugin in self._plugins
               if 'blocks' in plugin or plugin['position'] == 'conv2']
        theirs = [plugin for plugin in self._plugins if plugin not in own]
        if not theirs:
            return kwargs
        self._plugins = own
        return dict(kwargs, plugins=theirs)

    def make_res_layer(self, **kwargs) -> nn.Module:
        """Build a stage; refuse plugins of the host for basic blocks."""
        block = kwargs['block']
        if kwargs.get('plugins') and not hasattr(block, 'make_block_plugins'):
            raise UsageError(
                f'plugins: {block.__name__} of '
                f'{block.__module__.split(".")[0]} takes none; take a depth '
                'of 50 or more, whose blocks are bottlenecks')
        return super().make_res_layer(**kwargs)


class WidePlanesMixin(PlanesMixin):
    """ResNet classes of mmdet and mmseg whose blocks are wider inside.

    Hosts build plugins for the width of a plain ResNet, so that only those
    after the last convolution would fit. Here none are left to the host.
    """

    def _leave_to_host(self, kwargs: dict) -> dict:
        """Pass on no plugin."""
        return kwargs


def _is_pretrained(init_cfg) -> bool:
    configs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return any(config.get('type') == 'Pretrained' for config in configs)
