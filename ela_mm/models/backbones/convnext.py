"""ConvNeXt, EdgeNeXt, HorNet, RepMLP: ``stages`` are sequences of blocks."""
from typing import List, Optional, Tuple

from torch import Tensor

from ..layers import LayerMemory
from .checkpointed import CheckpointedStage
from .placed import PlacedAttentionMixin
from .stages import AttentionLayerInfo, StageSpec


class ListedStagesMixin(PlacedAttentionMixin):
    """Adds layer attention to hosts with lists ``stages`` and ``channels``.

    Attributes:
        frozen_from (int): Value of ``frozen_stages`` that freezes the first
            stage only.
    """
    frozen_from = 1

    def stage_specs(self) -> List[StageSpec]:
        """Describe every stage."""
        return [
            StageSpec(f'stages.{i}', channels, self._attention_norm_cfg,
                      [0.] * len(stage), getattr(stage[0], 'with_cp', False))
            for i, (stage, channels) in enumerate(
                zip(self.stages, self.channels))
        ]

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether ``frozen_stages``, if any, freezes a layer."""
        return layer.stage <= getattr(
            self, 'frozen_stages', -1) - self.frozen_from + 1


class ConvNeXtAttentionMixin(ListedStagesMixin):
    """Adds layer attention to a ConvNeXt, V1 or V2, or an EdgeNeXt."""
    norm_cfg_by_default = dict(type='LN2d', eps=1e-6)

    def add_attention(self) -> None:
        """Add attention, and freeze it in stages that the host has frozen."""
        super().add_attention()
        self._freeze_stages()


class HorNetStage(CheckpointedStage):
    """A stage of HorNet, whose host would checkpoint blocks itself."""

    def step(self, i: int, x: Tensor,
             memory: LayerMemory) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block and its attention, as far as it is not skipped."""
        return self.attend(i, self.run_block(i, x), memory)


class HorNetAttentionMixin(ListedStagesMixin):
    """Adds layer attention to a HorNet."""
    kinds = {'base': HorNetStage}
    norm_cfg_by_default = dict(type='LN2d', eps=1e-6)
    frozen_from = 0

    def stage_specs(self) -> List[StageSpec]:
        """Describe every stage."""
        self.channels = [stage[-1].out_channels for stage in self.stages]
        return [spec._replace(with_cp=self.with_cp)
                for spec in super().stage_specs()]

    def add_attention(self) -> None:
        """Add attention; its stages checkpoint blocks instead of the host."""
        super().add_attention()
        self.with_cp = False
