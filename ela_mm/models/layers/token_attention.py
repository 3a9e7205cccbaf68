"""Layer attention of a plain vision transformer, as MRLA's DeiT has it.

"Cross-Layer Retrospective Retrieving via Layer Attention" (Fang et al., ICLR
2023), and its code for DeiT: a layer norm before attention, none behind it.
"""
from typing import Optional, Tuple

import torch
from torch import Tensor

from .layer_attention import LayerAttention
from .memory import LayerMemory


class TokenLayerAttention(LayerAttention):
    """Attention of one layer of tokens, with the norm before it.

    Patches attend as the map that they form. The class token and others beside
    them have no place on a map: to each, its own norm is added.

    Args:
        channels (int): C.
        head_dim (int): d, channels per head. Defaults to 16.
        norm_cfg (dict, optional): Of the tokens. Defaults to
            dict(type='LN', eps=1e-6).
        zero_init (bool): Multiply the term by a learnable scale per channel
            that starts at 0, which MRLA has not. Defaults to False.

    Raises:
        UsageError: If ``head_dim`` is not a positive divisor of ``channels``.
    """
    remembering = ('norm', 'key', 'value')

    def __init__(self,
                 channels: int,
                 head_dim: int = 16,
                 norm_cfg: Optional[dict] = None,
                 zero_init: bool = False) -> None:
        super().__init__(
            channels,
            head_dim,
            act=False,
            norm_cfg=norm_cfg or dict(type='LN', eps=1e-6),
            zero_init=zero_init)

    def attend(self, x: Tensor,
               memory: LayerMemory) -> Tuple[Tensor, Tensor]:
        """Retrieve features, and say from which layers.

        Args:
            x (Tensor): (B, N, C), a block's output; the last H W tokens are
                patches.
            memory (LayerMemory): Knows H and W; this layer's key and value
                are added.

        Returns:
            tuple: The term (B, N, C) to add to ``x``, and the attention
            weights (B, h, n) over the n layers in memory.
        """
        beside, patches = self._split(x, memory)  # (B, E, C), (B, C, H, W)
        retrieved, weights = super().attend(patches, memory)
        term = retrieved.flatten(2).transpose(1, 2)  # (B, HW, C)
        if beside.shape[1]:
            term = torch.cat((beside, term), 1)  # (B, N, C)
        if self.scale is not None:
            term = (term * self.scale.weight).to(term.dtype)
        return term, weights

    def remember(self, x: Tensor, memory: LayerMemory) -> None:
        """Add this layer's key and value to the memory without attending.

        Args:
            x (Tensor): (B, N, C), a block's output.
            memory (LayerMemory): Written.
        """
        super().remember(self._split(x, memory)[1], memory)

    def _keep_value(self, x: Tensor, memory: LayerMemory) -> None:
        """Convolve the map; that of few patches has zeros between them.

        So do sparse convolutions, with which convolutional networks are
        trained on masked pictures (ConvNeXt V2, arXiv 2301.00808). What they
        compute where no patch lies is left out again.
        """
        if memory.kept is None:
            super()._keep_value(x, memory)
            return
        height, width = memory.hw_shape
        places = memory.kept.unsqueeze(1).expand(-1, self.channels, -1)
        whole = x.new_zeros(x.shape[0], self.channels, height * width).scatter(
            2, places, x.flatten(2))  # (B, C, HW)
        value = self.value(whole.unflatten(2, (height, width)))
        memory.values.append(
            value.flatten(2).gather(2, places).unsqueeze(2))  # (B, C, 1, N)

    def _split(self, x: Tensor, memory: LayerMemory) -> Tuple[Tensor, Tensor]:
        """Normalise tokens (B, N, C); patches are a map in channels last.

        Where patches are left out, those that are there lie in one row.
        """
        height, width = memory.hw_shape
        if memory.kept is not None:
            height, width = 1, memory.kept.shape[1]
        extra = x.shape[1] - height * width
        x = self.norm(x)
        patches = x[:, extra:].transpose(1, 2).reshape(
            x.shape[0], self.channels, height, width)
        return x[:, :extra], patches

    def _can_recompute(self) -> bool:
        """The norm is not behind the sum, where banks would form it."""
        return False

    def _finish(self, retrieved: Tensor) -> Tensor:
        """Nothing comes between the weighted sum and the sum with x."""
        return retrieved
