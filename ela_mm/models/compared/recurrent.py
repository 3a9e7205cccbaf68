"""Stages whose blocks hand on a state that their last norm's output changes.

That output exists only inside of a block, before the shortcut is added. A
module without parameters stands there, put as plugins are
(:mod:`ela_mm.models.compared.plugins`) and after a config's own, and calls who
runs the block. In mmpretrain's SE blocks it stands before the SE gate.
"""
from contextvars import ContextVar
from typing import Any, Callable, List, Optional, Sequence, Tuple

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import UsageError
from ..backbones.stages import Stage, StageSpec
from .plugins import apply_plugins

# Called with what the last norm of the running block returns; the block goes on
# with what it returns. Of this thread alone: nothing is left on a module.
_READER: ContextVar[Optional[Callable[[Tensor], Tensor]]] = ContextVar(
    'ela_mm_last_norm_reader', default=None)


class LastNorm(nn.Module):
    """Stands behind a block's last norm, and shows what passes.

    Args:
        in_channels (int): C, not needed; what plugins take.
    """
    _abbr_ = 'last_norm_reader'

    def __init__(self, in_channels: int) -> None:
        super().__init__()

    def forward(self, y: Tensor) -> Tensor:
        """Let y (B, C, H, W) pass, or what the reader makes of it."""
        reader = _READER.get()
        return y if reader is None else reader(y)


def run_block(block: nn.Module, x: Tensor,
              reader: Callable[[Tensor], Tensor]) -> Tensor:
    """Run a block of a :class:`RecurrentStage`.

    Args:
        block (nn.Module): Of the stage.
        x (Tensor): (B, C', H', W'), its input.
        reader (Callable): From what its last norm returns, (B, C, H, W), to
            what the shortcut is added to. The block may write into that.

    Returns:
        Tensor: (B, C, H, W), its output.
    """
    token = _READER.set(reader)
    try:
        return block(x)
    finally:
        _READER.reset(token)


class RecurrentStage(Stage):
    """A stage whose blocks hand on a state: a kind has :meth:`run`.

    Args:
        blocks (nn.Sequential): The host's blocks.
        layers (List[nn.Module]): Attention.
        spec (StageSpec): Of the stage.

    Raises:
        UsageError: If the blocks hand their last norm's output to no module.
    """
    options: Tuple[str, ...] = ()

    def __init__(self, blocks: nn.Sequential, layers: List[nn.Module],
                 spec: StageSpec) -> None:
        super().__init__(spec.name, blocks, layers)
        _read_last_norms(blocks, spec.last_norm_reader)
        self.with_cp = spec.with_cp
        for block in blocks:
            # A checkpoint has to hold what the reader computes as well.
            block.with_cp = False

    def run(self, i: int, x: Tensor, *state: Tensor) -> Tuple[Tensor, ...]:
        """Run a block and its attention.

        Args:
            i (int): Of the block.
            x (Tensor): (B, C', H', W'), what leaves the step before.
            *state (Tensor): What that one left.

        Returns:
            tuple: What leaves the step, (B, C, H, W), and the state.
        """
        raise NotImplementedError(f'{type(self).__name__}.run')

    def step(self, i: int, x: Tensor, memory: List[Tensor]) -> Tuple[Any, None]:
        """Run a block and its attention; the memory is the state."""
        if self.with_cp and x.requires_grad:
            x, *memory[:] = checkpoint(
                self.run, i, x, *memory, use_reentrant=False)
        else:
            x, *memory[:] = self.run(i, x, *memory)
        return x, None  # (B, C, H, W)


def _read_last_norms(blocks: Sequence[nn.Module],
                     last_norm_reader: Optional[str]) -> None:
    position = 'after_conv3' if hasattr(blocks[0], 'conv3') else 'after_conv2'
    try:
        apply_plugins(blocks, [dict(cfg=dict(type=LastNorm), position=position)],
                      0, last_norm_reader)
    except UsageError as error:
        raise UsageError(
            "attention='dia' and 'rla' read what a block's last norm returns, "
            f'and a {type(blocks[0]).__name__} of {type(blocks[0]).__module__} '
            'hands it to no module: take a depth of 50 or more, whose blocks '
            'are bottlenecks') from error
