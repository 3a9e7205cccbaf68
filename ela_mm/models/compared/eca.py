"""ECA: efficient channel attention (arXiv 1910.03151)."""
from mmengine.registry import MODELS
from torch import Tensor, nn

from .from_timm import timm_attention


@MODELS.register_module()
class ECAAttention(nn.Module):
    """Weigh a channel by the means of its neighbours (timm's ``eca``).

    ``x * sigmoid(conv1d(mean(x)))``, with a convolution over the channels of
    kernel size k without bias. k is ``int((log2 C + 1) / 2)`` or the next
    number, whichever is odd, and at least 3 (equation 12 of the paper): 3 for
    64 channels, 5 for 128 to 1024, 7 for 2048.

    Args:
        in_channels (int): C, number of channels.

    Raises:
        UsageError: If timm is missing.
    """

    _abbr_ = 'eca_attention'

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.timm = timm_attention('eca', in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels.

        Args:
            x (Tensor): (B, C, H, W).

        Returns:
            Tensor: (B, C, H, W).
        """
        # As timm does, but for its views, which a batch of no picture has not.
        mean = x.mean((2, 3)).unsqueeze(1)  # (B, 1, C)
        gate = self.timm.gate(self.timm.conv(mean))  # (B, 1, C)
        return x * gate.transpose(1, 2).unsqueeze(-1)
