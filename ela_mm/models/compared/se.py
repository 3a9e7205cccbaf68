"""SE: squeeze and excitation (arXiv 1709.01507)."""
from mmengine.registry import MODELS
from torch import Tensor, nn

from .from_timm import timm_attention
from .squeeze import squeezed_channels


@MODELS.register_module()
class SEAttention(nn.Module):
    """Weigh channels by a function of all channel means (timm's ``se``).

    ``x * sigmoid(W2 relu(W1 mean(x)))``, equations 2 to 4 of the paper. W1
    (C/r x C) and W2 (C x C/r) have no biases; otherwise the number of
    parameters would differ from what the compared papers print.

    Args:
        in_channels (int): C, number of channels.
        reduction (int): r, reduction of channels inside. Defaults to 16, as in
            the paper.

    Raises:
        UsageError: If the reduction leaves no channel, or timm is missing.
    """

    _abbr_ = 'se_attention'

    def __init__(self, in_channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.timm = timm_attention(
            'se',
            in_channels,
            rd_channels=squeezed_channels(in_channels, reduction),
            bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels.

        Args:
            x (Tensor): (B, C, H, W).

        Returns:
            Tensor: (B, C, H, W).
        """
        return self.timm(x)
