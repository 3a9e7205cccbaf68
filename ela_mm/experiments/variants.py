"""MRLA-base as its equations are written: the benchmark's reference.

Every layer concatenates its key and value to all earlier ones, and the
weighted sum is a matrix product over the result. It computes what
:class:`~ela_mm.LayerAttention` computes, and copies all earlier values at
every layer. It is here to be measured against, not to be used.
"""
import math
from typing import Callable, Dict, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.layers import LayerAttention, LayerMemory, LightLayerAttention
from ..sparsity.cka import cka_sr, pooled
from ..sparsity.stages import find_stages

MAX_FEATURES = 2**20  # as in CKARegularizationHook


class ConcatenatingAttention(LayerAttention):
    """A :class:`~ela_mm.LayerAttention` that concatenates.

    The memory's lists hold one tensor each: the keys (B, h, n, d) and the
    values (B, h, n, d * H * W) so far. Drop path and the scale of
    ``zero_init`` are left out.
    """

    def attend(self, x: Tensor,
               memory: LayerMemory) -> Tuple[Tensor, Tensor]:
        """Retrieve features for the output of a block.

        Args:
            x (Tensor): (B, C, H, W), the block's output.
            memory (LayerMemory): Written.

        Returns:
            tuple: The term (B, C, H, W) to add to ``x``, and the attention
            weights (B, h, n).
        """
        batch, heads, dim = len(x), self.num_heads, self.head_dim
        pooled = x.mean((2, 3)).unsqueeze(1)  # (B, 1, C)
        query = self.query(pooled).view(batch, heads, 1, dim)  # (B, h, 1, d)
        key = self.key(pooled).view(batch, heads, 1, dim)  # (B, h, 1, d)
        value = self.value(x).reshape(batch, heads, 1, -1)  # (B, h, 1, d H W)
        keys = torch.cat([*memory.keys, key], dim=2)  # (B, h, n, d)
        values = torch.cat([*memory.values, value], dim=2)  # (B, h, n, d H W)
        memory.keys, memory.values = [keys], [values]
        logits = query @ keys.transpose(2, 3) / math.sqrt(dim)  # (B, h, 1, n)
        weights = torch.softmax(logits, dim=-1)  # (B, h, 1, n)
        retrieved = (weights.to(values.dtype) @ values).view_as(x)
        term = self.act(self.norm(retrieved))  # (B, C, H, W)
        return term, weights.squeeze(2)


class OwnValueAttention(LayerAttention):
    """A layer that retrieves from itself alone: a lower bound of the cost."""

    def attend(self, x: Tensor, memory: LayerMemory) -> Tuple[Tensor, None]:
        """Take the layer's own value for the retrieved features.

        Args:
            x (Tensor): (B, C, H, W), the block's output.
            memory (LayerMemory): Not used.

        Returns:
            tuple: The term (B, C, H, W) to add to ``x``, and None: the layer
            has no weights.
        """
        return self.act(self.norm(self.value(x))), None  # (B, C, H, W)


class SeparateLightAttention(LightLayerAttention):
    """MRLA-light operation by operation, as MRLA's published code has it.

    The scale of ``zero_init`` and drop path are left out.
    """

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """Mix the layer's own value with the block's shortcut.

        Args:
            x (Tensor): (B, C, H, W), the block's output.
            identity (Tensor): (B, C, H, W), the block's shortcut.

        Returns:
            Tensor: (B, C, H, W), the term to add to ``x``.
        """
        heads = (len(x), self.num_heads, self.head_dim)
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(2).transpose(1, 2)
        query = self.query(pooled).view(heads).unsqueeze(2)  # (B, h, 1, d)
        key = self.key(pooled).view(heads).unsqueeze(2)  # (B, h, 1, d)
        value = self.value(x).view(*heads, *x.shape[2:])  # (B, h, d, H, W)
        logits = torch.einsum('bhid,bhjd->bhij', query, key)  # (B, h, 1, 1)
        gate = torch.sigmoid(logits * self.head_dim**-0.5)
        own = (value * gate[..., None].expand_as(value)).view_as(x)
        mix = self.mix.view(1, -1, 1, 1).expand_as(identity)
        return self.norm(own + mix * identity)  # (B, C, H, W)


def replace_attention(backbone: nn.Module, cls: type) -> None:
    """Let a backbone's attention layers be of another class.

    Args:
        backbone (nn.Module): With the attention that ``cls`` derives from;
            changed in place, the parameters stay the same.
        cls (type): Without state of its own, a subclass of
            :class:`~ela_mm.LayerAttention` or of
            :class:`~ela_mm.models.layers.light_attention.LightLayerAttention`.
    """
    for module in backbone.modules():
        if type(module) in cls.__bases__:
            module.__class__ = cls


def watched_similarity(backbone: nn.Module,
                       samples: int = 8) -> Callable[[], Tensor]:
    """Watch a backbone's blocks as CKARegularizationHook does.

    Args:
        backbone (nn.Module): With stages of blocks.
        samples (int): The first so many of a batch. Defaults to 8, the hook's.

    Returns:
        Callable: The regulariser of the last forward pass, weighted by 1e-4.
    """
    stages = find_stages(backbone)
    seen: Dict[str, Tensor] = {}
    for blocks in stages.values():
        for name, block in blocks.items():
            block.register_forward_hook(
                lambda block, args, output, name=name: seen.update(
                    {name: output[:samples]}))

    def regularizer() -> Tensor:
        features = [[pooled(seen[name], MAX_FEATURES) for name in blocks]
                    for blocks in stages.values() if len(blocks) > 1]
        seen.clear()
        return (1e-4 * cka_sr(features)).float()

    return regularizer
