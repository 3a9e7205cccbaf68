"""DIA: dense-and-implicit attention (DIANet, arXiv 1905.10671)."""
from typing import List, Tuple

from torch import Tensor, nn

from ..backbones.stages import StageSpec, register_attention
from .recurrent import RecurrentStage, run_block
from .shared_cell import SharedCell, start


@register_attention('dia')
class DIAStage(RecurrentStage):
    """A stage whose blocks weigh their channels by a shared recurrent cell.

    With y (B, C, H, W) the output of a block's last norm:

        h, c = cell(mean of y over the positions, h, c)
        x = relu(h * y + shortcut of x)

    All blocks of a stage share the cell, a
    :class:`~ela_mm.models.compared.shared_cell.SharedCell` with an output gate;
    h and c start at 0 in each stage. Drop path follows the gate. DIA has no
    weights over layers, and so nothing to prune.

    Args:
        blocks (nn.Sequential): Blocks of the host.
        layers (List[SharedCell]): The cell, in a list.
        spec (StageSpec): Description of the stage.
    """

    def __init__(self, blocks: nn.Sequential, layers: List[nn.Module],
                 spec: StageSpec) -> None:
        super().__init__(blocks, layers, spec)
        self.channels = spec.channels
        self._length = len(blocks)

    @classmethod
    def build(cls, blocks: nn.Sequential, spec: StageSpec) -> 'DIAStage':
        """Add the cell to a host's blocks."""
        return cls(blocks, [SharedCell(spec.channels, output_gate=True)], spec)

    def new_memory(self, x: Tensor) -> List[Tensor]:
        """Start with h and c of zeros, (B, C)."""
        return list(start(x, self.channels))

    def run(self, i: int, x: Tensor, hidden: Tensor,
            cell: Tensor) -> Tuple[Tensor, ...]:
        """Run a block, with channels weighed by the cell."""
        state: List[Tensor] = []

        def weigh(y: Tensor) -> Tensor:
            state.extend(self.attention[0](y.mean((2, 3)), hidden, cell))
            return y * state[0][..., None, None]  # (B, C, H, W)

        x = run_block(self.block(i), x, weigh)  # (B, C, H, W)
        return (x, *state)

    def norms(self, i: int) -> List[nn.Module]:
        """Return no norms: DIA adds none."""
        return []

    def __len__(self) -> int:
        return self._length
