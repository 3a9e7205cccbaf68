"""The mixin that adds layer attention to a host's ResNet family.

A stage runs ``x = block(x)``, then ``x = x + attention(x, memory)``. The
host's blocks stay as they are, under their own names: any ResNet checkpoint
loads, and the missing keys are the attention's alone. The mixin also holds
the decision which layers are active, as buffers, so that a plain checkpoint
carries it.
"""
from copy import deepcopy
from typing import (
    Dict,
    Iterable,
    List,
    Optional,
)

import torch
from mmengine.logging import print_log
from torch import nn

from ...errors import UsageError
from ..layers import LayerAttention, LightLayerAttention
from .stages import AttentionLayerInfo, AttentionStage, LightAttentionStage, Observer

ATTENTION_TYPES = ('base', 'light', None)
SKIP_MODES = ('layer', 'retrieval')


class LayerAttentionMixin:
    """Adds layer attention to a ResNet class of mmdet or mmpretrain.

    Put it before the host's class: ``class ELAResNet(LayerAttentionMixin,
    ResNet)``. All arguments of the host stay valid.

    Args:
        attention (str | None): ``'base'`` for MRLA-base, which ELA prunes,
            ``'light'`` for MRLA-light, None for the plain host network.
            Defaults to ``'base'``.
        head_dim (int, optional): d, channels per head. Defaults to 16 for
            ``'base'`` and 32 for ``'light'``, the paper's.
        act (bool): Whether a relu ends the term of ``'base'``. Defaults to
            True.
        zero_init_attention (bool): Start from the plain network, bit for bit,
            by a learnable scale per channel that is 0 at first. For training
            that starts from plain ResNet weights. Defaults to False.

    Raises:
        UsageError: On an unknown ``attention``, a ``head_dim`` that does not
            divide the channels of a stage, or an option that the chosen
            attention does not have.
    """

    def __init__(self,
                 *args,
                 attention: Optional[str] = 'base',
                 head_dim: Optional[int] = None,
                 act: bool = True,
                 zero_init_attention: bool = False,
                 **kwargs) -> None:
        if attention not in ATTENTION_TYPES:
            raise UsageError(f'attention={attention!r}: expected one of '
                             f'{ATTENTION_TYPES}')
        if attention != 'base' and (zero_init_attention or not act):
            raise UsageError(
                f'attention={attention!r} knows neither act=False nor '
                "zero_init_attention=True; these are options of 'base'")
        # Plain values, which make_res_layer needs during the host's __init__.
        self.attention = attention
        self._layer_options = dict()
        if head_dim is not None:
            self._layer_options['head_dim'] = head_dim
        if attention == 'base':
            self._layer_options.update(act=act, zero_init=zero_init_attention)
        # Names of the layers whose norm norm_eval leaves in training mode;
        # None: not decided yet.
        self._fresh_norms: Optional[frozenset] = None
        super().__init__(*args, **kwargs)
        if attention == 'base':
            total = sum(len(stage) for stage in self._stages())
            self.register_buffer('active', torch.ones(total, dtype=torch.bool))
            self.register_buffer('visible', torch.ones(total,
                                                       dtype=torch.bool))

    # --- building ------------------------------------------------------------

    def _stage_channels(self, kwargs: dict) -> int:
        """Output channels of the stage that ``make_res_layer`` builds."""
        raise NotImplementedError(
            f'{type(self).__name__} must say how its host names the channels '
            'of a stage: override _stage_channels')

    def make_res_layer(self, **kwargs) -> nn.Module:
        """Build a stage as the host does and add attention to it."""
        blocks = super().make_res_layer(**kwargs)
        if self.attention is None:
            return blocks
        # mmpretrain has a rate per block, mmdet no stochastic depth.
        rates = kwargs.get('drop_path_rate', [0.] * len(blocks))
        layer_type = dict(base=LayerAttention, light=LightLayerAttention)
        options = dict(self._layer_options)
        if self.attention == 'base':
            options['with_cp'] = kwargs.get('with_cp', False)
        layers = [
            layer_type[self.attention](
                channels=self._stage_channels(kwargs),
                norm_cfg=kwargs['norm_cfg'],
                drop_path_rate=rate,
                **options) for rate in rates
        ]
        if self.attention == 'light':
            return LightAttentionStage(blocks, layers)
        # The host appends a stage's name to res_layers after it is built.
        return AttentionStage(f'layer{len(self.res_layers) + 1}', blocks,
                              layers)

    def _stages(self) -> List[AttentionStage]:
        if self.attention != 'base':
            return []
        return [getattr(self, name) for name in self.res_layers]

    # --- skipping ------------------------------------------------------------

    @property
    def attention_layers(self) -> List[AttentionLayerInfo]:
        """The prunable layers in order; none unless ``attention='base'``."""
        return [
            AttentionLayerInfo(f'{stage.name}.{i}', number, i, active)
            for number, stage in enumerate(self._stages(), start=1)
            for i, active in enumerate(stage.active)
        ]

    def skip_layers(self, names: Iterable[str], skip: str = 'layer') -> None:
        """Skip attention layers from the next forward pass on.

        Their parameters stay in the state dict and stop requiring gradients.
        ``load_state_dict`` of an unpruned checkpoint makes them active again.

        Args:
            names (Iterable[str]): Names as in :attr:`attention_layers`;
                layers that are skipped already stay as they are.
            skip (str): ``'layer'``: query, key, value, norm and sum all
                vanish. ``'retrieval'``: only the layer's own retrieval does,
                its key and value stay visible to later layers. Defaults to
                ``'layer'``.

        Raises:
            UsageError: On an unknown name or mode.
        """
        if skip not in SKIP_MODES:
            raise UsageError(f'skip={skip!r}: expected one of {SKIP_MODES}')
        names = list(names)
        order = [layer.name for layer in self.attention_layers]
        unknown = [name for name in names if name not in order]
        if unknown:
            known = f'{order[0]} to {order[-1]}' if order else 'none'
            raise UsageError(
                f'no attention layer {unknown[0]!r}; this '
                f'{type(self).__name__} has {known} (see attention_layers)')
        for name in names:
            position = order.index(name)
            if self.active[position]:
                # In place: averaged models hold references to the buffers.
                self.active[position] = False
                self.visible[position] = skip == 'retrieval'
        self._apply_masks()

    def _apply_masks(self) -> None:
        """Bring flags and requires_grad in line with the buffers."""
        active = self.active.tolist()
        visible = self.visible.tolist()
        start = 0
        for number, stage in enumerate(self._stages(), start=1):
            frozen = number <= self.frozen_stages
            seen_later = False  # by an active layer of this stage
            for i in reversed(range(len(stage))):
                was = stage.active[i], stage.visible[i]
                stage.active[i] = active[start + i]
                seen_later |= stage.active[i]
                # A key that no active layer reads is work for nothing.
                stage.visible[i] = seen_later and (active[start + i]
                                                   or visible[start + i])
                if was == (stage.active[i], stage.visible[i]):
                    continue
                parts, layer = stage.parts(i)
                for name, used in parts.items():
                    _require_grad(getattr(layer, name), used and not frozen)
            start += len(stage)

    def unused_state(self) -> Dict[str, List[str]]:
        """What skipped layers keep in the state dict and nobody reads.

        Returns:
            Dict[str, List[str]]: Name of each skipped layer to names in
            ``state_dict()``, of its query, norm and scale, and of its key
            and value unless later layers see them.
        """
        unused = {}
        for stage in self._stages():
            for i, active in enumerate(stage.active):
                if not active:
                    parts, layer = stage.parts(i)
                    unused[f'{stage.name}.{i}'] = [
                        f'{stage.name}.attention.{i}.{name}'
                        for name in layer.state_dict()
                        if not parts[name.split('.')[0]]
                    ]
        return unused

    def _load_from_state_dict(self, state_dict, prefix, *args,
                              **kwargs) -> None:
        """Load, with the mask of the checkpoint or none at all."""
        if self.attention != 'base' or not any(
                key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            return
        for name in ('active', 'visible'):
            mask = getattr(self, name)
            loaded = state_dict.setdefault(prefix + name,
                                           torch.ones_like(mask))
            if loaded.shape != mask.shape:
                raise UsageError(
                    f'the checkpoint has a mask of {loaded.numel()} attention '
                    f'layers ({prefix + name}), this {type(self).__name__} '
                    f'has {mask.numel()}: build the backbone with the depth '
                    'that the checkpoint was trained with')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._apply_masks()
        self._fresh_norms = None  # other weights, another decision
        # A deploy checkpoint leaves out what a skipped layer does not use;
        # its own values stand in. One that has a part of it is damaged.
        own = None
        for names in self.unused_state().values():
            if not any(prefix + name in state_dict for name in names):
                own = own or self.state_dict(keep_vars=True)
                state_dict.update((prefix + name, own[name])
                                  for name in names)

    # --- measuring -----------------------------------------------------------

    def observe(self, observer: Optional[Observer]) -> None:
        """Let a function see neighbouring layers' weights at every forward.

        Args:
            observer (Callable | None): Called as ``observer(name, prev,
                curr)`` with the later layer's name, the weights (B, h, n) of
                its active predecessor and its own (B, h, m). None stops it.
        """
        for stage in self._stages():
            stage.observer = observer

    # --- norms ---------------------------------------------------------------

    @property
    def fresh_norms(self) -> Optional[frozenset]:
        """Layers whose norm ``norm_eval=True`` leaves in training mode.

        ``norm_eval`` freezes the statistics of pretrained norms. Those of
        attention that starts fresh have seen no data; frozen, they would stay
        at mean 0 and variance 1 for good. It is decided once, when training
        starts, by whether a norm has ever seen a batch; those of frozen
        stages stay frozen. None: not decided yet.
        """
        return self._fresh_norms

    @fresh_norms.setter
    def fresh_norms(self, names: Optional[Iterable[str]]) -> None:
        self._fresh_norms = None if names is None else frozenset(names)

    @property
    def inert_layers(self) -> List[str]:
        """Active layers that add exactly 0 and cannot learn otherwise.

        Such are fresh, zero-initialised layers in frozen stages.
        """
        return [
            layer.name for layer, module in self._named_attention()
            if layer.active and module.scale is not None
            and layer.stage <= self.frozen_stages
            and not module.scale.weight.any()
        ]

    def _named_attention(self):
        modules = [m for stage in self._stages() for m in stage.attention]
        return list(zip(self.attention_layers, modules))

    def train(self, mode: bool = True):
        """Set the mode as the host does; keep fresh norms in training.

        Args:
            mode (bool): Training or evaluation. Defaults to True.

        Returns:
            LayerAttentionMixin: self, where the hosts return None.
        """
        super().train(mode)
        if not (mode and self.norm_eval):
            return self
        layers = self._named_attention()
        if self._fresh_norms is None:
            self._fresh_norms = frozenset(
                layer.name for layer, module in layers
                if layer.active and layer.stage > self.frozen_stages
                and getattr(module.norm, 'num_batches_tracked', None) == 0)
            if self._fresh_norms:
                print_log(
                    f'norm_eval=True: the norms of {len(self._fresh_norms)} '
                    'attention layers have seen no data yet and stay in '
                    'training mode', 'current')
        for layer, module in layers:
            if layer.name in self._fresh_norms:
                module.norm.train()
        return self


def _require_grad(module: nn.Module, required: bool) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(required)
        if not required:
            parameter.grad = None


__all__ = ['AttentionLayerInfo', 'AttentionStage', 'LayerAttentionMixin']


def ela_backbones(model: nn.Module) -> Dict[str, LayerAttentionMixin]:
    """The model's backbones with layer attention, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LayerAttentionMixin)
    }


def find_backbone(model: nn.Module) -> LayerAttentionMixin:
    """The one backbone with prunable layer attention in a model.

    Args:
        model (nn.Module): A model, wrapped or not.

    Returns:
        LayerAttentionMixin: The backbone.

    Raises:
        UsageError: If the model has none, or more than one.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LayerAttentionMixin) and module.attention_layers
    }
    if not found:
        raise UsageError(
            f'{type(model).__name__} has no layer attention to prune: expected '
            "a backbone such as dict(type='ELAResNet', attention='base')")
    if len(found) > 1:
        raise UsageError(
            f'{type(model).__name__} has {len(found)} backbones with layer '
            f'attention ({", ".join(found)}): ELAPruneHook prunes exactly one')
    return next(iter(found.values()))


def with_all_layers(model: nn.Module) -> nn.Module:
    """A copy of a model in which no attention layer is skipped.

    Args:
        model (nn.Module): With one ELA backbone; not changed.

    Returns:
        nn.Module: Skipped layers have the weights that they were left with.
    """
    model = deepcopy(model)
    backbone = find_backbone(model)
    state = backbone.state_dict()
    for mask in ('active', 'visible'):
        state[mask] = torch.ones_like(state[mask])
    backbone.load_state_dict(state)
    return model
