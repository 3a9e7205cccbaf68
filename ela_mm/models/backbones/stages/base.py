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

# A function that is called with the name of a layer, the weights (B, h, n) of
# its active predecessor and its own weights (B, h, m).
Observer = Callable[[str, Tensor, Tensor], None]


@register_attention('base')
class AttentionStage(Stage):
    """A stage with MRLA-base, whose layers can be skipped.

    Args:
        name (str): Name of the stage in the backbone.
        blocks (nn.Sequential): Blocks of the host.
        layers (List[LayerAttention]): Attention layers, one for each block.

    Attributes:
        active (List[bool]): Whether each layer retrieves.
        visible (List[bool]): Whether later layers see the key and value of
            each layer; always True for an active layer.
        observer (Callable | None): Function that is given the weights of
            neighbouring layers, see ``Observer``.
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
        # For each layer, names of the parameters that skipping has frozen.
        self._withheld: List[Set[str]] = [set() for _ in layers]

    @classmethod
    def build(cls,
              blocks: nn.Sequential,
              spec: StageSpec,
              head_dim: int = 16,
              act: bool = True,
              zero_init_attention: bool = False) -> 'AttentionStage':
        """Add MRLA-base to a host's blocks; options as in the backbone."""
        return cls(spec.name, blocks, [
            LayerAttention(spec.channels, head_dim, act, spec.norm_cfg, rate,
                           zero_init_attention, spec.with_cp)
            for rate in spec.drop_path_rates
        ])

    def __getstate__(self) -> dict:
        """Leave out the observer: it belongs to this object, not to copies."""
        return {**self.__dict__, 'observer': None}

    def parts(self, i: int) -> Tuple[Dict[str, bool], nn.Module]:
        """Tell which parts of a layer run.

        Args:
            i (int): Index of the layer.

        Returns:
            tuple: A dict that says for the name of each part (child) whether a
            forward pass uses it, and the layer.
        """
        layer = self.attention[i]
        used = {name: self.active[i] for name, _ in layer.named_children()}
        used.update(dict.fromkeys(layer.remembering, self.visible[i]))
        return used, layer

    def withhold_gradients(self) -> None:
        """Freeze the parameters that no forward pass uses.

        A skipped layer stays frozen, whatever others have set since. Parameters
        that are used again are unfrozen only if this method has frozen them.
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
        """Choose the memory of a forward pass: buffers or plain lists."""
        seen = [
            layer for layer, visible in zip(self.attention, self.visible)
            if visible
        ]
        if not is_compiling():
            self._warn_of_idle_hooks()
        return LayerMemory(len(seen) if can_bank(seen, x) else None)

    def _warn_of_idle_hooks(self) -> None:
        """Warn of hooks on skipped layers, which are never called."""
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
        """Run a block and its attention, as far as it is not skipped."""
        return self.attend(i, self.block(i)(x), memory)

    def attend(self, i: int, x: Tensor,
               memory: LayerMemory) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a layer on the output of its block, as far as not skipped.

        Args:
            i (int): Index of the layer.
            x (Tensor): (B, C, H, W), output of the block.
            memory (LayerMemory): Memory from :meth:`new_memory`.

        Returns:
            tuple: (B, C, H, W), the sum of x and the layer's term; and
            (B, h, n), the weights over layers, None if the layer is skipped.
        """
        return _attend(self, i, x, memory)

    def alone(self, x: Tensor,
              *args: Any) -> Tuple['AttentionStage', Tensor]:
        """Make a stage of the same layers without blocks, to time attention.

        Args:
            x (Tensor): Output of this stage, of which only the shape matters.
            *args: What the host passes to each block besides x.

        Returns:
            tuple: The stage, with identities as blocks, and a random input for
            it of the shape of x. Values are in [0, 1), since numbers near the
            smallest ones (denormals) slow processors down.
        """
        blocks = nn.Sequential(*(nn.Identity() for _ in self.attention))
        stage = AttentionStage(self.name, blocks, list(self.attention))
        return stage.train(self.training), torch.rand_like(x)

    def through(self, tap: Callable[[Tensor], Tensor], x: Any,
                *args: Any) -> Any:
        """Apply a function of maps to what a step returns.

        Args:
            tap (Callable): Function from a map (B, C, H, W) to such a map.
            x (Any): Output of a step, in the form that the family's blocks
                pass on.
            *args: What the host passes to each block besides x.

        Returns:
            Any: The result, in the form of x.
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
        # A torch.fx graph is traced without an observer, but may run with one.
        if self.observer is not None or isinstance(seen[-1], fx.Proxy):
            # Returns x, as torchvision's feature extractor drops nodes that
            # the output does not depend on.
            x = _show(self, seen, x)
        return x


# Each of the following functions is a single node in a graph of torch.fx, such
# as mmengine's efficient_conv_bn_eval makes, so that the graph follows later
# changes of the mask.


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
        # A subclass's forward or a hook has to be called.
        return x + layer(x, memory), memory.weights
    if stage.visible[i]:
        layer.remember(x, memory)
    return x, None


# Observers keep counts in Python: compiled, each step would be a new graph.
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
