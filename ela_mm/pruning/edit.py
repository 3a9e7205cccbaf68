"""Describes a change of the mask by hand, after a window has decided."""
from dataclasses import dataclass, field
from typing import List, Optional

from .windows import Window


@dataclass
class MaskEdit:
    """Which layers somebody has restored or skipped in a checkpoint.

    Attributes:
        epoch (int): Number of epochs done when it was edited.
        iter (int): Number of iterations done when it was edited.
        restored (List[str]): Names of layers made active again.
        skipped (List[str]): Names of layers that are skipped from here on.
        undone (Window | None): Window whose decision was undone; None if the
            layers were chosen by name.
    """
    epoch: int
    iter: int
    restored: List[str] = field(default_factory=list)
    skipped: List[str] = field(default_factory=list)
    undone: Optional[Window] = None

    def __str__(self) -> str:
        done = [f'{what} {", ".join(names)}' for what, names in
                (('restored', self.restored), ('skipped', self.skipped))
                if names]
        return ' and '.join(done) + (
            f' (window {self.undone} undone)' if self.undone else '')
