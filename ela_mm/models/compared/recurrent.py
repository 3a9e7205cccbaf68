"""Stages whose blocks update a state by the output of their last norm.

That output exists only inside of a block, before the shortcut is added. So a
module without parameters is put there, in the same way as plugins
(:mod:`ela_mm.models.compared.plugins`) and after those of the config. It calls
a function of the stage that runs the block. In mmpretrain's SE blocks it
precedes the SE gate.
"""
from contextvars import ContextVar
from typing import Any, Callable, List, Optional, Sequence, Tuple

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import UsageError
from ..backbones.stages import Stage, StageSpec
from .plugins import apply_plugins

# Function that is called with the output of the running block's last norm; the
# block goes on with its result. Local to the thread.
_READER: ContextVar[Optional[Callable[[Tensor], Tensor]]] = ContextVar(
    'ela_mm_last_norm_reader', default=None)


class LastNorm(nn.Module):
    """A module behind the last norm of a block, which calls the reader.

    Args:
        in_channels (int): C, number of channels; unused, but plugins take it.
    """
    _abbr_ = 'last_norm_reader'

    def __init__(self, in_channels: int) -> None:
        super().__init__()

    def forward(self, y: Tensor) -> Tensor:
        """Return y (B, C, H, W), or the reader's result for it."""
        reader = _READER.get()
        return y if reader is None else reader(y)


def run_block(block: nn.Module, x: Tensor,
              reader: Callable[[Tensor], Tensor]) -> Tensor:
    """Run a block of a :class:`RecurrentStage`.

    Args:
        block (nn.Module): Block of the stage.
        x (Tensor): (B, C', H', W'), input of the block.
        reader (Callable): Function from the output of the last norm,
            (B, C, H, W), to the tensor that the shortcut is added to. The block
            may change the latter in place.

    Returns:
        Tensor: (B, C, H, W), output of the block.
    """
    token = _READER.set(reader)
    try:
        return block(x)
    finally:
        _READER.reset(token)


class RecurrentStage(Stage):
    """A stage whose blocks hand on a state; subclasses define :meth:`run`.

    Args:
        blocks (nn.Sequential): Blocks of the host.
        layers (List[nn.Module]): Modules of attention.
        spec (StageSpec): Description of the stage.

    Raises:
        UsageError: If no module of the blocks reads the last norm's output.
    """
    options: Tuple[str, ...] = ()

    def __init__(self, blocks: nn.Sequential, layers: List[nn.Module],
                 spec: StageSpec) -> None:
        super().__init__(spec.name, blocks, layers)
        _read_last_norms(blocks, spec.last_norm_reader)
        self.with_cp = spec.with_cp
        for block in blocks:
            # The stage checkpoints instead: the reader has to be included.
            block.with_cp = False

    def run(self, i: int, x: Tensor, *state: Tensor) -> Tuple[Tensor, ...]:
        """Run a block and its attention.

        Args:
            i (int): Index of the block.
            x (Tensor): (B, C', H', W'), output of the previous step.
            *state (Tensor): State after the previous step.

        Returns:
            tuple: (B, C, H, W), output of the step, and the new state.
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
            "attention='dia' and 'rla' read the output of a block's last norm, "
            f'which a {type(blocks[0]).__name__} of '
            f'{type(blocks[0]).__module__} does not pass to a module: take a '
            'depth of 50 or more, whose blocks are bottlenecks') from error
