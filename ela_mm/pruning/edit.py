"""A change of the mask by hand, after a window has decided."""
from dataclasses import dataclass, field
from typing import List, Optional

from .windows import Window


@dataclass
class MaskEdit:
    """Which layers somebody has restored or skipped in a checkpoint.

    Attributes:
        epoch (int): Epochs done by then.
        iter (int): Iterations done by then.
        restored (List[str]): Names of layers that attend again.
        skipped (List[str]): Names of layers that attend no more.
        undone (Window | None): That whose decision was taken back.
    """
    epoch: int
    iter: int
    restored: List[str] = field(default_factory=list)
    skipped: List[str] = field(default_factory=list)
    undone: Optional[Window] = None
