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

# Reduction of the cell as in the authors' code for CIFAR (16 for ImageNet).
REDUCTION = 4


class DynamicMemory(LayerMemory):
    """Keys and values that every later layer rewrites.

    A value is rewritten by a factor per channel. Instead of the map, its
    factors and means, (B, C) each, are rewritten. So backward keeps every map
    once, and not once for each later layer.

    Args:
        cell (SharedCell): Cell of the stage.

    Attributes:
        factors (List[Tensor]): n tensors (B, C); the rewritten value i is
            ``factors[i] * values[i]``.
        means (List[Tensor]): n tensors (B, C), means of the rewritten values.
        state (Tuple[Tensor, Tensor] | None): h and c of the cell, (B, C) each;
            None before the first layer.
    """

    def __init__(self, cell: SharedCell) -> None:
        super().__init__()
        self.cell = cell
        self.factors: List[Tensor] = []
        self.means: List[Tensor] = []
        self.state: Optional[Tuple[Tensor, Tensor]] = None

    def refresh(self, x: Tensor) -> None:
        """Step the cell by a new layer's features, and rewrite the memory.

        Args:
            x (Tensor): (B, C, H, W), output of the layer's block.
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
    """The DLA-base term of one layer; arguments as in :class:`LayerAttention`.

    The first layer of a stage holds the cell.
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
        """Sum P_i times factor i times v_i over i; then as in MRLA-base."""
        weights = weights.unsqueeze(2).expand(  # (B, h, d, n)
            -1, -1, self.head_dim, -1).flatten(1, 2)  # (B, C, n)
        return super()._retrieve(weights * torch.stack(memory.factors, -1),
                                 memory)


@register_attention('dla')
@register_attention('dla-base')
class DLAStage(AttentionStage):
    """A stage with DLA-base: MRLA-base over keys and values that change.

    It differs from :class:`~ela_mm.models.backbones.stages.base.AttentionStage`
    in that before layer t attends, the cell of the stage (DSU) takes a step and
    rewrites keys and values of the earlier layers i < t. With m(.) the mean
    over the positions:

        h, c = cell(m(x_t), h, c)
        k_i = k_i * cell(k_i, h, c),  v_i = v_i * cell(m(v_i), h, c)

    All layers of a stage share the cell, a
    :class:`~ela_mm.models.compared.shared_cell.SharedCell` without an output
    gate, which the first layer holds.

    Its softmax over layers is measured and pruned as that of MRLA-base. But the
    KL divergence says less here: keys and values are rewritten in between, so
    two neighbours with equal weights need not retrieve the same features. A
    skipped layer (``skip='layer'``) neither steps the cell nor rewrites; under
    ``skip='retrieval'`` it does both.

    Args:
        name (str): Name of the stage in the backbone.
        blocks (nn.Sequential): Blocks of the host.
        layers (List[DynamicLayerAttention]): Attention layers, one for each
            block.
    """
    head_dims = (32, 16, 8, 4)

    @classmethod
    def build(cls,
              blocks: nn.Sequential,
              spec: StageSpec,
              head_dim: int = 32,
              act: bool = True,
              zero_init_attention: bool = False) -> 'DLAStage':
        """Add DLA-base to a host's blocks; options as in the backbone.

        ``head_dim`` defaults to 32, as in the authors' code.
        """
        layers = [
            DynamicLayerAttention(spec.channels, head_dim, act, spec.norm_cfg,
                                  rate, zero_init_attention, spec.with_cp)
            for rate in spec.drop_path_rates
        ]
        layers[0].cell = SharedCell(spec.channels, False, REDUCTION)
        return cls(spec.name, blocks, layers)

    def new_memory(self, x: Tensor) -> DynamicMemory:
        """Make a memory of plain lists, since it is rewritten."""
        if not is_compiling():
            self._warn_of_idle_hooks()
        return DynamicMemory(self.attention[0].cell)

    def parts(self, i: int):
        """Tell which parts of a layer run; the cell does if any layer does."""
        used, layer = super().parts(i)
        if i == 0:
            used['cell'] = any(self.active)
        return used, layer


@register_attention('dla-light')
class DLALightStage(LightAttentionStage):
    """A stage with DLA-light: MRLA-light whose shortcut a cell weighs.

    It differs from
    :class:`~ela_mm.models.backbones.stages.light.LightAttentionStage` in that
    the cell of the stage weighs the shortcut s_t (B, C, H, W) that a layer
    mixes in. With m(.) the mean over the positions:

        h, c = cell(m(x_t), h, c)
        s_t = s_t * cell(m(s_t), h, c)

    The authors' code also adds a depthwise 3x3 convolution of s_t, shared by
    the stage (9 C parameters), which is left out here. There is nothing to
    prune.

    Args:
        name (str): Name of the stage in the backbone.
        blocks (nn.Sequential): Blocks of the host.
        layers (List[LightLayerAttention]): Attention layers, one for each
            block.
    """

    @classmethod
    def build(cls, blocks: nn.Sequential, spec: StageSpec,
              **options) -> 'DLALightStage':
        """Add DLA-light to a host's blocks; options as in the backbone."""
        stage = super().build(blocks, spec, **options)
        stage.attention[0].cell = SharedCell(spec.channels, False, REDUCTION)
        stage.channels = spec.channels
        return stage

    def new_memory(self, x: Tensor) -> List[Tensor]:
        """Start with h and c of zeros, (B, C)."""
        return list(start(x, self.channels))

    def step(self, i: int, x: Tensor,
             memory: List[Tensor]) -> Tuple[Tensor, None]:
        """Run a block, and attention on its output and weighed shortcut."""
        x, identity = self._block_and_shortcut(self.block(i), x)
        cell = self.attention[0].cell
        memory[:] = cell(x.mean((2, 3)), *memory)  # (B, C) each
        factors, _ = cell(identity.mean((2, 3)), *memory)  # (B, C)
        identity = identity * factors[..., None, None]  # (B, C, H, W)
        return x + self.attention[i](x, identity), None  # (B, C, H, W)
