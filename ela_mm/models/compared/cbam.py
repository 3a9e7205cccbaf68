"""CBAM: convolutional block attention module (arXiv 1807.06521)."""
from mmengine.registry import MODELS
from torch import Tensor, nn

from .any_batch import BatchNorm2dOfAnyBatch
from .from_timm import timm_attention
from .squeeze import squeezed_channels


@MODELS.register_module()
class CBAMAttention(nn.Module):
    """Weigh channels, then pixels (timm's ``cbam``).

    ``y = x * sigmoid(MLP(mean(x)) + MLP(max(x)))`` over the pixels, then
    ``y * sigmoid(bn(conv7x7([mean(y), max(y)])))`` over the channels: equations
    1 to 3 of the paper. The MLP has no biases. The authors' code has biases,
    and takes the maximum before the mean; but with biases the number of
    parameters differs from what the compared papers print.

    Args:
        in_channels (int): C, number of channels.
        reduction (int): r; the MLP has C / r channels inside. Defaults to 16,
            as in the paper.

    Raises:
        UsageError: If the reduction leaves no channel, or timm is missing.
    """

    _abbr_ = 'cbam_attention'

    def __init__(self, in_channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.timm = timm_attention(
            'cbam',
            in_channels,
            rd_channels=squeezed_channels(in_channels, reduction))
        self.timm.spatial.conv.bn = BatchNorm2dOfAnyBatch(1)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels, then the pixels.

        Args:
            x (Tensor): (B, C, H, W).

        Returns:
            Tensor: (B, C, H, W).
        """
        return self.timm(x)
