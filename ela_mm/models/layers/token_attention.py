"""Layer attention for plain vision transformers, as in MRLA's DeiT.

"Cross-Layer Retrospective Retrieving via Layer Attention" (Fang et al., ICLR
2023), and its code for DeiT: a layer norm before attention, and none after it.
"""
from typing import Optional, Tuple

import torch
from torch import Tensor

from .layer_attention import LayerAttention
from .memory import LayerMemory


class TokenLayerAttention(LayerAttention):
    """Layer attention over tokens, with the norm before it.

    Patch tokens are handled as the map that they form. The class token and other
    extra tokens have no place on that map: their term is the token itself,
    normalised.

    Args:
        channels (int): C, channels of a token.
        head_dim (int): d, channels per head. Defaults to 16.
        norm_cfg (dict, optional): mmcv config of the norm of the tokens.
            Defaults to dict(type='LN', eps=1e-6).
        zero_init (bool): Multiply the term by a learnable scale per channel
            that starts at 0; MRLA has no such scale. Defaults to False.

    Raises:
        UsageError: If ``head_dim`` is not a positive divisor of ``channels``.
    """
    remembering = ('norm', 'key', 'value')
    data_format = 'channels_last'

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
        """Retrieve features, and return them with the attention weights.

        Args:
            x (Tensor): (B, N, C), the block's output; the last H W tokens are
                patches.
            memory (LayerMemory): The stage's memory, which holds H and W, and to
                which this layer's key and value are added.

        Returns:
            tuple: The term (B, N, C) to add to ``x``, and the attention
            weights P (B, h, n) over the n layers in memory.
        """
        beside, patches = self._split(x, memory)  # (B, E, C), (B, C, H, W)
        retrieved, weights = super().attend(patches, memory)
        term = retrieved.flatten(2).transpose(1, 2)  # (B, HW, C)
        if beside.shape[1]:
            term = torch.cat((beside, term), 1)  # (B, N, C)
        return self.scaled(term), weights

    def remember(self, x: Tensor, memory: LayerMemory) -> None:
        """Add this layer's key and value to the memory without attending.

        Args:
            x (Tensor): (B, N, C), the block's output.
            memory (LayerMemory): The stage's memory, which is written to.
        """
        super().remember(self._split(x, memory)[1], memory)

    def _keep_value(self, x: Tensor, memory: LayerMemory) -> None:
        """Convolve the map, with zeros where patches were masked out.

        Sparse convolutions treat masked images the same way (ConvNeXt V2, arXiv
        2301.00808). Results at masked positions are dropped.
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
        """Normalise tokens (B, N, C), and split them into extra ones and the map.

        The map is in channels last. If patches were masked out, it is a single
        row of the patches that were kept.
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
        """Return False: the banks apply the norm after the sum, not before it."""
        return False

    def _finish(self, retrieved: Tensor) -> Tensor:
        """Apply only act: the norm came before, the scale is for all tokens."""
        return self.act(retrieved)
