"""Sequences of which not every module is a block: some only lead to one.

EfficientFormer, LeViT, MobileOne, PyramidVig and RepLKNet. What downsamples,
flattens or is the first half of a block runs with the block that it leads to.
"""
from math import isqrt
from typing import Any, Callable, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import LayerMemory
from .checkpointed import CheckpointedStage
from .fresh_norms import FreshNormsMixin
from .placed import PlacedAttentionMixin, evaluate_again
from .sequences import BatchNormSequencesMixin
from .stages import AttentionLayerInfo, AttentionStage, StageSpec
from .walked import WalkedStage, map_to_tokens, tokens_to_map


class SpanStage(AttentionStage):
    """A stage whose layers attend behind some of its modules.

    A family says by :meth:`ends` behind which.
    """

    @classmethod
    def ends(cls, modules: nn.Module) -> List[int]:
        """Numbers of the modules that attention follows; here the odd ones."""
        return list(range(1, len(modules), 2))

    @classmethod
    def build(cls, blocks: nn.Sequential, spec: StageSpec,
              **options: Any) -> 'SpanStage':
        """Add attention to a host's modules; arguments as the backbone's."""
        stage = super().build(blocks, spec, **options)
        stage._ends = cls.ends(blocks)
        return stage

    def block(self, i: int) -> nn.Module:
        """The module that attention layer number i follows."""
        return self._modules[str(self._ends[i])]

    def block_name(self, i: int) -> str:
        """What this module is called in the backbone."""
        return f'{self.name}.{self._ends[i]}'

    def block_parts(self, i: int) -> List[str]:
        """Names in the backbone of what leads to this module, and its own."""
        first = self._ends[i - 1] + 1 if i else 0
        return [f'{self.name}.{j}' for j in range(first, self._ends[i] + 1)]

    def run_span(self, i: int, x: Tensor) -> Tensor:
        """Run block number i, after what leads to it."""
        first = self._ends[i - 1] + 1 if i else 0
        for j in range(first, self._ends[i] + 1):
            x = self.run_module(self._modules[str(j)], x)
        return x

    def run_module(self, module: nn.Module, x: Tensor) -> Tensor:
        """Run one of the host's modules."""
        return module(x)

    def step(self, i: int, x: Tensor,
             memory: LayerMemory) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block, and its attention as far as it is not skipped."""
        return self.attend(i, self.run_span(i, x), memory)


class SpansMixin(PlacedAttentionMixin):
    """Adds layer attention to sequences with such modules.

    Attributes:
        stages_name (str): Of the host's list of stages.
        blocks_name (str): Of the modules in a stage; '' where it is these.
    """
    stages_name = 'stages'
    blocks_name = ''

    def stage_specs(self) -> List[StageSpec]:
        """Take every stage."""
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
        """Tell whether ``frozen_stages``, if there is such, freezes a layer."""
        return layer.stage <= getattr(self, 'frozen_stages', 0)


class MobileOneAttentionMixin(BatchNormSequencesMixin):
    """Adds layer attention to a MobileOne, behind pointwise convolutions.

    Depthwise ones before them have the width of the block before.
    """
    kinds = {'base': SpanStage}

    def stage_specs(self) -> List[StageSpec]:
        """Take every stage; two modules are a block."""
        return [spec._replace(drop_path_rates=spec.drop_path_rates[::2])
                for spec in super().stage_specs()]


class PyramidVigStage(SpanStage):
    """A stage of PyramidVig: blocks of two halves, a convolution before them."""

    @classmethod
    def ends(cls, modules: nn.Module) -> List[int]:
        """Numbers of the blocks; what downsamples has no graph."""
        return [i for i, module in enumerate(modules)
                if type(module[0]).__name__ == 'Grapher']


class PyramidVigAttentionMixin(FreshNormsMixin, SpansMixin):
    """Adds layer attention to a PyramidVig."""
    kinds = {'base': PyramidVigStage}


class RepLKStage(CheckpointedStage, SpanStage, WalkedStage):
    """A stage of RepLKNet: a block with a large kernel and one without are one.

    The host checkpoints both by itself, and would pass attention by.
    """

    def run_module(self, module: nn.Module, x: Tensor) -> Tensor:
        """Run one of the host's blocks, in backward again if it is to."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(module, x, use_reentrant=False)
        return module(x)

    def step(self, i: int, x: Tuple[Any, ...], memory: LayerMemory
             ) -> Tuple[Tuple[Any, ...], Optional[Tensor]]:
        """Run a block and its attention, of the tuple that walks."""
        return WalkedStage.step(self, i, x, memory)

    def walk(self, i: int, x: Tensor,
             memory: LayerMemory) -> Tuple[Tensor, Optional[Tensor]]:
        """Run both modules of a block, and its attention."""
        return self.attend(i, self.run_span(i, x), memory)


