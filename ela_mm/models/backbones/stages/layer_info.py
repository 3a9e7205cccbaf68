"""What the rest of the package is told about an attention layer."""
from dataclasses import dataclass, field
from typing import Optional

from torch import nn


@dataclass(frozen=True)
class AttentionLayerInfo:
    """One attention layer of a backbone.

    Attributes:
        name (str): ``layer<stage>.<index>``, as its block is named in the
            state dict.
        stage (int): Stage, from 1.
        index (int): Block within the stage, from 0.
        active (bool): False where the layer is skipped.
        sees (int): n, layers in memory when this one attends, itself
            included.
        stage_name (str): The stage's name in the backbone.
        module (nn.Module | None): The layer itself.
    """
    name: str
    stage: int
    index: int
    active: bool
    sees: int = field(default=0, compare=False)
    stage_name: str = ''
    module: Optional[nn.Module] = field(
        default=None, compare=False, repr=False)

    @property
    def short(self) -> str:
        """``<stage>.<index>``, for pictures and tables."""
        return short_name(self.stage, self.index)

    @property
    def prefix(self) -> str:
        """What its names in the backbone's state dict begin with."""
        return f'{self.stage_name}.attention.{self.index}'


def short_name(stage: int, index: int) -> str:
    """Name a layer in few letters: ``3.4``."""
    return f'{stage}.{index}'
