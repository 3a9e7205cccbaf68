"""Adds layer attention to any backbone with stages of blocks.

A stage runs ``x = block(x)``, then ``x = x + attention(x, memory)``. The host's
blocks keep their structure and names, so any of its checkpoints loads, and only
the keys of attention are missing. The mixin also holds the mask of active
layers in buffers, so that every checkpoint contains it.
"""
from copy import deepcopy
from typing import Any, Dict, Iterable, List, Optional, Sequence, Type

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ...errors import UsageError
from ..layers import LayerAttention
from .loaded_state import complete_masks, warn_of_other_attention
from .stages import (
    ATTENTION,
    AttentionLayerInfo,
    Observer,
    Stage,
    attention_kind,
)

SKIP_MODES = ('layer', 'retrieval')


class LayerAttentionMixin:
    """Adds layer attention to a backbone class of a host.

    Put it before the host's class: ``class ELAResNet(LayerAttentionMixin,
    ResNet)``. All arguments of the host stay valid. Each family of backbones
    overrides :attr:`attention_stages` and replaces the host's stages by stages
    of ``attention_kind``, while the host builds them or afterwards in
    :meth:`add_attention`.

    Args:
        attention (str | None): Kind of attention: ``'base'`` for MRLA-base,
            which ELA prunes, ``'light'`` for MRLA-light, None for the plain
            host network, or another name of
            :data:`~ela_mm.models.backbones.stages.kinds.ATTENTION`. Defaults
            to ``'base'``.
        head_dim (int, optional): d, number of channels per head. Defaults to
            None: the largest of 16, 8 and 4 that divides the channels of every
            stage; for ``'light'`` of 32, 16, 8 and 4. The paper uses 16 and
            32; any other choice is logged.
        act (bool): Whether a relu ends the term of ``'base'``. Defaults to
            True.
        zero_init_attention (bool): Whether to multiply the term by a learnable
            scale per channel that starts at 0, so that the network starts
            exactly as the plain one. Meant for training from plain weights.
            Defaults to False.
        fused (bool): Whether to run MRLA-base on a GPU in kernels that Triton
            compiles in the first steps, see
            :mod:`ela_mm.models.layers.bank.gpu`. Defaults to False.

    Attributes:
        kinds (Dict[str, Type[Stage]]): Stage class for each value of
            ``attention`` that the family offers.
        fresh_attention (bool): Whether no attention weights were loaded since
            the network was built.

    Raises:
        UsageError: On an ``attention`` that the family does not offer, a
            ``head_dim`` that does not divide the channels of a stage, or an
            option that the chosen attention does not have.
    """
    kinds: Dict[str, Type[Stage]] = ATTENTION
    fresh_attention = True

    def __init__(self,
                 *args,
                 attention: Optional[str] = 'base',
                 head_dim: Optional[int] = None,
                 act: bool = True,
                 zero_init_attention: bool = False,
                 fused: bool = False,
                 **kwargs) -> None:
        if 'attention_groups' in kwargs:
            raise UsageError(
                f'attention_groups={kwargs["attention_groups"]!r}: '
                f'{type(self).__name__} has stages, and attention starts anew '
                'at each; it is an option of plain vision transformers')
        # Plain values, set before super().__init__(), which builds the stages.
        self.attention = attention
        self.attention_options: Dict[str, Any] = {}
        for name, value, default in (('head_dim', head_dim, None),
                                     ('act', act, True),
                                     ('zero_init_attention',
                                      zero_init_attention, False)):
            if value != default:
                self.attention_options[name] = value
        self.attention_kind = attention_kind(
            attention, self.attention_options, self.kinds)
        super().__init__(*args, **kwargs)
        if self.attention_kind is not None:
            self.add_attention()
        if fused:
            self._fuse()
        if self.attention_kind is not None and self.attention_kind.prunable:
            total = sum(len(stage) for stage in self.attention_stages)
            for name in ('active', 'visible'):
                self.register_buffer(name, torch.ones(total, dtype=torch.bool))

    @property
    def attention_stages(self) -> List[Stage]:
        """Stages with attention, in order; empty if ``attention=None``."""
        raise NotImplementedError(
            f'{type(self).__name__} must say where its stages are')

    def add_attention(self) -> None:
        """Replace the stages of the host, which is built by now.

        Families that take part in building the stages need not override this.
        """

    def _fuse(self) -> None:
        layers = [layer for stage in self.attention_stages
                  for layer in stage.attention
                  if isinstance(layer, LayerAttention)]
        if not layers:
            raise UsageError(f'fused=True: attention={self.attention!r} has '
                             "nothing to fuse; it is an option of 'base'")
        for layer in layers:
            layer.fused = True

    def fit_head_dim(self, channels: Sequence[int]) -> None:
        """Choose ``head_dim``, unless the user did.

        Args:
            channels (Sequence[int]): Number of channels C of every stage.
        """
        choices = self.attention_kind.head_dims
        if not choices or 'head_dim' in self.attention_options:
            return
        fitting = next((d for d in choices if all(
            c % d == 0 for c in channels)), choices[0])
        if fitting != choices[0]:
            print_log(
                f'head_dim={fitting}: the largest of '
                f'{", ".join(map(str, choices))} that divides the channels of '
                f'every stage ({", ".join(map(str, channels))})', 'current')
        self.attention_options['head_dim'] = fitting

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether the host's ``frozen_stages`` freezes a layer."""
        return False

    @property
    def inert_layers(self) -> List[str]:
        """Names of active layers that add exactly 0 and cannot learn.

        These are fresh, zero-initialised layers in frozen stages.
        """
        return [
            layer.name for layer in self.attention_layers
            if layer.active and layer.module.scale is not None
            and self.is_frozen(layer) and not layer.module.scale.weight.any()
        ]

    def forward(self, x: Tensor) -> Any:
        """Run the host's network.

        Args:
            x (Tensor): (B, 3, H, W), normalised images.

        Returns:
            Any: Output of the host's class.
        """
        return self._run_host(x)  # no *args here: torch.fx cannot trace them

    def _run_host(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the host's network with all of its arguments, such as a mask."""
        if self.attention_kind is None:
            return super().forward(x, *args, **kwargs)
        with self.attention_kind.one_pass():
            return super().forward(x, *args, **kwargs)

    # --- skipping ------------------------------------------------------------

    @property
    def _prunable_stages(self) -> List[Stage]:
        stages = [stage for stage in self.attention_stages if stage.prunable]
        total = sum(map(len, stages))
        if total > len(getattr(self, 'active', range(total))):
            raise UsageError(
                f'{type(self).__name__} has {total} attention layers and a '
                f'mask for {len(self.active)}: expected further stages to be '
                'added in add_attention(), not after super().__init__()')
        return stages

    @property
    def attention_layers(self) -> List[AttentionLayerInfo]:
        """Prunable layers, in order; empty unless ``attention='base'``."""
        return [
            AttentionLayerInfo(f'{stage.name}.{i}', number, i, active,
                               sum(stage.visible[:i + 1]), stage.name,
                               stage.attention[i])
            for number, stage in enumerate(self._prunable_stages, start=1)
            for i, active in enumerate(stage.active)
        ]

    def skip_layers(self, names: Iterable[str], skip: str = 'layer') -> None:
        """Skip attention layers from the next forward pass on.

        Their parameters stay in the state dict but no longer require
        gradients. :meth:`restore_layers` undoes it, and so does loading an
        unpruned checkpoint by ``load_state_dict``.

        Args:
            names (Iterable[str]): Names of layers, as in
                :attr:`attention_layers`. Layers that are skipped already do
                not change.
            skip (str): ``'layer'`` removes the whole layer: query, key, value,
                norm and sum. ``'retrieval'`` removes its own retrieval, but
                its key and value stay visible to later layers. Defaults to
                ``'layer'``.

        Raises:
            UsageError: On an unknown name or mode.
        """
        if skip not in SKIP_MODES:
            raise UsageError(f'skip={skip!r}: expected one of {SKIP_MODES}')
        for position in self._positions(names):
            if self.active[position]:
                # In place: averaged models hold references to the buffers.
                self.active[position] = False
                self.visible[position] = skip == 'retrieval'
        self._apply_masks()

    def restore_layers(self, names: Optional[Iterable[str]] = None) -> None:
        """Make skipped layers active again, with their present weights.

        Args:
            names (Iterable[str], optional): Names of layers, as in
                :attr:`attention_layers`. Defaults to None: all.

        Raises:
            UsageError: On an unknown name.
        """
        if names is None:
            names = [layer.name for layer in self.attention_layers]
        for position in self._positions(names):
            self.active[position] = self.visible[position] = True
        self._apply_masks()

    def _positions(self, names: Iterable[str]) -> List[int]:
        names = list(names)
        order = [layer.name for layer in self.attention_layers]
        unknown = [name for name in names if name not in order]
        if unknown:
            known = f'{order[0]} to {order[-1]}' if order else 'none'
            raise UsageError(
                f'no attention layer {unknown[0]!r}; this '
                f'{type(self).__name__} has {known} (see attention_layers)')
        return [order.index(name) for name in names]

    def _apply_masks(self) -> None:
        """Set the stages' flags and requires_grad according to the buffers."""
        active, visible = self.active.tolist(), self.visible.tolist()
        start = 0
        for stage in self._prunable_stages:
            own = slice(start, start + len(stage))
            stage.active[:] = active[own]
            seen_later = False  # by an active layer of this stage
            for i in reversed(range(len(stage))):
                seen_later |= stage.active[i]
                # No need to compute a key that no active layer reads.
                stage.visible[i] = seen_later and (stage.active[i]
                                                   or visible[start + i])
            stage.withhold_gradients()
            start += len(stage)

    def unused_state(self) -> Dict[str, List[str]]:
        """Name the entries of the state dict that skipped layers do not use.

        Returns:
            Dict[str, List[str]]: For each skipped layer the names in
            ``state_dict()`` of its query, norm and scale, and of its key and
            value unless they are visible to later layers.
        """
        unused = {}
        for stage in self._prunable_stages:
            for i, active in enumerate(stage.active):
                if not active:
                    parts, layer = stage.parts(i)
                    unused[f'{stage.name}.{i}'] = [
                        f'{stage.name}.attention.{i}.{name}'
                        for name in layer.state_dict()
                        if not parts[name.split('.')[0]]
                    ]
        return unused

    def train(self, mode: bool = True):
        """Set the mode as the host does, and keep skipped layers skipped.

        Args:
            mode (bool): True for training, False for evaluation. Defaults to
                True.

        Returns:
            LayerAttentionMixin: self, also where the host returns None.
        """
        super().train(mode)
        if mode:
            for stage in self._prunable_stages:
                stage.withhold_gradients()
        elif self._prunable_stages and type(self.active) is Tensor and (
                not self.active.is_meta):
            # Whatever averages models may have written into their buffers.
            self._apply_masks()
        return self

    # --- loading -------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, *args,
                              **kwargs) -> None:
        """Load weights, and the mask if the checkpoint has layer attention."""
        warn_of_other_attention(self, state_dict, prefix)
        if any(f'{prefix}{layer.prefix}.query.weight' in state_dict
               for layer in self.attention_layers):
            self.fresh_attention = False
        concerned = self._prunable_stages and any(
            key.startswith(prefix) for key in state_dict)
        if concerned:
            complete_masks(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if not concerned:
            return
        self._apply_masks()
        # A deploy checkpoint lacks what skipped layers do not use: fill in our
        # own values. If it has only some of a layer's entries, it is damaged,
        # and torch will name the missing ones.
        own = None
        for names in self.unused_state().values():
            if not any(prefix + name in state_dict for name in names):
                own = own or self.state_dict(keep_vars=True)
                state_dict.update((prefix + name, own[name])
                                  for name in names)

    # --- measuring -----------------------------------------------------------

    def observe(self, observer: Optional[Observer]) -> None:
        """Pass the weights of neighbouring layers to a function.

        Args:
            observer (Callable | None): Function to call in every forward pass
                as ``observer(name, prev, curr)``, with the name of a layer,
                the weights (B, h, n) of its active predecessor and its own
                weights (B, h, m). None stops observing.
        """
        for stage in self._prunable_stages:
            stage.observer = observer


def ela_backbones(model: nn.Module) -> Dict[str, LayerAttentionMixin]:
    """Find the backbones with layer attention in a model, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LayerAttentionMixin)
    }


def find_backbone(model: nn.Module) -> LayerAttentionMixin:
    """Find the one backbone with prunable layer attention in a model.

    Args:
        model (nn.Module): Model, in a wrapper or not.

    Returns:
        LayerAttentionMixin: The backbone.

    Raises:
        UsageError: If the model has none, or more than one.
    """
    found = {
        name: module
        for name, module in ela_backbones(model).items()
        if module.attention_layers
    }
    if not found:
        others = [
            f'attention={module.attention!r} is not pruned, '
            for module in ela_backbones(model).values()
            if module.attention is not None
        ]
        raise UsageError(
            f'{type(model).__name__} has no layer attention to prune: '
            f'{"".join(others)}expected a backbone such as '
            "dict(type='ELAResNet', attention='base')")
    if len(found) > 1:
        raise UsageError(
            f'{type(model).__name__} has {len(found)} backbones with layer '
            f'attention ({", ".join(found)}): ELAPruneHook prunes exactly one; '
            'set attention=None in the others, or train without the hook')
    return next(iter(found.values()))


def with_all_layers(model: nn.Module) -> nn.Module:
    """Copy a model and make all attention layers of the copy active.

    Args:
        model (nn.Module): Model with one ELA backbone; not changed.

    Returns:
        nn.Module: The copy. Layers that were skipped have the weights that they
        had when they were skipped.
    """
    model = deepcopy(model)
    find_backbone(model).restore_layers()
    return model
