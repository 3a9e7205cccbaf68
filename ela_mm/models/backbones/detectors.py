"""DetectoRS, whose recursive pass runs the blocks by another method."""
from typing import Any, Optional, Tuple

from torch import Tensor

from ..layers import LayerMemory
from .resnet import PlanesMixin
from .walked import WalkedStage


class RecursiveStage(WalkedStage):
    """A stage with attention in the recursive pass as in the first one."""

    def rfp_forward(self, x: Tensor, rfp_feat: Optional[Tensor]) -> Tensor:
        """Run the blocks with a feature of the previous pass, and attention.

        Args:
            x (Tensor): (B, C_in, H_in, W_in), input of the stage.
            rfp_feat (Tensor | None): (B, C_rfp, H, W), feature of the previous
                pass.

        Returns:
            Tensor: (B, C, H, W).
        """
        return self(x, rfp_feat)

    def walk(self, i: int, x: Tensor, memory: LayerMemory,
             *args: Any) -> Tuple[Tensor, Optional[Tensor]]:
        """Run a block by the method of the pass, and its attention."""
        block = self.block(i)
        x = block.rfp_forward(x, *args) if args else block(x)
        return self.attend(i, x, memory)  # (B, C, H, W), (B, h, n)


class DetectoRSMixin(PlanesMixin):
    """Adds layer attention to a ResNet of DetectoRS."""
    kinds = {'base': RecursiveStage}
