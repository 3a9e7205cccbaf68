"""BAM: bottleneck attention module (arXiv 1807.06514)."""
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .squeeze import squeezed_channels


class _BatchNorm1dOfAnyBatch(nn.BatchNorm1d):
    """A norm over the batch that also takes a batch of one in training.

    One sample has no variance: it is normalised by the running statistics,
    which it leaves as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] == 1:
            return F.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=False,
                eps=self.eps)
        return super().forward(x)


@MODELS.register_module()
class BAMAttention(nn.Module):
    """Weigh channels and pixels at once.

    ``x * (1 + sigmoid(channel * spatial))`` with ``channel`` (B, C, 1, 1), two
    linear layers on the means, and ``spatial`` (B, 1, H, W), a 1x1, two 3x3
    (dilation 4) and a 1x1 convolution. The paper's equation 2 adds the two;
    the authors' code, which the compared papers ran, multiplies, and so does
    this. A batch norm and a relu follow every layer but the last of each.

    In training, a batch of one sample is normalised by the channel branch's
    running statistics (this project's choice: there is no variance to take).

    Args:
        in_channels (int): C.
        reduction (int): r, both branches have C / r channels inside. Defaults
            to 16, the paper's.

    Raises:
        UsageError: If the reduction leaves no channel.
    """

    _abbr_ = 'bam_attention'

    def __init__(self, in_channels: int, reduction: int = 16) -> None:
        super().__init__()
        inner = squeezed_channels(in_channels, reduction)
        self.channel = nn.Sequential(
            nn.Linear(in_channels, inner), _BatchNorm1dOfAnyBatch(inner),
            nn.ReLU(inplace=True), nn.Linear(inner, in_channels))
        self.spatial = nn.Sequential(
            nn.Conv2d(in_channels, inner, 1), nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=4, dilation=4),
            nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=4, dilation=4),
            nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
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
