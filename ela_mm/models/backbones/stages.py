"""A stage: a host's blocks, each followed by its attention.

``x = block(x)``, then ``x = x + attention(x)``. What stands for attention is a
kind, chosen by name (:data:`ATTENTION`); each kind is one class of stage.
"""
import warnings
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Type,
)

import torch
from mmengine.model import BaseModule
from torch import Tensor, fx, nn

from ...compat.compiling import disable, is_compiling
from ...errors import UsageError
from ..layers import LayerAttention, LayerMemory, LightLayerAttention
from ..layers.bank import can_bank
from ..layers.watched import has_hooks, is_watched

# Called with a layer's name, the weights (B, h, n) of its active predecessor
# and its own weights (B, h, m).
Observer = Callable[[str, Tensor, Tensor], None]


@dataclass(frozen=True)
class AttentionLayerInfo:
    """One attention layer of a backbone.

    Attributes:
        name (str): ``layer<stage>.<index>``, as its block is named in the
            state dict.
        stage (int): Stage, from 1.
        index (int): Block within the stage, from 0.
        active (bool): False where the layer is skipped.
        sees (int): n, layers in memory when this one attends, itself
            included.
        stage_name (str): The stage's name in the backbone.
        module (nn.Module | None): The layer itself.
    """
    name: str
    stage: int
    index: int
    active: bool
    sees: int = field(default=0, compare=False)
    stage_name: str = ''
    module: Optional[nn.Module] = field(
        default=None, compare=False, repr=False)

    @property
    def short(self) -> str:
        """``<stage>.<index>``, for pictures and tables."""
        return short_name(self.stage, self.index)

    @property
    def prefix(self) -> str:
        """What its names in the backbone's state dict begin with."""
        return f'{self.stage_name}.attention.{self.index}'


def short_name(stage: int, index: int) -> str:
    """Name a layer in few letters: ``3.4``."""
    return f'{stage}.{index}'


class StageSpec(NamedTuple):
    """What a stage's attention has to know of its host.

    Attributes:
        name (str): The stage's name in the backbone, such as ``layer1``.
        channels (int): C, of the blocks' output.
        norm_cfg (dict): The host's, for attention's norms.
        drop_path_rates (Sequence[float]): One per block.
        with_cp (bool): Whether the host checkpoints activations.
        last_norm_reader (str, optional): Name of the child that reads the last
            norm of a block; None where a block runs plugins itself.
        last (bool): Whether no stage follows.
    """
    name: str
    channels: int
    norm_cfg: dict
    drop_path_rates: Sequence[float]
    with_cp: bool = False
    last_norm_reader: Optional[str] = None
    last: bool = False


class Stage(BaseModule):
    """A host's blocks, each followed by its attention.

    Indexes, iterates and counts like the host's sequence of blocks. A kind of
    attention is a subclass with :meth:`build` and :meth:`step`.

    Args:
        name (str): The stage's name in the backbone, ``layer1`` and so on.
        blocks (nn.Sequential): The host's blocks; they keep their names.
        layers (List[nn.Module]): Attention, one per block.

    Attributes:
        options (Tuple[str, ...]): Options of the backbone that :meth:`build`
            takes as keywords.
        head_dims (Tuple[int, ...]): Channels per head that :meth:`build` may
            be given where the user names none, the paper's first.
        prunable (bool): Whether a layer has weights over layers, and may be
            skipped by itself.
    """
    options: Tuple[str, ...] = ('head_dim', )
    head_dims: Tuple[int, ...] = ()
    prunable = False

    def __init__(self, name: str, blocks: nn.Sequential,
                 layers: List[nn.Module]) -> None:
        super().__init__()
        for key, block in blocks.named_children():
            self.add_module(key, block)
        self.name = name
        self.attention = nn.ModuleList(layers)

    @classmethod
    def build(cls, blocks: nn.Sequential, spec: StageSpec,
              **options: Any) -> 'Stage':
        """Add attention to a host's blocks.

        Args:
            blocks (nn.Sequential): As the host has built them.
            spec (StageSpec): Of the stage.
            **options: Of ``options``, those that the user gave.

        Returns:
            Stage: Of this kind.
        """
        raise NotImplementedError(f'{cls.__name__}.build')

    @classmethod
    def one_pass(cls) -> ContextManager[None]:
        """Hold what one forward pass of a backbone hands from stage to stage."""
        return nullcontext()

    def new_memory(self, x: Tensor) -> Any:
        """Make what one forward pass hands from layer to layer."""
        return None

    def step(self, i: int, x: Tensor,
             memory: Any) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block and its attention.

        Args:
            i (int): Of the block.
            x (Tensor): (B, C', H', W'), what leaves the step before.
            memory (Any): From :meth:`new_memory`.

        Returns:
            tuple: What leaves the step (B, C, H, W), and the layer's weights
            (B, h, n) over layers; None where it has none.
        """
        raise NotImplementedError(f'{type(self).__name__}.step')

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks and their attention.

        Args:
            x (Tensor): (B, C_in, H_in, W_in).

        Returns:
            Tensor: (B, C, H, W).
        """
        memory = self.new_memory(x)
        for i in range(len(self)):
            x, _ = self.step(i, x, memory)  # (B, C, H, W)
        return x

    def block(self, i: int) -> nn.Module:
        """The host's block number i."""
        return self._modules[str(i)]

    def block_name(self, i: int) -> str:
        """What block number i is called in the backbone."""
        return f'{self.name}.{i}'

    def norms(self, i: int) -> List[nn.Module]:
        """The norms that attention brought along with block i."""
        return [self.attention[i].norm]

    def __len__(self) -> int:
        return len(self.attention)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self[:])

    def __getitem__(self, index):
        return [self.block(i) for i in range(len(self))][index]


