"""A stage of a host with layer attention after each of its blocks."""
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from mmengine.model import BaseModule
from torch import Tensor, nn

from ...compat.compiling import disable
from ..layers import LayerAttention, LayerMemory, LightLayerAttention

# Called with a layer's name, the weights (B, h, n) of its active predecessor
# and its own weights (B, h, m).
Observer = Callable[[str, Tensor, Tensor], None]


class AttentionLayerInfo(NamedTuple):
    """One attention layer of a backbone.

    Attributes:
        name (str): ``layer<stage>.<index>``, as its block is named in the
            state dict.
        stage (int): Stage, from 1.
        index (int): Block within the stage, from 0.
        active (bool): False where the layer is skipped.
    """
    name: str
    stage: int
    index: int
    active: bool


class _Stage(BaseModule):
    """A host's stage and one attention layer per block.

    Indexes, iterates and counts like the host's sequence of blocks.

    Args:
        blocks (nn.Sequential): The host's blocks; they keep their names.
        layers (List[nn.Module]): One per block.
    """

    def __init__(self, blocks: nn.Sequential, layers: List[nn.Module]) -> None:
        super().__init__()
        for name, block in blocks.named_children():
            self.add_module(name, block)
        self.attention = nn.ModuleList(layers)

    def __len__(self) -> int:
        return len(self.attention)

    def __iter__(self) -> Iterator[nn.Module]:
        return (self._modules[str(i)] for i in range(len(self)))

    def __getitem__(self, index):
        return list(self)[index]


class AttentionStage(_Stage):
    """A stage with MRLA-base, which can skip layers.

    Args:
        name (str): The stage's name in the backbone, ``layer1`` and so on.
        blocks (nn.Sequential): The host's blocks.
        layers (List[LayerAttention]): One per block.

    Attributes:
        active (List[bool]): Per layer, whether it retrieves.
        visible (List[bool]): Per layer, whether later layers see its key and
            value. Always true of an active layer.
        observer (Callable | None): Sees neighbouring layers' weights.
    """

    def __init__(self, name: str, blocks: nn.Sequential,
                 layers: List[LayerAttention]) -> None:
        super().__init__(blocks, layers)
        self.name = name
        self.active = [True] * len(layers)
        self.visible = [True] * len(layers)
        self.observer: Optional[Observer] = None

    def __getstate__(self) -> dict:
        """What copies and files hold: not who observes this very model."""
        return {**self.__dict__, 'observer': None}

    def parts(self, i: int) -> Tuple[Dict[str, bool], nn.Module]:
        """Which parts of a layer run.

        Args:
            i (int): Of a layer.

        Returns:
            tuple: Name of each part to whether a forward pass uses it, and
            the layer.
        """
        layer = self.attention[i]
        used = dict.fromkeys(('query', 'norm', 'scale'), self.active[i])
        used.update(dict.fromkeys(('key', 'value'), self.visible[i]))
        if layer.scale is None:
            del used['scale']
        return used, layer

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks and the active layers.

        Args:
            x (Tensor): (B, C_in, H_in, W_in).

        Returns:
            Tensor: (B, C, H, W).
        """
        memory = LayerMemory(capacity=sum(self.visible))
        neighbours = []
        for i, block in enumerate(self):
            x = block(x)  # (B, C, H, W)
            if self.active[i]:
                previous = memory.weights  # (B, h, n)
                x = x + self.attention[i](x, memory)  # (B, C, H, W)
                if self.observer is not None and previous is not None:
                    neighbours.append(
                        (f'{self.name}.{i}', previous, memory.weights))
            elif self.visible[i]:
                self.attention[i].remember(x, memory, attends=False)
        if neighbours:
            _show(self.observer, neighbours)
        return x


# Observers count in Python. Compiled, that would be another graph every step.
@disable
def _show(observer: Observer, neighbours: List[tuple]) -> None:
    for name, previous, weights in neighbours:
        observer(name, previous, weights)


class LightAttentionStage(_Stage):
    """A stage with MRLA-light.

    Args:
        blocks (nn.Sequential): The host's blocks.
        layers (List[LightLayerAttention]): One per block.
    """

    def __init__(self, blocks: nn.Sequential,
                 layers: List[LightLayerAttention]) -> None:
        super().__init__(blocks, layers)
        for block in self:
            if block.downsample is not None:
                # Checkpointing would run the downsample without a graph, and
                # its output is needed outside of the block.
                block.with_cp = False

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks, each followed by its attention.

        Args:
            x (Tensor): (B, C_in, H_in, W_in).

        Returns:
            Tensor: (B, C, H, W).
        """
        for block, attention in zip(self, self.attention):
            x, identity = self._block_and_shortcut(block, x)
            x = x + attention(x, identity)  # (B, C, H, W)
        return x

    @staticmethod
    def _block_and_shortcut(block: nn.Module,
                            x: Tensor) -> Tuple[Tensor, Tensor]:
        """A block's output and its shortcut, which is computed only once."""
        if block.downsample is None:
            return block(x), x
        shortcut = []
        handle = block.downsample.register_forward_hook(
            lambda module, args, output: shortcut.append(output))
        try:
            return block(x), shortcut[0]
        finally:
            handle.remove()
