"""Describes an attention layer to the rest of the package."""
from dataclasses import dataclass, field
from typing import Optional

from torch import nn


@dataclass(frozen=True)
class AttentionLayerInfo:
    """One attention layer of a backbone.

    Attributes:
        name (str): Name of the layer, ``layer<stage>.<index>``, as that of its
            block in the state dict.
        stage (int): Number of the stage, from 1.
        index (int): Index of the block within the stage, from 0.
        active (bool): Whether the layer is not skipped.
        sees (int): n, number of layers in memory when this layer attends,
            itself included.
        stage_name (str): Name of the stage in the backbone.
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
        """Short name for pictures and tables, ``<stage>.<index>``."""
        return short_name(self.stage, self.index)

    @property
    def prefix(self) -> str:
        """Prefix of the layer's keys in the backbone's state dict."""
        return f'{self.stage_name}.attention.{self.index}'


def short_name(stage: int, index: int) -> str:
    """Return the short name of a layer, such as ``3.4``."""
    return f'{stage}.{index}'
