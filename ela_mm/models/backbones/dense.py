"""DenseNet: every layer of a dense block adds as many channels."""
from typing import Any, Callable, List, Optional, Tuple, Union

import torch
from torch import Tensor

from ..layers import LayerMemory
from .placed import PlacedAttentionMixin
from .sequences import last_channels
from .stages import AttentionLayerInfo, AttentionStage, StageSpec
from .walked import WalkedStage


class DenseStage(WalkedStage):
    """The layers of a dense block, each on all features before it.

    Attention works on the channels that a layer adds, and retrieves from those
    that earlier ones have added. The host's loop meets one layer, which adds
    the channels of all.
    """

    def forward(self, features: List[Tensor]) -> Tensor:
        """Run the layers and their attention.

        Args:
            features (List[Tensor]): (B, C_in, H, W), one tensor.

        Returns:
            Tensor: (B, T C, H, W), what T layers have added.
        """
        return torch.cat(super().forward(features)[len(features):], 1)

    def new_memory(self, x: Tuple[List[Tensor]]) -> LayerMemory:
        """Choose, once a pass, between buffers and plain lists."""
        return super().new_memory(x[0])

    def walk(self, i: int, x: List[Tensor], memory: LayerMemory
             ) -> Tuple[List[Tensor], Optional[Tensor]]:
        """Run a layer on all features, and its attention on what it adds."""
        added, weights = self.attend(i, self.block(i)(x), memory)
        return [*x, added], weights  # (B, C, H, W), (B, h, n)

    def alone(self, x: Tensor) -> Tuple[AttentionStage, Tensor]:
        """Make a stage of the same layers, and an input for it."""
        return super().alone(x[:, -self.attention[-1].channels:])

    def through(self, tap: Callable[[Tensor], Tensor],
                x: Union[Tensor, List[Tensor]],
                *args: Any) -> Union[Tensor, List[Tensor]]:
        """Let what the last layer has added go through a function."""
        if isinstance(x, Tensor):
            width = self.attention[-1].channels
            return torch.cat((x[:, :-width], tap(x[:, -width:])), 1)
        return [*x[:-1], tap(x[-1])]


class DenseNetAttentionMixin(PlacedAttentionMixin):
    """Adds layer attention to a DenseNet."""
    kinds = {'base': DenseStage}

    def stage_specs(self) -> List[StageSpec]:
        """Take every dense block."""
        return [
            StageSpec(f'stages.{i}.block', last_channels(stage.block[-1]),
                      self._attention_norm_cfg, [0.] * len(stage.block))
            for i, stage in enumerate(self.stages)
        ]

    def add_attention(self) -> None:
        """Add it, and freeze it where the host has frozen its block."""
        super().add_attention()
        self._freeze_stages()

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Tell whether ``frozen_stages``, 0 for none, freezes a layer."""
        return layer.stage <= self.frozen_stages
