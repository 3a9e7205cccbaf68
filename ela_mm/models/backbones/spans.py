"""Families in whose sequences a block may span several modules.

These are EfficientFormer, LeViT, MobileOne, PyramidVig and RepLKNet. Modules
that downsample or flatten, or are the first half of a block, are run together
with the block that follows them.
"""
from math import isqrt
from typing import Any, Callable, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import LayerMemory
from .checkpointed import CheckpointedStage
from .fresh_norms import FreshNormsMixin
from .placed import PlacedAttentionMixin
from .sequences import BatchNormSequencesMixin
from .stages import AttentionLayerInfo, AttentionStage, StageSpec
from .walked import WalkedStage, map_to_tokens, tokens_to_map


class SpanStage(AttentionStage):
    """A stage with attention behind some of its modules only.

    A family says in :meth:`ends` behind which.
    """

    @classmethod
    def ends(cls, modules: nn.Module) -> List[int]:
        """Return the indices of modules that attention follows: odd ones."""
        return list(range(1, len(modules), 2))

    @classmethod
    def build(cls, blocks: nn.Sequential, spec: StageSpec,
              **options: Any) -> 'SpanStage':
        """Add attention to a host's modules; options as in the backbone."""
        stage = super().build(blocks, spec, **options)
        stage._ends = cls.ends(blocks)
        return stage

    def block(self, i: int) -> nn.Module:
        """Return the module that attention layer i follows."""
        return self._modules[str(self._ends[i])]

    def block_name(self, i: int) -> str:
        """Return the name in the backbone of the module before layer i."""
        return f'{self.name}.{self._ends[i]}'

    def block_parts(self, i: int) -> List[str]:
        """Return the names in the backbone of the modules of block i."""
        first = self._ends[i - 1] + 1 if i else 0
        return [f'{self.name}.{j}' for j in range(first, self._ends[i] + 1)]

    def run_span(self, i: int, x: Tensor) -> Tensor:
        """Run all modules of block i."""
        first = self._ends[i - 1] + 1 if i else 0
        for j in range(first, self._ends[i] + 1):
            x = self.run_module(self._modules[str(j)], x)
        return x

    def run_module(self, module: nn.Module, x: Tensor) -> Tensor:
        """Run one of the host's modules."""
        return module(x)

    def step(self, i: int, x: Tensor,
             memory: LayerMemory) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block and its attention, as far as it is not skipped."""
        return self.attend(i, self.run_span(i, x), memory)


class SpansMixin(PlacedAttentionMixin):
    """Adds layer attention to stages with blocks of several modules.

    Attributes:
        stages_name (str): Name of the host's list of stages.
        blocks_name (str): Name of the sequence of modules in a stage; '' if
            the stage is the sequence itself.
    """
    stages_name = 'stages'
    blocks_name = ''

    def stage_specs(self) -> List[StageSpec]:
        """Describe every stage."""
        specs = []
        for i, stage in enumerate(getattr(self, self.stages_name)):
            name = '.'.join(filter(None, [
                self.stages_name, str(i), self.blocks_name]))
            modules = self.get_submodule(name)
            ends = self.kinds['base'].ends(modules)
            specs.append(StageSpec(
                name, _channels_of(modules[ends[-1]]),
                self._attention_norm_cfg, [0.] * len(ends),
                getattr(stage, 'with_cp', False)))
        return specs

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether ``frozen_stages``, if any, freezes a layer."""
        return layer.stage <= getattr(self, 'frozen_stages', 0)


class MobileOneAttentionMixin(BatchNormSequencesMixin):
    """Adds layer attention to a MobileOne, behind pointwise convolutions.

    The depthwise convolutions before them still have the previous width.
    """
    kinds = {'base': SpanStage}

    def stage_specs(self) -> List[StageSpec]:
        """Describe every stage; two modules make a block."""
        return [spec._replace(drop_path_rates=spec.drop_path_rates[::2])
                for spec in super().stage_specs()]


class PyramidVigStage(SpanStage):
    """A stage of PyramidVig, which may begin with a downsampling module."""

    @classmethod
    def ends(cls, modules: nn.Module) -> List[int]:
        """Return the indices of blocks, which begin with a ``Grapher``."""
        return [i for i, module in enumerate(modules)
                if type(module[0]).__name__ == 'Grapher']