#: The kinds of attention, by the name that a config gives.
ATTENTION: Dict[str, Type[Stage]] = {}


def register_attention(name: str) -> Callable[[Type[Stage]], Type[Stage]]:
    """Offer a class of stage as ``attention=name``.

    Args:
        name (str): New among :data:`ATTENTION`.

    Returns:
        Callable: A decorator of the class.
    """

    def register(kind: Type[Stage]) -> Type[Stage]:
        ATTENTION[name] = kind
        return kind

    return register


def attention_kind(
        name: Optional[str],
        options: Dict[str, Any],
        kinds: Dict[str, Type[Stage]] = ATTENTION) -> Optional[Type[Stage]]:
    """Find the class of stage that a backbone is to have.

    Args:
        name (str, optional): None for the host's plain stages.
        options (Dict[str, Any]): What the user gave beside it.
        kinds (Dict[str, Type[Stage]]): Those that the backbone's family
            offers. Defaults to :data:`ATTENTION`.

    Returns:
        Type[Stage] | None: None for the host's plain stages.

    Raises:
        UsageError: On a name that the family does not offer, or an option
            that the kind lacks.
    """
    if name is not None and name not in kinds:
        raise UsageError(f'attention={name!r}: expected one of '
                         f'{(*kinds, None)}')
    kind = None if name is None else kinds[name]
    for option, value in options.items():
        if kind is None or option not in kind.options:
            having = [repr(n) for n, k in kinds.items()
                      if option in k.options]
            raise UsageError(
                f'attention={name!r} knows no {option} (given: {value!r}): it '
                f'is an option of {", ".join(having) or "other backbones"}')
    return kind


