"""DLA: dynamic layer attention, base and light (arXiv 2406.13392)."""
from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn

from ...compat.compiling import is_compiling
from ..backbones.stages import (
    AttentionStage,
    LightAttentionStage,
    StageSpec,
    register_attention,
)
from ..layers import LayerAttention, LayerMemory
from ..layers.bank.keys import average_pool
from .shared_cell import SharedCell, start

# Of the cell, in the authors' code for CIFAR; that for ImageNet has 16.
REDUCTION = 4


class DynamicMemory(LayerMemory):
    """Keys and values that every later layer rewrites.

    A value is rewritten by a factor per channel. The maps stay as they are, and
    their factors and means, (B, C) each, are rewritten in their place: backward
    keeps every map once, not once per later layer.

    Args:
        cell (SharedCell): The stage's.

    Attributes:
        factors (List[Tensor]): n tensors (B, C); value i is ``factors[i] *
            values[i]``.
        means (List[Tensor]): n tensors (B, C), of the rewritten values.
        state (Tuple[Tensor, Tensor] | None): The cell's h and c, (B, C); None
            before the first layer.
    """

    def __init__(self, cell: SharedCell) -> None:
        super().__init__()
        self.cell = cell
        self.factors: List[Tensor] = []
        self.means: List[Tensor] = []
        self.state: Optional[Tuple[Tensor, Tensor]] = None

    def refresh(self, x: Tensor) -> None:
        """Let a new layer's features step the cell, and the cell rewrite.

        Args:
            x (Tensor): (B, C, H, W), the output of the layer's block.
        """
        state = self.state or start(x, x.shape[1])
        self.state = self.cell(average_pool(x), *state)  # (B, C) each
        if not self.keys:
            return
        seen = torch.stack([k.flatten(1) for k in self.keys] +
                           self.means)  # (2 n, B, C)
        of_keys, of_values = self.cell(seen, *self.state)[0].chunk(
            2)  # (n, B, C)
        self.keys[:] = [
            key * factor.view_as(key)  # (B, h, d)
            for key, factor in zip(self.keys, of_keys)
        ]
        for old in (self.factors, self.means):
            old[:] = [x * factor for x, factor in zip(old, of_values)]


class DynamicLayerAttention(LayerAttention):
    """One layer's DLA-base term; arguments as those of :class:`LayerAttention`.

    The first one of a stage holds the cell.
    """

    def attend(self, x: Tensor,
               memory: DynamicMemory) -> Tuple[Tensor, Tensor]:
        """Rewrite the memory, then retrieve features from it."""
        memory.refresh(x)
        return super().attend(x, memory)

    def remember(self, x: Tensor, memory: DynamicMemory) -> None:
        """Rewrite the memory, and add this layer's key and value."""
        memory.refresh(x)
        super().remember(x, memory)

    def _keep_value(self, x: Tensor, memory: DynamicMemory) -> None:
        super()._keep_value(x, memory)
        memory.means.append(average_pool(memory.values[-1]))  # (B, C)
        memory.factors.append(torch.ones_like(memory.means[-1]))

    def _retrieve(self, weights: Tensor, memory: DynamicMemory) -> Tensor:
        """The sum over i of P_i times factor i times v_i, and what follows."""
        weights = weights.unsqueeze(2).expand(  # (B, h, d, n)
            -1, -1, self.head_dim, -1).flatten(1, 2)  # (B, C, n)
        return super()._retrieve(weights * torch.stack(memory.factors, -1),
                                 memory)


