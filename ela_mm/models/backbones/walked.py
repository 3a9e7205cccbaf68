"""Stages whose host iterates over the blocks and passes them more than x.

Such a host runs ``for block in blocks: x = block(x, hw_shape)``. A stage that
replaces ``blocks`` acts as a single block in this loop, which runs all of them.
"""
from typing import Any, Callable, Iterator, Optional, Tuple

from torch import Tensor, nn

from ..layers import LayerMemory
from .stages import AttentionStage


class WalkedStage(AttentionStage):
    """A stage that acts as a single block in the host's loop over blocks.

    It has the length and indices of the sequence of blocks.
    """

    def __iter__(self) -> Iterator[nn.Module]:
        """Yield the stage itself, once."""
        return iter((self, ))

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Run the blocks and the active layers.

        Args:
            x (Tensor): Input of the first block, in the host's form.
            *args: What the host passes to each block besides x.

        Returns:
            Tensor: Output of the last step, in the host's form.
        """
        x, *_ = super().forward((x, *args))
        return x

    def new_memory(self, x: Tuple[Any, ...]) -> LayerMemory:
        """Choose the memory of a forward pass: buffers or plain lists."""
        return super().new_memory(x[0])

    def step(self, i: int, x: Tuple[Any, ...], memory: LayerMemory
             ) -> Tuple[Tuple[Any, ...], Optional[Tensor]]:
        """Run a block and its attention on a tuple of x and further inputs."""
        x, *args = x
        x, weights = self.walk(i, x, memory, *args)
        return (x, *args), weights

    def walk(self, i: int, x: Tensor, memory: LayerMemory,
             *args: Any) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block and its attention.

        Args:
            i (int): Index of the block.
            x (Tensor): Input of the block.
            memory (LayerMemory): Memory from :meth:`new_memory`.
            *args: What the host passes to the block besides x.

        Returns:
            tuple: Output of the block with the layer's term added; and
            (B, h, n), the weights over layers, None if the layer is skipped.
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
        """Run a layer on the map that tokens (B, HW, C) form."""
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
        """Apply a function to the map that tokens (B, HW, C) form."""
        return map_to_tokens(tap(tokens_to_map(x, hw_shape)))


def tokens_to_map(x: Tensor, hw_shape: Tuple[int, int]) -> Tensor:
    """(B, HW, C) -> (B, C, H, W), a view: the map is in channels last."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *hw_shape)


def map_to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C), a view if the map is in channels last."""
    return x.flatten(2).transpose(1, 2)
