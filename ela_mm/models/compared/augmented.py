"""AA: attention augmented convolution (arXiv 1904.09925)."""
from typing import Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...errors import UsageError

_Size = Union[int, Sequence[int]]


@MODELS.register_module()
class AugmentedConv2d(nn.Module):
    """A convolution, some of whose channels come from self-attention.

    Equations 1 to 5 of the paper. Of C output channels, C - d_v are a
    convolution of x, and d_v are attention over all pixels of the map,

        softmax((Q K^T + S_H + S_W) / sqrt(d)) V    per head, then a 1x1

    where S_H[i, j] = q_i . r_H[row of j - row of i], with learned embeddings
    r_H of relative positions, shared by the heads; likewise S_W for columns.
    Memory and time of the attention grow with (H W)^2.

    It replaces a 3x3 convolution (plugin position ``'conv2'``, see
    :func:`~ela_mm.models.compared.plugins.apply_plugins`). The paper augments
    the 3x3 convolutions of the last stages. In stages 2, 3 and 4 with the
    defaults, ResNet-50 and -101 have as many parameters as it prints (25.8 and
    45.4 M).

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): C, number of output channels.
        kernel_size (int): Kernel size of the convolution; padding has to keep
            the size of the map.
        stride (int): Stride of the convolution. If it is not 1, attention sees
            x after 3x3 average pooling of this stride (the paper pools large
            maps; to do so here is this project's choice). Defaults to 1.
        padding (int): Padding of the convolution. Defaults to 0.
        dilation (int): Dilation of the convolution. Defaults to 1.
        groups (int): Groups of the convolution; has to be 1.
        bias (bool): Whether all convolutions have biases. Defaults to True.
        map_size (int | Sequence[int]): Height H and width W of the output map,
            for which 2 H - 1 and 2 W - 1 embeddings are learned. For a map of
            another size they are interpolated linearly, such that the largest
            offsets correspond.
        num_heads (int): h, number of heads. Defaults to 8.
        key_ratio (float): kappa, channels of all keys relative to C. Defaults
            to 0.2.
        value_ratio (float): upsilon, d_v relative to C. Defaults to 0.1. Both
            numbers of channels are rounded down to a multiple of the heads,
            d_v to at least one channel per head.
        min_key_dim (int): Least number of key channels d per head. Defaults to
            20.

    Raises:
        UsageError: If attention leaves no channel to the convolution, or if
            ``groups`` is not 1.
    """

    def __init__(self,
                 in_channels: int,
                 out_channels: int,
                 kernel_size: _Size,
                 stride: _Size = 1,
                 padding: _Size = 0,
                 dilation: _Size = 1,
                 groups: int = 1,
                 bias: bool = True,
                 *,
                 map_size: _Size,
                 num_heads: int = 8,
                 key_ratio: float = 0.2,
                 value_ratio: float = 0.1,
                 min_key_dim: int = 20) -> None:
        super().__init__()
        if groups != 1:
            raise UsageError(
                f'AugmentedConv2d in place of a convolution of {groups} groups: '
                'expected 1, as in ResNet; ResNeXt and RegNet cannot have it')
        key_dim = max(round(key_ratio * out_channels) // num_heads, min_key_dim)
        value_dim = max(round(value_ratio * out_channels) // num_heads, 1)
        values = num_heads * value_dim
        if values >= out_channels:
            raise UsageError(
                f'value_ratio={value_ratio} with num_heads={num_heads} takes '
                f'{values} of {out_channels} channels and leaves none to the '
                'convolution: lower one of them')
        self.out_channels = out_channels
        self.num_heads = num_heads
        self.widths = [num_heads * key_dim, num_heads * key_dim, values]
        self.conv = nn.Conv2d(
            in_channels,
            out_channels - values,
            kernel_size,
            stride,
            padding,
            dilation,
            bias=bias)
        self.qkv = nn.Conv2d(in_channels, sum(self.widths), 1, bias=bias)
        self.project = nn.Conv2d(values, values, 1, bias=bias)
        self.relative_rows, self.relative_columns = (
            nn.Parameter(torch.randn(2 * size - 1, key_dim) * key_dim**-0.5)
            for size in _pair(map_size))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and attend.

        Args:
            x (Tensor): (B, C_in, H_in, W_in).

        Returns:
            Tensor: (B, C, H, W); channels of the attention come last.
        """
        return torch.cat([self.conv(x), self._attend(x)], dim=1)

    def _attend(self, x: Tensor) -> Tensor:
        if max(self.conv.stride) > 1:
            x = F.avg_pool2d(
                x, 3, self.conv.stride, padding=1, count_include_pad=False)
        height, width = x.shape[2:]
        q, k, v = (
            part.unflatten(1, (self.num_heads, -1))  # (B, h, d, H, W)
            for part in self.qkv(x).split(self.widths, dim=1))
        q = q.permute(0, 1, 3, 4, 2) * q.shape[2]**-0.5  # (B, h, H, W, d)
        rows = _table(self.relative_rows, height)  # (H, H, d)
        columns = _table(self.relative_columns, width)  # (W, W, d)
        # Logits of a query at (y, x) for all rows z, and for all columns z.
        to_rows = torch.einsum('bhyxd,yzd->bhyxz', q, rows)
        to_columns = torch.einsum('bhyxd,xzd->bhyxz', q, columns)
        relative = to_rows[..., None] + to_columns[..., None, :]
        logits = (
            q.flatten(2, 3) @ k.flatten(3) +
            relative.flatten(4).flatten(2, 3))  # (B, h, HW, HW)
        out = v.flatten(3) @ logits.softmax(-1).transpose(2, 3)
        # (B, h, d_v / h, HW) to (B, d_v, H, W)
        return self.project(out.flatten(1, 2).unflatten(2, (height, width)))


def _table(embeddings: Tensor, size: int) -> Tensor:
    """Look up embeddings of all pairs: (2 N - 1, d) -> (size, size, d)."""
    if len(embeddings) != 2 * size - 1:
        embeddings = F.interpolate(
            embeddings.T[None],
            size=2 * size - 1,
            mode='linear',
            align_corners=True)[0].T
    positions = torch.arange(size, device=embeddings.device)
    return embeddings[positions - positions[:, None] + size - 1]


def _pair(size: _Size) -> Tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