class RepLKNetAttentionMixin(FreshNormsMixin, SpansMixin):
    """Adds layer attention to a RepLKNet."""
    kinds = {'base': RepLKStage}
    blocks_name = 'blocks'

    def add_attention(self) -> None:
        """Add it, and let its stages checkpoint blocks in the host's place."""
        super().add_attention()
        for stage in self.stages:
            stage.with_cp = False


class SquareStage(SpanStage):
    """A stage of maps (B, C, H, W), or of tokens that form a square map."""

    def step(self, i: int, x: Tensor,
             memory: LayerMemory) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block, and its attention on a map, or on one of tokens."""
        x = self.run_span(i, x)  # (B, C, H, W) or (B, HW, C)
        if x.ndim == 4 or not self.visible[i]:
            return self.attend(i, x, memory)
        x, weights = self.attend(i, _to_map(x), memory)
        return map_to_tokens(x), weights

    def alone(self, x: Tensor) -> Tuple[AttentionStage, Tensor]:
        """Make a stage of maps of the same layers, and an input for it."""
        return super().alone(_to_map(x))

    def through(self, tap: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Let a map, or the one that tokens form, go through a function."""
        return tap(x) if x.ndim == 4 else map_to_tokens(tap(_to_map(x)))


class LeViTStage(SquareStage):
    """A stage of LeViT: attention, or what downsamples, and an MLP are a block."""

    @classmethod
    def ends(cls, modules: nn.Module) -> List[int]:
        """Numbers of the MLPs; of all, if there are none."""
        mlps = [i for i, module in enumerate(modules)
                if type(getattr(module, 'block', None)).__name__ == 'MLP']
        return mlps or list(range(len(modules)))


class LeViTAttentionMixin(SpansMixin):
    """Adds layer attention to a LeViT, whose norms are batch norms."""
    kinds = {'base': LeViTStage}

    def add_attention(self) -> None:
        """Add it; and let loading renew what the host keeps in evaluation."""
        super().add_attention()
        self.register_load_state_dict_post_hook(evaluate_again)


class EfficientFormerStage(SquareStage):
    """A stage of EfficientFormer; in the last one, maps become tokens."""

    @classmethod
    def ends(cls, modules: nn.Module) -> List[int]:
        """Numbers of the blocks."""
        return [i for i, module in enumerate(modules)
                if type(module).__name__ in ('Meta3D', 'Meta4D')]


class EfficientFormerAttentionMixin(SpansMixin):
    """Adds layer attention to an EfficientFormer."""
    kinds = {'base': EfficientFormerStage}
    stages_name = 'network'

    def add_attention(self) -> None:
        """Add it; and let loading renew what the host keeps in evaluation."""
        super().add_attention()
        self.register_load_state_dict_post_hook(evaluate_again)


def _channels_of(block: nn.Module) -> int:
    """C of what a block returns: its last convolution's or linear layer's."""
    layers = [m for m in block.modules()
              if isinstance(m, (nn.Conv2d, nn.Linear))]
    return layers[-1].weight.shape[0]


def _to_map(x: Tensor) -> Tensor:
    """(B, C, H, W) as it is; (B, HW, C) as the square map it forms, a view."""
    if x.ndim == 4:
        return x
    side = isqrt(x.shape[1])
    return tokens_to_map(x, (side, side))