@register_attention('dla')
@register_attention('dla-base')
class DLAStage(AttentionStage):
    """A stage with DLA-base: MRLA-base over keys and values that change.

    As :class:`~ela_mm.models.backbones.stages.base.AttentionStage`, but before
    layer t attends, the stage's cell (DSU) takes a step and rewrites what the
    earlier layers i < t have left, with m(.) the mean over the positions:

        h, c = cell(m(x_t), h, c)
        k_i = k_i * cell(k_i, h, c),  v_i = v_i * cell(m(v_i), h, c)

    The cell, :class:`~ela_mm.models.compared.shared_cell.SharedCell` without
    an output gate, is shared by the stage, and held by its first layer.

    It has a softmax over layers, which is measured and pruned as MRLA-base's
    is. There it says less: its weights are over rewritten keys, and the values
    are rewritten as well, so that two neighbours with equal weights need not
    retrieve the same features. A skipped layer (``skip='layer'``) neither steps
    the cell nor rewrites; under ``skip='retrieval'`` it does both.

    Args:
        name (str): The stage's name in the backbone.
        blocks (nn.Sequential): The host's blocks.
        layers (List[DynamicLayerAttention]): One per block.
    """
    head_dims = (32, 16, 8, 4)

    @classmethod
    def build(cls,
              blocks: nn.Sequential,
              spec: StageSpec,
              head_dim: int = 32,
              act: bool = True,
              zero_init_attention: bool = False) -> 'DLAStage':
        """Add DLA-base to a host's blocks; arguments as the backbone's.

        ``head_dim`` defaults to 32, which the authors' code has.
        """
        layers = [
            DynamicLayerAttention(spec.channels, head_dim, act, spec.norm_cfg,
                                  rate, zero_init_attention, spec.with_cp)
            for rate in spec.drop_path_rates
        ]
        layers[0].cell = SharedCell(spec.channels, False, REDUCTION)
        return cls(spec.name, blocks, layers)

    def new_memory(self, x: Tensor) -> DynamicMemory:
        """Make plain lists: what they hold is rewritten."""
        if not is_compiling():
            self._warn_of_idle_hooks()
        return DynamicMemory(self.attention[0].cell)

    def parts(self, i: int):
        """Say which parts of a layer run; the cell does if any layer does."""
        used, layer = super().parts(i)
        if i == 0:
            used['cell'] = any(self.active)
        return used, layer


@register_attention('dla-light')
class DLALightStage(LightAttentionStage):
    """A stage with DLA-light: MRLA-light whose shortcut a cell weighs.

    As :class:`~ela_mm.models.backbones.stages.light.LightAttentionStage`, but
    the shortcut s_t (B, C, H, W) that a layer mixes in is weighed by the
    stage's cell, with m(.) the mean over the positions:

        h, c = cell(m(x_t), h, c)
        s_t = s_t * cell(m(s_t), h, c)

    The authors' code also adds a depthwise 3x3 convolution of s_t, shared by
    the stage (9 C parameters), which is left out here. Nothing to prune.

    Args:
        name (str): The stage's name in the backbone.
        blocks (nn.Sequential): The host's blocks.
        layers (List[LightLayerAttention]): One per block.
    """

    @classmethod
    def build(cls, blocks: nn.Sequential, spec: StageSpec,
              **options) -> 'DLALightStage':
        """Add DLA-light to a host's blocks; options as the backbone's."""
        stage = super().build(blocks, spec, **options)
        stage.attention[0].cell = SharedCell(spec.channels, False, REDUCTION)
        stage.channels = spec.channels
        return stage

    def new_memory(self, x: Tensor) -> List[Tensor]:
        """Start with h and c of zeros, (B, C)."""
        return list(start(x, self.channels))

    def step(self, i: int, x: Tensor,
             memory: List[Tensor]) -> Tuple[Tensor, None]:
        """Run a block, and mix its value with its weighed shortcut."""
        x, identity = self._block_and_shortcut(self.block(i), x)
        cell = self.attention[0].cell
        memory[:] = cell(x.mean((2, 3)), *memory)  # (B, C) each
        factors, _ = cell(identity.mean((2, 3)), *memory)  # (B, C)
        identity = identity * factors[..., None, None]  # (B, C, H, W)
        return x + self.attention[i](x, identity), None  # (B, C, H, W)
