"""BAM: bottleneck attention module (arXiv 1807.06514)."""
from mmengine.registry import MODELS
from torch import Tensor, nn

from .any_batch import BatchNorm1dOfAnyBatch, BatchNorm2dOfAnyBatch
from .squeeze import squeezed_channels


@MODELS.register_module()
class BAMAttention(nn.Module):
    """Weigh channels and pixels at once.

    ``x * (1 + sigmoid(channel * spatial))``, where ``channel`` (B, C, 1, 1) is
    two linear layers on the channel means, and ``spatial`` (B, 1, H, W) is a
    1x1, two 3x3 (dilation 4) and a 1x1 convolution. A batch norm and a relu
    follow every layer but the last of each branch. Equation 2 of the paper adds
    the two branches; the authors' code, which the compared papers ran,
    multiplies them, and so does this.

    In training, the channel branch normalises a batch of one sample by running
    statistics (this project's choice, since one sample has no variance).

    Args:
        in_channels (int): C, number of channels.
        reduction (int): r; both branches have C / r channels inside. Defaults
            to 16, as in the paper.

    Raises:
        UsageError: If the reduction leaves no channel.
    """

    _abbr_ = 'bam_attention'

    def __init__(self, in_channels: int, reduction: int = 16) -> None:
        super().__init__()
        inner = squeezed_channels(in_channels, reduction)
        self.channel = nn.Sequential(
            nn.Linear(in_channels, inner), BatchNorm1dOfAnyBatch(inner),
            nn.ReLU(inplace=True), nn.Linear(inner, in_channels))
        self.spatial = nn.Sequential(
            nn.Conv2d(in_channels, inner, 1), BatchNorm2dOfAnyBatch(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=4, dilation=4),
            BatchNorm2dOfAnyBatch(inner), nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=4, dilation=4),
            BatchNorm2dOfAnyBatch(inner), nn.ReLU(inplace=True),
            nn.Conv2d(inner, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels and pixels.

        Args:
            x (Tensor): (B, C, H, W).

        Returns:
            Tensor: (B, C, H, W).
        """
        channel = self.channel(x.mean((2, 3)))[..., None, None]  # (B, C, 1, 1)
        spatial = self.spatial(x)  # (B, 1, H, W)
        return x * (1 + (channel * spatial).sigmoid())  # (B, C, H, W)
