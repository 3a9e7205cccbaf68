"""Stages whose host walks the blocks itself, and hands them more than x.

Such a host runs ``for block in blocks: x = block(x, hw_shape)``. A stage that
takes the place of ``blocks`` is met by the loop as one block, which runs all.
"""
from typing import Any, Callable, Iterator, Optional, Tuple

from torch import Tensor, nn

from ..layers import LayerMemory
from .stages import AttentionStage


class WalkedStage(AttentionStage):
    """A stage that a host's loop over the blocks meets as one block.

    It counts and indexes as the blocks do.
    """

    def __iter__(self) -> Iterator[nn.Module]:
        """Yield the stage itself, once."""
        return iter((self, ))

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Run the blocks and the active layers.

        Args:
            x (Tensor): As the host's blocks take it.
            *args: What the host hands to each block beside x.

        Returns:
            Tensor: As the host's blocks return it.
        """
        x, *_ = super().forward((x, *args))
        return x

    def new_memory(self, x: Tuple[Any, ...]) -> LayerMemory:
        """Choose, once a pass, between buffers and plain lists."""
        return super().new_memory(x[0])

    def step(self, i: int, x: Tuple[Any, ...], memory: LayerMemory
             ) -> Tuple[Tuple[Any, ...], Optional[Tensor]]:
        """Run a block and its attention; x travels with what is beside it."""
        x, *args = x
        x, weights = self.walk(i, x, memory, *args)
        return (x, *args), weights

    def walk(self, i: int, x: Tensor, memory: LayerMemory,
             *args: Any) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block and its attention.

        Args:
            i (int): Of the block.
            x (Tensor): As the block takes it.
            memory (LayerMemory): From :meth:`new_memory`.
            *args: What the host hands to the block beside x.

        Returns:
            tuple: x as the block returns it, with the layer's term, and the
            weights (B, h, n) over layers; None of a skipped layer.
        """
        raise NotImplementedError(f'{type(self).__name__}.walk')


class TokenStage(WalkedStage):
    """A stage of blocks of tokens (B, HW, C), which take ``hw_shape``."""

    def walk(self, i: int, x: Tensor, memory: LayerMemory,
             hw_shape: Tuple[int, int]) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block on tokens, and its attention on the map they form."""
        x = self.block(i)(x, hw_shape)  # (B, HW, C)
        return self.attend_tokens(i, x, memory, hw_shape)

    def attend_tokens(self, i: int, x: Tensor, memory: LayerMemory,
                      hw_shape: Tuple[int, int]
                      ) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a layer on the map that its block's output (B, HW, C) forms."""
        if not self.visible[i]:
            return x, None
        x, weights = self.attend(i, tokens_to_map(x, hw_shape), memory)
        return map_to_tokens(x), weights  # (B, HW, C), (B, h, n)

    def alone(self, x: Tensor, hw_shape: Tuple[int, int]
              ) -> Tuple[AttentionStage, Tensor]:
        """Make a stage of maps of the same layers, and an input for it."""
        return super().alone(tokens_to_map(x, hw_shape))

    def through(self, tap: Callable[[Tensor], Tensor], x: Tensor,
                hw_shape: Tuple[int, int]) -> Tensor:
        """Let the map that tokens (B, HW, C) form go through a function."""
        return map_to_tokens(tap(tokens_to_map(x, hw_shape)))


def tokens_to_map(x: Tensor, hw_shape: Tuple[int, int]) -> Tensor:
    """(B, HW, C) -> (B, C, H, W), a view: the map is in channels last."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *hw_shape)


def map_to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C), a view of a map in channels last."""
    return x.flatten(2).transpose(1, 2)
