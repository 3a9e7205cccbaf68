"""MViT: one list of blocks, some of which begin a new scale."""
from itertools import groupby
from typing import Any, Callable, List, Optional, Tuple, Union

from torch import Tensor, nn

from ..layers import LayerMemory
from .detached import DetachedStage, Pass
from .placed import PlacedAttentionMixin
from .stages import AttentionStage, StageSpec
from .vit import GroupedBlocks
from .walked import map_to_tokens, tokens_to_map

# What a block of MViT takes and returns: tokens (B, HW, C) and (H, W).
Tokens = Tuple[Tensor, Tuple[int, int]]


class ScaleStage(DetachedStage):
    """Attention of the blocks of one scale, which stay in the host's list.

    Blocks take tokens (B, HW, C) and the size (H, W), and return both.
    """

    def step(self, i: int, x: Pass,
             memory: LayerMemory) -> Tuple[Pass, Optional[Tensor]]:
        """Run a block, and its attention on the map that tokens form."""
        tokens, hw_shape = x.blocks[i](x.x, *x.args)
        weights = None
        if self.visible[i]:
            out, weights = self.attend(
                i, tokens_to_map(tokens, hw_shape), memory)
            tokens = map_to_tokens(out)  # (B, C, H, W) -> (B, HW, C)
        return Pass(tokens, x.blocks, (hw_shape, ),
                    [*x.outs, (tokens, hw_shape)]), weights

    def alone(self, x: List[Tokens],
              *args: Any) -> Tuple[AttentionStage, Tensor]:
        """Make a stage of maps of the same layers, and an input for it."""
        return super().alone([tokens_to_map(*x[-1])])

    def through(self, tap: Callable[[Tensor], Tensor],
                x: Union[Tensor, List[Tokens]],
                *args: Any) -> Union[Tensor, List[Tokens]]:
        """Apply a function to the map of tokens, or of a list's last tokens."""
        if isinstance(x, Tensor):
            return map_to_tokens(tap(tokens_to_map(x, args[0])))
        tokens, hw_shape = x[-1]
        return [*x[:-1], (self.through(tap, tokens, hw_shape), hw_shape)]


class MViTAttentionMixin(PlacedAttentionMixin):
    """Adds layer attention to an MViT, with a memory for each scale."""
    kinds = {'base': ScaleStage}
    norm_cfg_by_default = dict(type='LN', eps=1e-6)

    def stage_specs(self) -> List[StageSpec]:
        """Group neighbouring blocks of the same width and size."""
        scale, scales = 0, []
        for block in self.blocks:
            scale += block.pool_skip is not None  # which halves the size
            scales.append((scale, block.out_dims))
        return [
            StageSpec(f'blocks.group{number}', channels,
                      self._attention_norm_cfg, [0.] * len(list(blocks)))
            for number, ((_, channels), blocks) in enumerate(
                groupby(scales), start=1)
        ]

    def add_attention(self) -> None:
        """Add stages beside the host's blocks, which keep their place."""
        specs = self.stage_specs()
        self.fit_head_dim([spec.channels for spec in specs])
        self.blocks = GroupedBlocks(self.blocks, [
            self.attention_kind.build(nn.Sequential(), spec,
                                      **self.attention_options)
            for spec in specs
        ])
        self._attention_paths = [spec.name for spec in specs]
