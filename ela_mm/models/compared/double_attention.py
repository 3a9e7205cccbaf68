"""A2: double attention (arXiv 1810.11579)."""
from mmengine.registry import MODELS
from torch import Tensor, nn

from .squeeze import squeezed_channels


@MODELS.register_module()
class DoubleAttention(nn.Module):
    """Gather descriptors of the whole map, and distribute them to the pixels.

    Equation 6 of the paper, with A, B and V three 1x1 convolutions of x:

        Z = (A softmax(B)^T) softmax(V)

    The first softmax is over the pixels, so that the product gathers n
    descriptors, each a mean of A. The second is over the n descriptors. A last
    1x1 convolution brings Z back to C channels, and x is added. Reduction and
    placement are this project's choice: C / 4 in every block of stages 2 and 3
    gives about the paper's number of parameters (ResNet-50: 32.9 M, printed
    33.0).

    Args:
        in_channels (int): C, number of channels.
        reduction (int): Reduction of channels; A has m = C / reduction
            channels, and so have B and V (n = m). Defaults to 4.

    Raises:
        UsageError: If the reduction leaves no channel.
    """

    _abbr_ = 'double_attention'

    def __init__(self, in_channels: int, reduction: int = 4) -> None:
        super().__init__()
        inner = squeezed_channels(in_channels, reduction)
        self.features = nn.Conv2d(in_channels, inner, 1)
        self.gather = nn.Conv2d(in_channels, inner, 1)
        self.distribute = nn.Conv2d(in_channels, inner, 1)
        self.project = nn.Conv2d(inner, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Add to every pixel what it retrieves from the whole map.

        Args:
            x (Tensor): (B, C, H, W).

        Returns:
            Tensor: (B, C, H, W).
        """
        features = self.features(x)  # A: (B, m, H, W)
        gather = self.gather(x).flatten(2).softmax(2)  # (B, n, HW)
        distribute = self.distribute(x).flatten(2).softmax(1)  # (B, n, HW)
        descriptors = features.flatten(2) @ gather.transpose(1, 2)  # (B, m, n)
        out = (descriptors @ distribute).view_as(features)  # Z: (B, m, H, W)
        return x + self.project(out)  # (B, C, H, W)