class PyramidVigAttentionMixin(FreshNormsMixin, SpansMixin):
    """Adds layer attention to a PyramidVig."""
    kinds = {'base': PyramidVigStage}


class RepLKStage(CheckpointedStage, SpanStage, WalkedStage):
    """A stage of RepLKNet; here a large-kernel block and its FFN make a block.

    The host would checkpoint both itself and bypass attention.
    """

    def run_module(self, module: nn.Module, x: Tensor) -> Tensor:
        """Run one of the host's blocks, checkpointed if ``with_cp``."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(module, x, use_reentrant=False)
        return module(x)

    def step(self, i: int, x: Tuple[Any, ...], memory: LayerMemory
             ) -> Tuple[Tuple[Any, ...], Optional[Tensor]]:
        """Run a block and its attention; x is in a tuple, see `WalkedStage`."""
        return WalkedStage.step(self, i, x, memory)

    def walk(self, i: int, x: Tensor,
             memory: LayerMemory) -> Tuple[Tensor, Optional[Tensor]]:
        """Run both modules of a block and its attention."""
        return self.attend(i, self.run_span(i, x), memory)


class RepLKNetAttentionMixin(FreshNormsMixin, SpansMixin):
    """Adds layer attention to a RepLKNet."""
    kinds = {'base': RepLKStage}
    blocks_name = 'blocks'

    def add_attention(self) -> None:
        """Add attention; its stages checkpoint blocks instead of the host."""
        super().add_attention()
        for stage in self.stages:
            stage.with_cp = False


class SquareStage(SpanStage):
    """A stage of maps (B, C, H, W), or of tokens that form a square map."""

    def step(self, i: int, x: Tensor,
             memory: LayerMemory) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block, and its attention on a map or the map of tokens."""
        x = self.run_span(i, x)  # (B, C, H, W) or (B, HW, C)
        if x.ndim == 4 or not self.visible[i]:
            return self.attend(i, x, memory)
        x, weights = self.attend(i, _to_map(x), memory)
        return map_to_tokens(x), weights

    def alone(self, x: Tensor) -> Tuple[AttentionStage, Tensor]:
        """Make a stage of maps of the same layers, and an input for it."""
        return super().alone(_to_map(x))

    def through(self, tap: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply a function to a map, or to the one that tokens form."""
        return tap(x) if x.ndim == 4 else map_to_tokens(tap(_to_map(x)))


class LeViTStage(SquareStage):
    """A stage of LeViT, whose blocks are an attention module and an MLP."""

    @classmethod
    def ends(cls, modules: nn.Module) -> List[int]:
        """Return the indices of MLPs, or of all modules without MLPs."""
        mlps = [i for i, module in enumerate(modules)
                if type(getattr(module, 'block', None)).__name__ == 'MLP']
        return mlps or list(range(len(modules)))


class LeViTAttentionMixin(SpansMixin):
    """Adds layer attention to a LeViT, whose norms are batch norms."""
    kinds = {'base': LeViTStage}
    caches_in_eval = True


class EfficientFormerStage(SquareStage):
    """A stage of EfficientFormer; in the last stage, maps become tokens."""

    @classmethod
    def ends(cls, modules: nn.Module) -> List[int]:
        """Return the indices of the blocks."""
        return [i for i, module in enumerate(modules)
                if type(module).__name__ in ('Meta3D', 'Meta4D')]


class EfficientFormerAttentionMixin(SpansMixin):
    """Adds layer attention to an EfficientFormer."""
    kinds = {'base': EfficientFormerStage}
    stages_name = 'network'
    caches_in_eval = True


def _channels_of(block: nn.Module) -> int:
    """Return the output channels of a block's last convolution or linear."""
    layers = [m for m in block.modules()
              if isinstance(m, (nn.Conv2d, nn.Linear))]
    return layers[-1].weight.shape[0]


def _to_map(x: Tensor) -> Tensor:
    """Return maps (B, C, H, W) unchanged, tokens (B, HW, C) as square maps."""
    if x.ndim == 4:
        return x
    side = isqrt(x.shape[1])
    return tokens_to_map(x, (side, side))
