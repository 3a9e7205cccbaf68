"""What every stage is: a host's blocks, each followed by its attention.

``x = block(x)``, then ``x = x + attention(x)``. A kind of attention is a class
of stage.
"""
from contextlib import nullcontext
from typing import (
    Any,
    ContextManager,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from mmengine.model import BaseModule
from torch import Tensor, nn


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

    def block_parts(self, i: int) -> List[str]:
        """Names in the backbone of the modules that make up block number i.

        They run in this order; attention follows the last.
        """
        return [self.block_name(i)]

    def norms(self, i: int) -> List[nn.Module]:
        """The norms that attention brought along with block i."""
        return [self.attention[i].norm]

    def __len__(self) -> int:
        return len(self.attention)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self[:])

    def __getitem__(self, index):
        return [self.block(i) for i in range(len(self))][index]
