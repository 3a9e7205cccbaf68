"""DenseNet: every layer of a dense block adds equally many channels."""
from typing import Any, Callable, List, Optional, Tuple, Union

import torch
from torch import Tensor

from ..layers import LayerMemory
from .placed import PlacedAttentionMixin
from .sequences import last_channels
from .stages import AttentionLayerInfo, AttentionStage, StageSpec
from .walked import WalkedStage


class DenseStage(WalkedStage):
    """The layers of a dense block, each of which takes all earlier features.

    Attention works on the channels that a layer adds, and retrieves from those
    that earlier layers have added. To the host's loop, the stage is a single
    layer that adds the channels of all.
    """

    def forward(self, features: List[Tensor]) -> Tensor:
        """Run the layers and their attention.

        Args:
            features (List[Tensor]): One tensor (B, C_in, H, W).

        Returns:
            Tensor: (B, T C, H, W), the channels that T layers have added.
        """
        return torch.cat(super().forward(features)[len(features):], 1)

    def new_memory(self, x: Tuple[List[Tensor]]) -> LayerMemory:
        """Choose the memory of a forward pass: buffers or plain lists."""
        return super().new_memory(x[0])

    def walk(self, i: int, x: List[Tensor], memory: LayerMemory
             ) -> Tuple[List[Tensor], Optional[Tensor]]:
        """Run a layer on all features, and attention on what it adds."""
        added, weights = self.attend(i, self.block(i)(x), memory)
        return [*x, added], weights  # (B, C, H, W), (B, h, n)

    def alone(self, x: Tensor) -> Tuple[AttentionStage, Tensor]:
        """Make a stage of the same layers, and an input for it."""
        return super().alone(x[:, -self.attention[-1].channels:])

    def through(self, tap: Callable[[Tensor], Tensor],
                x: Union[Tensor, List[Tensor]],
                *args: Any) -> Union[Tensor, List[Tensor]]:
        """Apply a function to the channels that the last layer has added."""
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
        """Add attention, and freeze it in blocks that the host has frozen."""
        super().add_attention()
        self._freeze_stages()

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether ``frozen_stages``, 0 for none, freezes a layer."""
        return layer.stage <= self.frozen_stages
