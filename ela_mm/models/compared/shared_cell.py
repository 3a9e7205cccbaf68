"""The recurrent cell that the layers of a stage share, of DIA and DLA."""
from typing import Tuple

import torch
from torch import Tensor, nn

from .squeeze import squeezed_channels


class SharedCell(nn.Module):
    """An LSTM's cell on channel means, squeezed, and with a sigmoid for tanh.

    With y the means and h, c the state, all (B, C), gates follow from
    ``W(y) + U(h)``, where W and U are each a linear layer to C / r channels, a
    relu and a linear layer to C per gate, with biases:

        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * sigmoid(c')

    DIA's cell is this; DLA's (DSU) has no gate o: ``h' = sigmoid(c')``. At r = 4
    they have 2.5 C^2 + 8.5 C and 2 C^2 + 6.5 C parameters. The authors' codes
    hold a dropout that never acts, which is left out.

    Args:
        channels (int): C.
        output_gate (bool): Whether there is a gate o.
        reduction (int): r. Defaults to 4.

    Raises:
        UsageError: If the reduction leaves no channel.
    """

    def __init__(self,
                 channels: int,
                 output_gate: bool,
                 reduction: int = 4) -> None:
        super().__init__()
        inner = squeezed_channels(channels, reduction)
        self.output_gate = output_gate
        gates = 4 if output_gate else 3
        self.input, self.hidden = (
            nn.Sequential(
                nn.Linear(channels, inner), nn.ReLU(inplace=True),
                nn.Linear(inner, gates * channels)) for _ in range(2))

    def forward(self, y: Tensor, hidden: Tensor,
                cell: Tensor) -> Tuple[Tensor, Tensor]:
        """Take a step.

        Args:
            y (Tensor): (..., B, C), what the step sees.
            hidden (Tensor): (B, C), h.
            cell (Tensor): (B, C), c.

        Returns:
            tuple: The next h and c, (..., B, C).
        """
        dtype = self.input[0].weight.dtype
        gates = (self.input(y.to(dtype)) + self.hidden(hidden.to(dtype))).chunk(
            4 if self.output_gate else 3, -1)  # each (..., B, C)
        cell = gates[1].sigmoid() * cell + gates[0].sigmoid() * gates[2].tanh()
        hidden = torch.sigmoid(cell)
        return gates[3].sigmoid() * hidden if self.output_gate else hidden, cell


def start(x: Tensor, channels: int) -> Tuple[Tensor, Tensor]:
    """Make the state of a stage's start: h and c of zeros, (B, C).

    Args:
        x (Tensor): (B, C', H, W), the stage's input.
        channels (int): C, of the cell.
    """
    return (x.new_zeros(x.shape[0], channels), ) * 2
