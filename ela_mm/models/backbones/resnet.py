"""The ResNet family: stages come from ``make_res_layer``.

Also what this family's ``norm_eval`` and ``frozen_stages`` mean for attention,
and the plugins that a config puts into blocks.
"""
from typing import Dict, Iterable, List, Optional, Sequence

import torch
from mmengine.logging import print_log
from torch import nn

from ...errors import UsageError
from ..compared.plugins import (
    apply_plugins,
    check_plugins,
    init_plugins,
    plugin_norms,
)
from .layer_attention_mixin import LayerAttentionMixin
from .stages import Stage, StageSpec

# Values of the buffer fresh_norm_mask.
_UNDECIDED, _AS_THE_HOST, _FRESH = -1, 0, 1


class ResNetAttentionMixin(LayerAttentionMixin):
    """Adds layer attention to a ResNet class of a host.

    Args:
        *args: Of the host's class.
        plugins (Sequence[dict], optional): Modules to put into the blocks,
            such as ``[dict(cfg=dict(type='SEAttention'),
            position='after_conv3', stages=(False, True, True, True))]``; see
            :func:`~ela_mm.models.compared.plugins.apply_plugins`. Defaults to
            None.
        **kwargs: Of the host's class and of
            :class:`~ela_mm.models.backbones.layer_attention_mixin.LayerAttentionMixin`.

    Raises:
        UsageError: On a plugin that is not well formed.
    """
    # Child that reads the last norm of a block which runs no plugins itself.
    last_norm_reader: Optional[str] = None

    def __init__(self,
                 *args,
                 plugins: Optional[Sequence[dict]] = None,
                 **kwargs) -> None:
        check_plugins(plugins or (), kwargs.get('num_stages', 4))
        self._plugins = plugins or ()
        super().__init__(*args, **self._leave_to_host(kwargs))
        total = sum(map(len, self._new_norms().values()))
        if self.attention_kind is not None or total:
            self.register_buffer(
                'fresh_norm_mask',
                torch.full((len(self._new_norms()), ),
                           _UNDECIDED,
                           dtype=torch.int8))

    def _leave_to_host(self, kwargs: dict) -> dict:
        """Hand the host those plugins that it puts into blocks itself."""
        return kwargs

    # --- building ------------------------------------------------------------

    def _stage_channels(self, kwargs: dict) -> int:
        """Output channels of the stage that ``make_res_layer`` builds."""
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
        spec = StageSpec(
            # The host appends a stage's name to res_layers after it is built.
            name=f'layer{len(self.res_layers) + 1}',
            channels=self._stage_channels(kwargs),
            norm_cfg=kwargs['norm_cfg'],
            # mmpretrain has a rate per block, mmdet no stochastic depth.
            drop_path_rates=kwargs.get('drop_path_rate', [0.] * len(blocks)),
            with_cp=kwargs.get('with_cp', False),
            last_norm_reader=self.last_norm_reader,
            last=len(self.res_layers) + 1 == len(self.stage_blocks))
        return self.attention_kind.build(blocks, spec,
                                         **self.attention_options)

    @property
    def attention_stages(self) -> List[Stage]:
        """The stages that have attention, in order; none without any."""
        if self.attention_kind is None:
            return []
        return [getattr(self, name) for name in self.res_layers]

    def init_weights(self) -> None:
        """Start as the host does; plugins start as they do by themselves."""
        super().init_weights()
        if getattr(self, 'init_cfg', None) and not _is_pretrained(
                self.init_cfg):
            for name in self.res_layers:
                init_plugins(getattr(self, name))

    # --- norms ---------------------------------------------------------------

    @property
    def fresh_norms(self) -> Optional[frozenset]:
        """Layers whose norms ``norm_eval=True`` leaves in training mode.

        ``norm_eval`` freezes the statistics of pretrained norms. Those of
        attention that starts fresh have seen no data; frozen, they would stay
        at mean 0 and variance 1 for good. It is decided once, when training
        starts, by whether a norm has ever seen a batch; those of frozen
        stages stay frozen. The decision is a buffer: whoever loads the
        weights, to resume or to fine-tune, goes on with it. None: not decided
        yet; setting None decides anew.
        """
        if not hasattr(self, 'fresh_norm_mask'):
            return frozenset()
        states = self.fresh_norm_mask.tolist()
        if _UNDECIDED in states:
            return None
        names = self._new_norms()
        return frozenset(
            name for name, state in zip(names, states) if state == _FRESH)

    @fresh_norms.setter
    def fresh_norms(self, names: Optional[Iterable[str]]) -> None:
        if names is None:
            self.fresh_norm_mask.fill_(_UNDECIDED)
            return
        names = set(names)
        self.fresh_norm_mask.copy_(torch.tensor(
            [_FRESH if name in names else _AS_THE_HOST
             for name in self._new_norms()]))

    def _new_norms(self) -> Dict[str, List[nn.Module]]:
        """By block, the norms that attention and plugins brought along."""
        norms = {}
        for name in self.res_layers:
            stage = getattr(self, name)
            for i, block in enumerate(stage):
                norms[f'{name}.{i}'] = plugin_norms(block) + (
                    stage.norms(i) if isinstance(stage, Stage) else [])
        return norms

    def _find_fresh_norms(self) -> List[str]:
        """Blocks that are not frozen, and whose new norms have seen no batch.

        Those of skipped layers will not see one either.
        """
        frozen = self.res_layers[:max(self.frozen_stages, 0)]
        skipped = {x.name for x in self.attention_layers if not x.active}
        return [
            f'{stage}.{i}' for stage in self.res_layers if stage not in frozen
            for i in range(len(getattr(self, stage)))
            if f'{stage}.{i}' not in skipped and any(
                getattr(norm, 'num_batches_tracked', None) == 0
                for norm in self._new_norms()[f'{stage}.{i}'])
        ]

    def train(self, mode: bool = True):
        """Set the mode as the host does; keep fresh norms in training.

        Args:
            mode (bool): Training or evaluation. Defaults to True.

        Returns:
            ResNetAttentionMixin: self, where the hosts return None.
        """
        super().train(mode)
        if not (mode and self.norm_eval and hasattr(self, 'fresh_norm_mask')):
            return self
        if self.fresh_norm_mask.is_meta:  # which holds nothing to read
            return self
        if self.fresh_norms is None:
            self.fresh_norms = self._find_fresh_norms()
            if self.fresh_norms:
                print_log(
                    f'norm_eval=True: the norms of {len(self.fresh_norms)} '
                    'attention layers have seen no data yet and stay in '
                    'training mode', 'current')
        fresh = self.fresh_norms
        for name, norms in self._new_norms().items():
            if name in fresh:
                for norm in norms:
                    norm.train()
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args,
                              **kwargs) -> None:
        """Load; weights of a time before the buffer decide anew."""
        name = prefix + 'fresh_norm_mask'
        if hasattr(self, 'fresh_norm_mask') and any(
                key.startswith(prefix) for key in state_dict):
            undecided = torch.full_like(self.fresh_norm_mask, _UNDECIDED)
            if state_dict.setdefault(name, undecided).shape != (
                    undecided.shape):
                state_dict[name] = undecided
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def inert_layers(self) -> List[str]:
        """Active layers that add exactly 0 and cannot learn otherwise.

        Such are fresh, zero-initialised layers in frozen stages.
        """
        return [
            layer.name for layer in self.attention_layers
            if layer.active and layer.module.scale is not None
            and layer.stage <= self.frozen_stages
            and not layer.module.scale.weight.any()
        ]


