"""Layer attention (MRLA-base): a block retrieves features of earlier blocks.

Equations 4 and 5 of "Enhancing Layer Attention Efficiency through Pruning
Redundant Retrievals" (arXiv 2503.06473), after "Cross-Layer Retrospective
Retrieving via Layer Attention" (MRLA, Fang et al., ICLR 2023).
"""
import math
from typing import Optional

import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.scale import LayerScale
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import UsageError
from .bank.batch_norm import can_be_formed_again
from .bank.keys import weigh
from .bank.values import retrieve
from .memory import LayerMemory


def pooled_kernel_size(channels: int) -> int:
    """Kernel of the query and key convolution over channels.

    ECA's rule, which MRLA takes over: ``int(|(log2 C + 1) / 2|)``, made odd.

    Args:
        channels (int): C.

    Returns:
        int: 3 for C = 64, 5 from 128 to 1024, 7 for 2048.
    """
    size = int(abs((math.log2(channels) + 1) / 2))
    return size if size % 2 else size + 1


def check_head_dim(channels: int, head_dim: int) -> None:
    """Raise a UsageError unless ``head_dim`` divides ``channels``."""
    if head_dim < 1 or channels % head_dim:
        raise UsageError(
            f'head_dim={head_dim} does not divide the {channels} channels of '
            'the layer; choose a head_dim that divides the channels of every '
            'stage (the paper: 16, and 32 for MRLA-light)')


class LayerAttention(nn.Module):
    """Attention of one layer over itself and the earlier layers of its stage.

    Args:
        channels (int): C, channels of the block's output.
        head_dim (int): d, channels per head; C / d heads. Defaults to 16,
            MRLA-base's.
        act (bool): Whether a relu follows the norm. Defaults to True.
        norm_cfg (dict, optional): Norm of the retrieved features, built by
            mmcv. Its affine parameters are trained whatever ``requires_grad``
            it holds: that entry describes pretrained norms, this one is new.
            Defaults to dict(type='BN').
        drop_path_rate (float): Probability of dropping the term for a sample
            (stochastic depth). Defaults to 0.
        zero_init (bool): Multiply the term by a learnable scale per channel
            that starts at 0 (LayerScale): the term is 0 at first and still
            learns. A zero norm weight would not: relu has no gradient at 0.
            This project's choice. Defaults to False.
        with_cp (bool): Keep less for backward: a norm that the value bank
            does not form again
            (:func:`~ela_mm.models.layers.bank.batch_norm.can_be_formed_again`) is
            then checkpointed with what follows it, and runs twice. Defaults
            to False.

    Raises:
        UsageError: If ``head_dim`` is not a positive divisor of ``channels``.
    """

    def __init__(self,
                 channels: int,
                 head_dim: int = 16,
                 act: bool = True,
                 norm_cfg: Optional[dict] = None,
                 drop_path_rate: float = 0.,
                 zero_init: bool = False,
                 with_cp: bool = False) -> None:
        super().__init__()
        check_head_dim(channels, head_dim)
        self.channels = channels
        self.head_dim = head_dim
        self.with_cp = with_cp
        self.num_heads = channels // head_dim
        kernel = pooled_kernel_size(channels)
        padding = kernel // 2
        self.query = nn.Conv1d(1, 1, kernel, padding=padding, bias=False)
        self.key = nn.Conv1d(1, 1, kernel, padding=padding, bias=False)
        self.value = nn.Conv2d(
            channels, channels, 3, padding=1, groups=channels, bias=False)
        norm_cfg = {**(norm_cfg or dict(type='BN')), 'requires_grad': True}
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()
        self.drop_path = DropPath(
            drop_path_rate) if drop_path_rate else nn.Identity()
        self.scale = LayerScale(
            channels, data_format='channels_first',
            scale=0.) if zero_init else None

    def forward(self, x: Tensor, memory: LayerMemory) -> Tensor:
        """Retrieve features for the output of a block.

        Args:
            x (Tensor): (B, C, H, W), the block's output.
            memory (LayerMemory): The stage's memory; this layer's key, value
                and attention weights are added to it.

        Returns:
            Tensor: (B, C, H, W), the term to add to ``x``.
        """
        self.remember(x, memory)
        return self.drop_path(self.retrieve(memory))  # (B, C, H, W)

    def remember(self,
                 x: Tensor,
                 memory: LayerMemory,
                 attends: bool = True) -> None:
        """Add this layer's key and value to the memory, and its weights.

        Args:
            x (Tensor): (B, C, H, W), the block's output.
            memory (LayerMemory): Written.
            attends (bool): Whether the layer weighs the layers in memory,
                itself included. False leaves ``memory.weights`` as they are.
                Defaults to True.
        """
        kernels = self.key.weight, self.query.weight if attends else None
        weights = (
            weigh(x, *kernels, self.head_dim, memory.keys)
            if memory.key_bank is None else memory.key_bank.weigh(
                x, *kernels, self.head_dim))  # (B, h, n)
        if attends:
            memory.weights = weights
        value = self.value(x)  # (B, C, H, W)
        if memory.value_bank is None:
            memory.values.append(value)
        else:
            memory.value_bank.write(value, self.head_dim)

    def retrieve(self, memory: LayerMemory) -> Tensor:
        """Sum the values by the last weights; norm, relu and scale follow.

        Args:
            memory (LayerMemory): n values, and weights (B, h, n).

        Returns:
            Tensor: (B, C, H, W).
        """
        weights, bank = memory.weights, memory.value_bank
        scale = None if self.scale is None else self.scale.weight
        if bank is not None and can_be_formed_again(self.norm):
            return bank.retrieve(weights, self.norm,
                                 isinstance(self.act, nn.ReLU), scale)
        retrieved = (
            bank.retrieve(weights) if bank is not None else retrieve(
                weights, memory.values))  # (B, C, H, W)
        if self.with_cp and retrieved.requires_grad:
            return checkpoint(self._finish, retrieved, use_reentrant=False)
        return self._finish(retrieved)

    def _finish(self, retrieved: Tensor) -> Tensor:
        term = self.act(self.norm(retrieved))  # (B, C, H, W)
        if self.scale is None:
            return term
        # In the term's dtype, lest a float32 scale widens half precision.
        return term * self.scale.weight.to(term.dtype).view(-1, 1, 1)

    def _load_from_state_dict(self, state_dict, prefix, *args,
                              **kwargs) -> None:
        """Reconcile the optional scale with what the checkpoint holds."""
        name = prefix + 'scale.weight'
        if self.scale is None and name in state_dict:
            raise UsageError(
                f'the checkpoint holds {name!r}: its layer attention was '
                'trained with zero_init_attention=True, and without the scale '
                'its features would be wrong; set zero_init_attention=True in '
                'the backbone that loads it')
        if (self.scale is not None and name not in state_dict
                and prefix + 'value.weight' in state_dict):
            # Attention trained without a scale is attention of scale 1.
            state_dict[name] = torch.ones_like(self.scale.weight)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
