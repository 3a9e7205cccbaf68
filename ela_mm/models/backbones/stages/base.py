"""A stage with MRLA-base, whose layers can be skipped and observed."""
import warnings
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

import torch
from torch import Tensor, fx, nn

from ....compat.compiling import disable, is_compiling
from ...layers import LayerAttention, LayerMemory
from ...layers.bank import can_bank
from ...layers.watched import has_hooks, is_watched
from .kinds import register_attention
from .stage import Stage, StageSpec

# Called with a layer's name, the weights (B, h, n) of its active predecessor
# and its own weights (B, h, m).
Observer = Callable[[str, Tensor, Tensor], None]


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