class PlanesMixin(ResNetAttentionMixin):
    """The same for hosts whose stages are built from ``planes``.

    Such are mmdet and mmseg: their bottlenecks also take plugins.
    """

    def _stage_channels(self, kwargs: dict) -> int:
        return kwargs['planes'] * self.block.expansion

    def _leave_to_host(self, kwargs: dict) -> dict:
        """Leave it all plugins but those with two of our own options."""
        own = [plugin for plugin in self._plugins
               if 'blocks' in plugin or plugin['position'] == 'conv2']
        theirs = [plugin for plugin in self._plugins if plugin not in own]
        if not theirs:
            return kwargs
        self._plugins = own
        return dict(kwargs, plugins=theirs)

    def make_res_layer(self, **kwargs) -> nn.Module:
        """Build a stage; blocks of two convolutions take no plugins."""
        block = kwargs['block']
        if kwargs.get('plugins') and not hasattr(block, 'make_block_plugins'):
            raise UsageError(
                f'plugins: {block.__name__} of '
                f'{block.__module__.split(".")[0]} takes none; take a depth '
                'of 50 or more, whose blocks are bottlenecks')
        return super().make_res_layer(**kwargs)


def _is_pretrained(init_cfg) -> bool:
    configs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return any(config.get('type') == 'Pretrained' for config in configs)
