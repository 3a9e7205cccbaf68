"""The recurrent cell of DIA and DLA, which the layers of a stage share."""
from typing import Tuple

import torch
from torch import Tensor, nn

from .squeeze import squeezed_channels


class SharedCell(nn.Module):
    """An LSTM cell on channel means, squeezed, with a sigmoid for a tanh.

    Let y be the means and h, c the state, all (B, C). The gates are
    ``W(y) + U(h)``, where W and U are each a linear layer to C / r channels, a
    relu, and a linear layer to C channels per gate, with biases:

        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * sigmoid(c')

    This is DIA's cell. DLA's cell (DSU) has no gate o: ``h' = sigmoid(c')``.
    With r = 4 they have 2.5 C^2 + 8.5 C and 2 C^2 + 6.5 C parameters. The
    authors' code has a dropout that never takes effect, which is left out.

    Args:
        channels (int): C, number of channels.
        output_gate (bool): Whether there is a gate o.
        reduction (int): r, reduction of channels inside. Defaults to 4.

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
            y (Tensor): (..., B, C), input of the step.
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
    """Make the initial state: h and c of zeros, (B, C).

    Args:
        x (Tensor): (B, C', H, W), input of the stage.
        channels (int): C, number of channels of the cell.
    """
    return (x.new_zeros(x.shape[0], channels), ) * 2
