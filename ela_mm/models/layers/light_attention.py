"""MRLA-light, the paper's lightweight comparison (equation 7).

Instead of retrieving from every earlier layer, each layer mixes its own value
with the block's shortcut, which carries what came before. It has no weights
over layers, so there is no redundancy to measure and nothing to prune.
"""
import math
from typing import Optional

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from .bank import can_bank
from .bank.batch_norm import apply_norm, can_be_recomputed
from .bank.keys import at_least_float32, without_autocast
from .bank.layer import Plan
from .bank.light import Mix
from .layer_attention import (
    check_head_dim,
    convolve,
    is_depthwise,
    is_plain,
    pooled_kernel_size,
    project,
)
from .scaled import ScaledAttention
from .trained_norm import build_trained_norm
from .watched import is_watched


class GatedSum(nn.Module):
    """Equation 7's sum as a module; as such it separates value and norm.

    See :class:`~ela_mm.models.layers.watched.BranchedModule`.
    """

    def forward(self, gate: Tensor, value: Tensor, mix: Tensor,
                identity: Tensor) -> Tensor:
        """Return gate (B, C) * value + mix (C) * identity, (B, C, H, W)."""
        own = gate.to(value.dtype)[..., None, None] * value  # (B, C, H, W)
        return torch.addcmul(own, mix.view(1, -1, 1, 1).to(own.dtype),
                             identity.to(own.dtype))


class LightLayerAttention(ScaledAttention):
    """One layer's MRLA-light term.

    Args:
        channels (int): C, channels of the block's output.
        head_dim (int): d, channels per head. Defaults to 32, MRLA-light's.
        norm_cfg (dict, optional): Norm of the term, always trained. Defaults
            to dict(type='BN').
        drop_path_rate (float): Probability of dropping the term for a sample.
            Defaults to 0.
        zero_init (bool): Multiply the term by a learnable scale per channel
            that starts at 0, as :class:`~ela_mm.LayerAttention` does. This
            project's choice. Defaults to False.

    Raises:
        UsageError: If ``head_dim`` is not a positive divisor of ``channels``.
    """

    def __init__(self,
                 channels: int,
                 head_dim: int = 32,
                 norm_cfg: Optional[dict] = None,
                 drop_path_rate: float = 0.,
                 zero_init: bool = False) -> None:
        super().__init__()
        check_head_dim(channels, head_dim)
        self.head_dim = head_dim
        self.num_heads = channels // head_dim
        kernel = pooled_kernel_size(channels)
        self.query = nn.Conv1d(
            1, 1, kernel, padding=kernel // 2, bias=False)
        self.key = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)
        self.value = nn.Conv2d(
            channels, channels, 3, padding=1, groups=channels, bias=False)
        self.mixing = GatedSum()
        # MRLA initialises the shortcut's share from N(0, 1).
        self.mix = nn.Parameter(torch.randn(channels))  # lambda of eq. 7
        self.norm = build_trained_norm(norm_cfg, channels)
        self.drop_path = DropPath(
            drop_path_rate) if drop_path_rate else nn.Identity()
        self.add_scale(channels, zero_init)

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """Mix the layer's own value with the block's shortcut.

        Args:
            x (Tensor): (B, C, H, W), the block's output.
            identity (Tensor): (B, C, H, W), the block's shortcut, after its
                downsample where it has one.

        Returns:
            Tensor: (B, C, H, W), the term to add to ``x``.
        """
        mixed = self.mixing(
            self._gate(x), convolve(self.value, x), self.mix,
            identity)  # (B, C, H, W)
        return self.drop_path(self.scaled(apply_norm(self.norm, mixed)))

    def add_to(self, x: Tensor, identity: Tensor) -> Tensor:
        """Add the term to the block's output.

        Args:
            x (Tensor): (B, C, H, W), the block's output.
            identity (Tensor): (B, C, H, W), the block's shortcut.

        Returns:
            Tensor: (B, C, H, W).
        """
        if not can_bank((self, ), x):
            return x + self(x, identity)
        scale = None if self.scale is None else self.scale.weight
        return Mix.apply(x, identity, self.key.weight, self.query.weight,
                         self.value.weight, self.mix, self.norm.weight,
                         self.norm.bias, scale,
                         Plan(self.head_dim, self.value, self.norm, adds=True))

    def can_bank(self) -> bool:
        """Tell whether one autograd function may replace all the modules."""
        return (is_plain(self.query) and is_plain(self.key)
                and is_depthwise(self.value)
                and all(type(module) is kind and not is_watched(module)
                        for module, kind in ((self.mixing, GatedSum),
                                             (self.drop_path, nn.Identity)))
                and can_be_recomputed(self.norm) and self.can_scale())

    def _gate(self, x: Tensor) -> Tensor:
        """Return sigmoid(q k^T / sqrt(d)) per channel, (B, C), float32 or wider."""
        heads = (x.shape[0], self.num_heads, self.head_dim)
        with without_autocast(x.device):
            pooled = x.mean(
                (2, 3), dtype=at_least_float32(x.dtype)).unsqueeze(1)  # (B, 1, C)
            query = project(self.query, pooled).view(heads)  # (B, h, d)
            key = project(self.key, pooled).view(heads)  # (B, h, d)
            logits = (query * key).sum(-1) / math.sqrt(self.head_dim)  # (B, h)
            # Not repeat_interleave, which waits for the GPU in torch 2.0.
            return torch.sigmoid(logits).unsqueeze(2).expand(
                -1, -1, self.head_dim).flatten(1)
