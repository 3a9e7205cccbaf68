"""Stages beside the blocks that they attend to, which stay where they are.

Some hosts have no module for each stage: their blocks stand in one list, or
among the backbone's own children. Names of parameters stay as they are where
the stage holds the attention alone.
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
    """What travels from step to step of a detached stage."""
    x: Tensor
    blocks: List[nn.Module]
    args: tuple
    outs: List[Tensor]


class DetachedStage(AttentionStage):
    """Attention of neighbouring blocks, which are not its own.

    Args:
        name (str): Of the stage in the backbone.
        blocks (nn.Sequential): Empty.
        layers (List[nn.Module]): One per block.
    """

    def belong(self, home: nn.Module, names: Sequence[str]) -> None:
        """Say whose blocks these are.

        Args:
            home (nn.Module): What holds this stage and the blocks.
            names (Sequence[str]): Of the blocks there, in order.
        """
        self._home = (home, list(names))  # in a tuple: no child of the stage

    def block(self, i: int) -> nn.Module:
        """The host's block number i of the stage."""
        home, names = self._home
        return home.get_submodule(names[i])

    def block_name(self, i: int) -> str:
        """What block number i of the stage is called in the backbone."""
        where = self.name.rpartition('.')[0]
        return '.'.join(filter(None, [where, self._home[1][i]]))

    def alone(self, x: List[Tensor],
              *args: Any) -> Tuple[AttentionStage, Tensor]:
        """Make a stage of the same layers, and an input for it."""
        return super().alone(x[-1], *args)

    def through(self, tap: Callable[[Tensor], Tensor],
                x: Union[Tensor, List[Tensor]],
                *args: Any) -> Union[Tensor, List[Tensor]]:
        """Let a map go through; of a list, one step each, the last one."""
        return tap(x) if isinstance(x, Tensor) else [*x[:-1], tap(x[-1])]

    def forward(self, x: Tensor, *args: Any,
                blocks: Optional[List[nn.Module]] = None) -> List[Tensor]:
        """Run the blocks and the active layers.

        Args:
            x (Tensor): As the host's blocks take it.
            *args: What the host hands to each block beside x.
            blocks (List[nn.Module], optional): In place of the stage's, which
                are those of another device in a replica.

        Returns:
            List[Tensor]: What leaves each step.
        """
        return super().forward(Pass(x, blocks or self[:], args, [])).outs

    def new_memory(self, x: Pass) -> LayerMemory:
        """Choose, once a pass, between buffers and plain lists."""
        return super().new_memory(x.x)

    def step(self, i: int, x: Pass,
             memory: LayerMemory) -> Tuple[Pass, Optional[Tensor]]:
        """Run a block and its attention."""
        out, weights = self.attend(i, x.blocks[i](x.x, *x.args), memory)
        return x._replace(x=out, outs=[*x.outs, out]), weights