@register_attention('base')
class AttentionStage(Stage):
    """A stage with MRLA-base, which can skip layers.

    Args:
        name (str): The stage's name in the backbone.
        blocks (nn.Sequential): The host's blocks.
        layers (List[LayerAttention]): One per block.

    Attributes:
        active (List[bool]): Per layer, whether it retrieves.
        visible (List[bool]): Per layer, whether later layers see its key and
            value. Always true of an active layer.
        observer (Callable | None): Sees neighbouring layers' weights.
    """
    options = ('head_dim', 'act', 'zero_init_attention')
    head_dims = (16, 8, 4)
    prunable = True

    def __init__(self, name: str, blocks: nn.Sequential,
                 layers: List[LayerAttention]) -> None:
        super().__init__(name, blocks, layers)
        self.active = [True] * len(layers)
        self.visible = [True] * len(layers)
        self.observer: Optional[Observer] = None
        # Per layer, the parameters whose gradient skipping has taken away.
        self._withheld: List[Set[str]] = [set() for _ in layers]

    @classmethod
    def build(cls,
              blocks: nn.Sequential,
              spec: StageSpec,
              head_dim: int = 16,
              act: bool = True,
              zero_init_attention: bool = False) -> 'AttentionStage':
        """Add MRLA-base to a host's blocks; arguments as the backbone's."""
        return cls(spec.name, blocks, [
            LayerAttention(spec.channels, head_dim, act, spec.norm_cfg, rate,
                           zero_init_attention, spec.with_cp)
            for rate in spec.drop_path_rates
        ])

    def __getstate__(self) -> dict:
        """What copies and files hold: not who observes this very model."""
        return {**self.__dict__, 'observer': None}

    def parts(self, i: int) -> Tuple[Dict[str, bool], nn.Module]:
        """Say which parts of a layer run.

        Args:
            i (int): Of a layer.

        Returns:
            tuple: Name of each part to whether a forward pass uses it, and
            the layer.
        """
        layer = self.attention[i]
        used = {name: self.active[i] for name, _ in layer.named_children()}
        used.update(dict.fromkeys(layer.remembering, self.visible[i]))
        return used, layer

    def withhold_gradients(self) -> None:
        """Let parameters that nobody uses require no gradient.

        Whatever others have set since: a skipped layer stays out. What is
        used again gets back what was taken from it, and no more.
        """
        for i, withheld in enumerate(self._withheld):
            parts, layer = self.parts(i)
            for name, parameter in layer.named_parameters():
                if parts[name.split('.')[0]]:
                    if name in withheld:
                        withheld.discard(name)
                        parameter.requires_grad_(True)
                elif parameter.requires_grad:
                    withheld.add(name)
                    parameter.requires_grad_(False)
                    parameter.grad = None

    def new_memory(self, x: Tensor) -> LayerMemory:
        """Choose, once a pass, between buffers and plain lists."""
        seen = [
            layer for layer, visible in zip(self.attention, self.visible)
            if visible
        ]
        if not is_compiling():
            self._warn_of_idle_hooks()
        return LayerMemory(len(seen) if can_bank(seen, x) else None)

    def _warn_of_idle_hooks(self) -> None:
        """Say that who waits for a skipped layer waits in vain."""
        for i, active in enumerate(self.active):
            layer = self.attention[i]
            if active or not any(
                    map(has_hooks, (layer, *layer.children()))):
                continue
            parts, _ = self.parts(i)
            idle = [name for name, used in parts.items()
                    if not used and has_hooks(getattr(layer, name))]
            if idle or has_hooks(layer):
                name = '.'.join([self.name, 'attention', str(i), *idle[:1]])
                warnings.warn(
                    f'a hook waits for {name}, whose layer is skipped: it is '
                    'not called. Choose a module of a block instead, such as '
                    f'those of {self.block_name(i)}',
                    stacklevel=2)

    def step(self, i: int, x: Tensor,
             memory: LayerMemory) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block, and its attention as far as it is not skipped."""
        return self.attend(i, self.block(i)(x), memory)

    def attend(self, i: int, x: Tensor,
               memory: LayerMemory) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a layer on its block's output, as far as it is not skipped.

        Args:
            i (int): Of the layer.
            x (Tensor): (B, C, H, W), the block's output.
            memory (LayerMemory): From :meth:`new_memory`.

        Returns:
            tuple: x and the layer's term (B, C, H, W), and the weights
            (B, h, n) over layers; None of a skipped layer.
        """
        return _attend(self, i, x, memory)

    def alone(self, x: Tensor,
              *args: Any) -> Tuple['AttentionStage', Tensor]:
        """Make a stage of the same layers, whose blocks do nothing.

        Args:
            x (Tensor): What leaves this stage.
            *args: What the host hands to each block beside x.

        Returns:
            tuple: The stage, and an input for it of x's shape. Its values are
            moderate: weights near the smallest numbers slow processors down.
        """
        blocks = nn.Sequential(*(nn.Identity() for _ in self.attention))
        stage = AttentionStage(self.name, blocks, list(self.attention))
        return stage.train(self.training), torch.rand_like(x)

    def through(self, tap: Callable[[Tensor], Tensor], x: Any,
                *args: Any) -> Any:
        """Let what blocks pass on go through a function of maps.

        Args:
            tap (Callable): From (B, C, H, W) to the same.
            x (Any): What leaves a step.
            *args: What the host hands to each block beside x.

        Returns:
            Any: In the form that x has.
        """
        return tap(x)

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks and the active layers.

        Args:
            x (Tensor): (B, C_in, H_in, W_in).

        Returns:
            Tensor: (B, C, H, W).
        """
        memory = _remember_nothing(self, x)
        seen = []
        for i in range(len(self)):
            x, weights = self.step(i, x, memory)  # (B, C, H, W), (B, h, n)
            seen.append(weights)
        # A graph of torch.fx is made before a window, and runs in it.
        if self.observer is not None or isinstance(seen[-1], fx.Proxy):
            x = _show(self, seen, x)  # torchvision cuts graphs at last nodes
        return x


# What follows is one node each in a graph of torch.fx, such as mmengine's
# efficient_conv_bn_eval makes: the decisions of the day hold in it.


@fx.wrap
def _remember_nothing(stage: AttentionStage, x: Tensor) -> LayerMemory:
    return stage.new_memory(x)


@fx.wrap
def _attend(stage: AttentionStage, i: int, x: Tensor,
            memory: LayerMemory) -> Tuple[Tensor, Optional[Tensor]]:
    layer = stage.attention[i]
    if stage.active[i]:
        if type(layer) is LayerAttention and not is_watched(layer):
            return layer.add_to(x, memory)  # (B, C, H, W), (B, h, n)
        # Its forward, or a hook, waits for a call.
        return x + layer(x, memory), memory.weights
    if stage.visible[i]:
        layer.remember(x, memory)
    return x, None


# Observers count in Python. Compiled, that would be another graph every step.
@fx.wrap
@disable
def _show(stage: AttentionStage, seen: List[Optional[Tensor]],
          x: Tensor) -> Tensor:
    previous = None
    for i, weights in enumerate(seen):
        if weights is None:
            continue
        if stage.observer is not None and previous is not None:
            stage.observer(f'{stage.name}.{i}', previous, weights)
        previous = weights
    return x


# What downsamples have computed in the running step. Of this thread alone: the
# module that computes it may be shared with others.
_SHORTCUTS: ContextVar[Optional[list]] = ContextVar(
    'ela_mm_shortcuts', default=None)


def _note_shortcut(module: nn.Module, args: tuple, output: Tensor) -> None:
    noted = _SHORTCUTS.get()
    if noted is not None:
        noted.append(output)


@register_attention('light')
class LightAttentionStage(Stage):
    """A stage with MRLA-light.

    Args:
        name (str): The stage's name in the backbone.
        blocks (nn.Sequential): The host's blocks.
        layers (List[LightLayerAttention]): One per block.
    """
    options = ('head_dim', 'zero_init_attention')
    head_dims = (32, 16, 8, 4)

    def __init__(self, name: str, blocks: nn.Sequential,
                 layers: List[LightLayerAttention]) -> None:
        super().__init__(name, blocks, layers)
        for block in self:
            if block.downsample is not None:
                block.downsample.register_forward_hook(_note_shortcut)
                # Checkpointing would run the downsample without a graph, and
                # its output is needed outside of the block.
                block.with_cp = False

    @classmethod
    def build(cls,
              blocks: nn.Sequential,
              spec: StageSpec,
              head_dim: int = 32,
              zero_init_attention: bool = False) -> 'LightAttentionStage':
        """Add MRLA-light to a host's blocks; arguments as the backbone's."""
        return cls(spec.name, blocks, [
            LightLayerAttention(spec.channels, head_dim, spec.norm_cfg, rate,
                                zero_init_attention)
            for rate in spec.drop_path_rates
        ])

    def step(self, i: int, x: Tensor, memory: None) -> Tuple[Tensor, None]:
        """Run a block, and mix its value with its shortcut."""
        x, identity = self._block_and_shortcut(self.block(i), x)
        return _mix(self, i, x, identity), None  # (B, C, H, W)

    @staticmethod
    def _block_and_shortcut(block: nn.Module,
                            x: Tensor) -> Tuple[Tensor, Tensor]:
        """A block's output and its shortcut, which is computed only once."""
        if block.downsample is None:
            return block(x), x
        noted: List[Tensor] = []
        token = _SHORTCUTS.set(noted)
        try:
            out = block(x)
        finally:
            _SHORTCUTS.reset(token)
        if not noted:
            raise UsageError(
                'the downsample of a block was exchanged after attention had '
                'been added, which mixes in what it computes: exchange its '
                'parts instead')
        _check_gradient(block, x, out, noted[-1])
        return out, noted[-1]


@fx.wrap
def _check_gradient(block: nn.Module, x: Tensor, out: Tensor,
                    identity: Tensor) -> None:
    if out.requires_grad and not identity.requires_grad and (
            x.requires_grad or any(
                p.requires_grad for p in block.downsample.parameters())):
        raise UsageError(
            "activation checkpointing of a block hides its shortcut's gradient "
            'from the attention that mixes it in: checkpoint whole stages '
            "instead, such as 'backbone.layer1'")


@fx.wrap
def _mix(stage: LightAttentionStage, i: int, x: Tensor,
         identity: Tensor) -> Tensor:
    layer = stage.attention[i]
    if type(layer) is LightLayerAttention and not is_watched(layer):
        return layer.add_to(x, identity)  # (B, C, H, W)
    return x + layer(x, identity)
