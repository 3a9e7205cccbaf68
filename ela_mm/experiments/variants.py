"""Other implementations of attention, as references for benchmarks.

:class:`ConcatenatingAttention` is MRLA-base as its equations are written: every
layer concatenates its key and value to all earlier ones, and the weighted sum
is a matrix product. It computes the same as :class:`~ela_mm.LayerAttention` but
copies all earlier values at every layer. None of these classes is meant to be
used in training.
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
    """A :class:`~ela_mm.LayerAttention` that concatenates keys and values.

    Each list of the memory holds a single tensor: all keys so far,
    (B, h, n, d), and all values so far, (B, h, n, d * H * W). Drop path and the
    scale of ``zero_init`` are left out.
    """

    def attend(self, x: Tensor,
               memory: LayerMemory) -> Tuple[Tensor, Tensor]:
        """Retrieve features for the output of a block.

        Args:
            x (Tensor): (B, C, H, W), output of the block.
            memory (LayerMemory): Memory, changed in place.

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
    """A layer that retrieves only from itself: a lower bound of the cost."""

    def attend(self, x: Tensor, memory: LayerMemory) -> Tuple[Tensor, None]:
        """Use the layer's own value as the retrieved features.

        Args:
            x (Tensor): (B, C, H, W), output of the block.
            memory (LayerMemory): Memory, not used.

        Returns:
            tuple: The term (B, C, H, W) to add to ``x``, and None: the layer
            has no weights.
        """
        return self.act(self.norm(self.value(x))), None  # (B, C, H, W)


class SeparateLightAttention(LightLayerAttention):
    """MRLA-light, operation by operation as in MRLA's published code.

    The scale of ``zero_init`` and drop path are left out.
    """

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """Mix the layer's own value with the block's shortcut.

        Args:
            x (Tensor): (B, C, H, W), output of the block.
            identity (Tensor): (B, C, H, W), shortcut of the block.

        Returns:
            Tensor: (B, C, H, W), term to add to ``x``.
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
    """Change the class of a backbone's attention layers.

    Args:
        backbone (nn.Module): Backbone with attention of the base class of
            ``cls``, changed in place; parameters stay the same.
        cls (type): Subclass of :class:`~ela_mm.LayerAttention` or of
            :class:`~ela_mm.models.layers.light_attention.LightLayerAttention`
            without state of its own.
    """
    for module in backbone.modules():
        if type(module) in cls.__bases__:
            module.__class__ = cls


def watched_similarity(backbone: nn.Module,
                       samples: int = 8) -> Callable[[], Tensor]:
    """Collect the outputs of a backbone's blocks as CKARegularizationHook does.

    Args:
        backbone (nn.Module): Backbone with stages of blocks.
        samples (int): Number of samples of a batch to use. Defaults to 8, as in
            the hook.

    Returns:
        Callable: Function that returns the regulariser of the last forward
        pass, weighted by 1e-4.
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
