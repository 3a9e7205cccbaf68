"""Stages that hold attention alone, for blocks which stay where they are.

Some hosts have no module for each stage: their blocks are in one list, or are
children of the backbone itself. If the stage holds the attention layers only,
the names of the blocks' parameters do not change.
"""
from typing import (
    Any,
    Callable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from torch import Tensor, nn

from ..layers import LayerMemory
from .stages import AttentionStage


class Pass(NamedTuple):
    """What a detached stage passes from step to step.

    Attributes:
        x (Tensor): Output of the last block, with the layer's term.
        blocks (List[nn.Module]): Blocks of the stage.
        args (tuple): What the host passes to each block besides x.
        outs (List[Tensor]): Outputs of all steps so far.
    """
    x: Tensor
    blocks: List[nn.Module]
    args: tuple
    outs: List[Tensor]


class DetachedStage(AttentionStage):
    """Attention of neighbouring blocks that are not children of the stage.

    Args:
        name (str): Name of the stage in the backbone.
        blocks (nn.Sequential): An empty sequence.
        layers (List[nn.Module]): Attention layers, one for each block.
    """

    def belong(self, home: nn.Module, names: Sequence[str]) -> None:
        """Set which blocks the stage has.

        Args:
            home (nn.Module): Module that contains this stage and the blocks.
            names (Sequence[str]): Names of the blocks in that module, in order.
        """
        # In a tuple, so that the module does not become a child of the stage.
        self._home = (home, list(names))

    def block(self, i: int) -> nn.Module:
        """Return the host's block i of the stage."""
        home, names = self._home
        return home.get_submodule(names[i])

    def block_name(self, i: int) -> str:
        """Return the name in the backbone of block i of the stage."""
        where = self.name.rpartition('.')[0]
        return '.'.join(filter(None, [where, self._home[1][i]]))

    def alone(self, x: List[Tensor],
              *args: Any) -> Tuple[AttentionStage, Tensor]:
        """Make a stage of the same layers, and an input for it."""
        return super().alone(x[-1], *args)

    def through(self, tap: Callable[[Tensor], Tensor],
                x: Union[Tensor, List[Tensor]],
                *args: Any) -> Union[Tensor, List[Tensor]]:
        """Apply a function to a map, or to the last map of a list of steps."""
        return tap(x) if isinstance(x, Tensor) else [*x[:-1], tap(x[-1])]

    def forward(self, x: Tensor, *args: Any,
                blocks: Optional[List[nn.Module]] = None) -> List[Tensor]:
        """Run the blocks and the active layers.

        Args:
            x (Tensor): Input of the first block, in the host's form.
            *args: What the host passes to each block besides x.
            blocks (List[nn.Module], optional): Blocks to run. Needed in
                replicas of data parallelism, in which :meth:`block` would find
                those of another device. Defaults to None: the stage's.

        Returns:
            List[Tensor]: Outputs of all steps.
        """
        return super().forward(Pass(x, blocks or self[:], args, [])).outs

    def new_memory(self, x: Pass) -> LayerMemory:
        """Choose the memory of a forward pass: buffers or plain lists."""
        return super().new_memory(x.x)

    def step(self, i: int, x: Pass,
             memory: LayerMemory) -> Tuple[Pass, Optional[Tensor]]:
        """Run a block and its attention."""
        out, weights = self.attend(i, x.blocks[i](x.x, *x.args), memory)
        return x._replace(x=out, outs=[*x.outs, out]), weights
