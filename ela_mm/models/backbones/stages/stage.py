"""The base class of stages: a host's blocks, each followed by its attention.

A stage runs ``x = block(x)``, then ``x = x + attention(x)``. Each kind of
attention is a subclass.
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
    """What attention has to know of a stage of the host.

    Attributes:
        name (str): Name of the stage in the backbone, such as ``layer1``.
        channels (int): C, number of channels of the blocks' output.
        norm_cfg (dict): Config of the norms of attention.
        drop_path_rates (Sequence[float]): Drop path rate of each block.
        with_cp (bool): Whether the host checkpoints activations.
        last_norm_reader (str, optional): Name of the child that reads the
            output of a block's last norm; None if blocks run plugins
            themselves.
        last (bool): Whether this is the last stage.
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

    A stage can be indexed and iterated like the host's sequence of blocks, and
    has its length. Each kind of attention is a subclass with :meth:`build` and
    :meth:`step`.

    Args:
        name (str): Name of the stage in the backbone, such as ``layer1``.
        blocks (nn.Sequential): Blocks of the host; they keep their names.
        layers (List[nn.Module]): Attention layers, one for each block.

    Attributes:
        options (Tuple[str, ...]): Options of the backbone that :meth:`build`
            takes as keyword arguments.
        head_dims (Tuple[int, ...]): Values of ``head_dim`` to choose from if
            the user gives none, the paper's first.
        prunable (bool): Whether layers have weights over layers and can be
            skipped one by one.
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
            blocks (nn.Sequential): Blocks as the host has built them.
            spec (StageSpec): Description of the stage.
            **options: Those of ``options`` that the user gave.

        Returns:
            Stage: The stage.
        """
        raise NotImplementedError(f'{cls.__name__}.build')

    @classmethod
    def one_pass(cls) -> ContextManager[None]:
        """Return a context around one forward pass through all stages."""
        return nullcontext()

    def new_memory(self, x: Tensor) -> Any:
        """Make the memory that one forward pass hands from layer to layer."""
        return None

    def step(self, i: int, x: Tensor,
             memory: Any) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block and its attention.

        Args:
            i (int): Index of the block.
            x (Tensor): (B, C', H', W'), output of the previous step.
            memory (Any): Memory from :meth:`new_memory`.

        Returns:
            tuple: (B, C, H, W), output of the step; and (B, h, n), the weights
            over layers, None if this kind of attention has none.
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
        """Return the host's block i."""
        return self._modules[str(i)]

    def block_name(self, i: int) -> str:
        """Return the name of block i in the backbone."""
        return f'{self.name}.{i}'

    def block_parts(self, i: int) -> List[str]:
        """Return the names in the backbone of the modules that form block i.

        They run in this order; attention follows the last one.
        """
        return [self.block_name(i)]

    def norms(self, i: int) -> List[nn.Module]:
        """Return the norms that attention has added behind block i."""
        return [self.attention[i].norm]

    def __len__(self) -> int:
        return len(self.attention)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self[:])

    def __getitem__(self, index):
        return [self.block(i) for i in range(len(self))][index]
