"""A stage with MRLA-light, which mixes in the shortcut of each block."""
from contextvars import ContextVar
from typing import List, Optional, Tuple

from torch import Tensor, fx, nn

from ....errors import UsageError
from ...layers import LightLayerAttention
from ...layers.watched import is_watched
from .kinds import register_attention
from .stage import Stage, StageSpec

# Outputs of downsamples in the running step. Local to the thread, since the
# modules may be shared between threads.
_SHORTCUTS: ContextVar[Optional[list]] = ContextVar(
    'ela_mm_shortcuts', default=None)


def _note_shortcut(module: nn.Module, args: tuple, output: Tensor) -> None:
    noted = _SHORTCUTS.get()
    if noted is not None:
        noted.append(output)


@register_attention('light')
class LightAttentionStage(Stage):
    """A stage with MRLA-light.

    Args:
        name (str): Name of the stage in the backbone.
        blocks (nn.Sequential): Blocks of the host.
        layers (List[LightLayerAttention]): Attention layers, one for each
            block.
    """
    options = ('head_dim', 'zero_init_attention')
    head_dims = (32, 16, 8, 4)

    def __init__(self, name: str, blocks: nn.Sequential,
                 layers: List[LightLayerAttention]) -> None:
        super().__init__(name, blocks, layers)
        for block in self:
            if block.downsample is not None:
                block.downsample.register_forward_hook(_note_shortcut)
                # Checkpointing would run the downsample without a graph, but
                # the gradient of its output is needed outside of the block.
                block.with_cp = False

    @classmethod
    def build(cls,
              blocks: nn.Sequential,
              spec: StageSpec,
              head_dim: int = 32,
              zero_init_attention: bool = False) -> 'LightAttentionStage':
        """Add MRLA-light to a host's blocks; options as in the backbone."""
        return cls(spec.name, blocks, [
            LightLayerAttention(spec.channels, head_dim, spec.norm_cfg, rate,
                                zero_init_attention)
            for rate in spec.drop_path_rates
        ])

    def step(self, i: int, x: Tensor, memory: None) -> Tuple[Tensor, None]:
        """Run a block, and attention on its output and shortcut."""
        x, identity = self._block_and_shortcut(self.block(i), x)
        return _mix(self, i, x, identity), None  # (B, C, H, W)

    @staticmethod
    def _block_and_shortcut(block: nn.Module,
                            x: Tensor) -> Tuple[Tensor, Tensor]:
        """Return a block's output and shortcut, which is computed only once."""
        if block.downsample is None:
            return block(x), x
        noted: List[Tensor] = []
        token = _SHORTCUTS.set(noted)
        try:
            out = block(x)
        finally:
            _SHORTCUTS.reset(token)
        if not noted:
            raise UsageError(
                'the downsample of a block was replaced after attention had '
                'been added, which uses its output: replace the parts of the '
                'downsample instead')
        _check_gradient(block, x, out, noted[-1])
        return out, noted[-1]


@fx.wrap
def _check_gradient(block: nn.Module, x: Tensor, out: Tensor,
                    identity: Tensor) -> None:
    if out.requires_grad and not identity.requires_grad and (
            x.requires_grad or any(
                p.requires_grad for p in block.downsample.parameters())):
        raise UsageError(
            "activation checkpointing of a block hides its shortcut's gradient "
            'from the attention that mixes it in: checkpoint whole stages '
            "instead, such as 'backbone.layer1'")


@fx.wrap
def _mix(stage: LightAttentionStage, i: int, x: Tensor,
         identity: Tensor) -> Tensor:
    layer = stage.attention[i]
    if type(layer) is LightLayerAttention and not is_watched(layer):
        return layer.add_to(x, identity)  # (B, C, H, W)
    return x + layer(x, identity)
