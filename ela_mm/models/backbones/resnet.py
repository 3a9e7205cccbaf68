"""The ResNet family: stages come from ``make_res_layer``.

Also what this family's ``norm_eval`` and ``frozen_stages`` mean for attention.
"""
from typing import Dict, Iterable, List, Optional

import torch
from mmengine.logging import print_log
from torch import nn

from .layer_attention_mixin import LayerAttentionMixin
from .stages import Stage, StageSpec

# Values of the buffer fresh_norm_mask.
_UNDECIDED, _AS_THE_HOST, _FRESH = -1, 0, 1


class ResNetAttentionMixin(LayerAttentionMixin):
    """Adds layer attention to a ResNet class of a host.

    Takes the arguments of
    :class:`~ela_mm.models.backbones.layer_attention_mixin.LayerAttentionMixin`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.attention_kind is not None:
            total = sum(len(stage) for stage in self.attention_stages)
            self.register_buffer(
                'fresh_norm_mask',
                torch.full((total, ), _UNDECIDED, dtype=torch.int8))

    # --- building ------------------------------------------------------------

    def _stage_channels(self, kwargs: dict) -> int:
        """Output channels of the stage that ``make_res_layer`` builds."""
        raise NotImplementedError(
            f'{type(self).__name__} must say how its host names the channels '
            'of a stage: override _stage_channels')

    def make_res_layer(self, **kwargs) -> nn.Module:
        """Build a stage as the host does and add attention to it."""
        blocks = super().make_res_layer(**kwargs)
        if self.attention_kind is None:
            return blocks
        spec = StageSpec(
            # The host appends a stage's name to res_layers after it is built.
            name=f'layer{len(self.res_layers) + 1}',
            channels=self._stage_channels(kwargs),
            norm_cfg=kwargs['norm_cfg'],
            # mmpretrain has a rate per block, mmdet no stochastic depth.
            drop_path_rates=kwargs.get('drop_path_rate', [0.] * len(blocks)),
            with_cp=kwargs.get('with_cp', False))
        return self.attention_kind.build(blocks, spec,
                                         **self.attention_options)

    @property
    def attention_stages(self) -> List[Stage]:
        """The stages that have attention, in order; none without any."""
        if self.attention_kind is None:
            return []
        return [getattr(self, name) for name in self.res_layers]

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
        if self.attention_kind is None:
            return frozenset()
        states = self.fresh_norm_mask.tolist()
        if _UNDECIDED in states:
            return None
        names = self._attention_norms()
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
             for name in self._attention_norms()]))

    def _attention_norms(self) -> Dict[str, List[nn.Module]]:
        """Attention's norms by the name of the layer."""
        return {
            f'{stage.name}.{i}': stage.norms(i)
            for stage in self.attention_stages for i in range(len(stage))
        }

    def _find_fresh_norms(self) -> List[str]:
        """Layers that are active, not frozen, and have not seen a batch."""
        skipped = {x.name for x in self.attention_layers if not x.active}
        return [
            f'{stage.name}.{i}'
            for number, stage in enumerate(self.attention_stages, start=1)
            for i in range(len(stage)) if number > self.frozen_stages
            and f'{stage.name}.{i}' not in skipped and any(
                getattr(norm, 'num_batches_tracked', None) == 0
                for norm in stage.norms(i))
        ]

    def train(self, mode: bool = True):
        """Set the mode as the host does; keep fresh norms in training.

        Args:
            mode (bool): Training or evaluation. Defaults to True.

        Returns:
            ResNetAttentionMixin: self, where the hosts return None.
        """
        super().train(mode)
        if not (mode and self.norm_eval and self.attention_stages):
            return self
        if self.fresh_norms is None:
            self.fresh_norms = self._find_fresh_norms()
            if self.fresh_norms:
                print_log(
                    f'norm_eval=True: the norms of {len(self.fresh_norms)} '
                    'attention layers have seen no data yet and stay in '
                    'training mode', 'current')
        fresh = self.fresh_norms
        for name, norms in self._attention_norms().items():
            if name in fresh:
                for norm in norms:
                    norm.train()
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args,
                              **kwargs) -> None:
        """Load; weights of a time before the buffer decide anew."""
        name = prefix + 'fresh_norm_mask'
        if self.attention_kind is not None and any(
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
