"""Layer attention (MRLA-base): a block retrieves features of earlier blocks.

Equations 4 and 5 of "Enhancing Layer Attention Efficiency through Pruning
Redundant Retrievals" (arXiv 2503.06473), after "Cross-Layer Retrospective
Retrieving via Layer Attention" (MRLA, Fang et al., ICLR 2023).
"""
import math
from itertools import chain
from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import UsageError
from .bank.batch_norm import apply_norm, can_be_recomputed
from .bank.keys import average_pool, without_autocast
from .bank.layer import Plan, attend
from .memory import LayerMemory
from .scaled import ScaledAttention
from .traced import TracedSum, is_traced, per_channel, traced_value
from .trained_norm import build_trained_norm
from .watched import is_watched


def pooled_kernel_size(channels: int) -> int:
    """Return the kernel size of the query's and key's convolutions over channels.

    The rule is ECA's, which MRLA adopts: ``int(|(log2 C + 1) / 2|)``, made odd.

    Args:
        channels (int): C, channels of the block's output.

    Returns:
        int: The kernel size: 3 for C = 64, 5 for 128 to 1024, 7 for 2048.
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


def retrieve(weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Sum the values of a stage's layers, weighted per sample and head.

    Equation 5 of the paper, o = sum_i P[i] * v_i.

    Args:
        weights (Tensor): (B, h, n), the attention weights P of this layer
            over the n layers in memory.
        values (Sequence[Tensor]): n tensors (B, C, H, W); head j owns the
            channels j * C / h to (j + 1) * C / h.

    Returns:
        Tensor: (B, C, H, W), in the values' dtype.
    """
    factors = per_channel(weights, values[0])  # n of (B, C, 1, 1)
    retrieved = factors[0] * values[0]  # (B, C, H, W)
    for factor, value in zip(factors[1:], values[1:]):
        # In place: autograd keeps factor and value, never the partial sums.
        retrieved.addcmul_(factor, value)
    return retrieved


class WeightedSum(nn.Module):
    """:func:`retrieve` as a module; as such it separates value and norm.

    See :class:`~ela_mm.models.layers.watched.BranchedModule`.
    """

    def forward(self, weights: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Sum n values (B, C, H, W), weighted by (B, h, n)."""
        if is_traced(weights):
            return TracedSum.apply(weights, *values)
        return retrieve(weights, values)


def is_plain(conv: nn.Module) -> bool:
    """Tell whether reading a query's or key's weight can replace calling it.

    Args:
        conv (nn.Module): A query or key module, possibly replaced by the user.

    Returns:
        bool: False if it is no longer the plain convolution over channels that
        was built, or if a hook expects it to be called.
    """
    return (type(conv) is nn.Conv1d and conv.bias is None
            and conv.dilation == (1, ) and conv.padding_mode == 'zeros'
            and not is_watched(conv))


def is_depthwise(conv: nn.Module) -> bool:
    """Tell whether reading a value's weight can replace calling it.

    Args:
        conv (nn.Module): A value module, possibly replaced by the user.

    Returns:
        bool: False if it is not a plain convolution without bias, or if a hook
        expects it to be called.
    """
    return (type(conv) is nn.Conv2d and conv.bias is None
            and conv.padding_mode == 'zeros' and conv.padding != 'same'
            and not is_watched(conv))


def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """Run a value's convolution, (B, C, H, W) -> (B, C, H, W)."""
    if is_depthwise(conv) and is_traced(x, conv.weight):
        return traced_value(conv, x)
    return conv(x)


def project(conv: nn.Module, pooled: Tensor) -> Tensor:
    """Run a convolution over channels, (B, 1, C) -> (B, 1, C), in pooled's dtype."""
    if is_plain(conv):
        return F.conv1d(
            pooled,
            conv.weight.to(pooled.dtype),
            padding=conv.weight.shape[-1] // 2)
    # Replicas of DataParallel hold plain tensors instead of parameters.
    dtype = next((t.dtype for t in chain(conv.parameters(), vars(conv).values())
                  if isinstance(t, Tensor)), pooled.dtype)
    return conv(pooled.to(dtype)).to(pooled.dtype)


class LayerAttention(ScaledAttention):
    """Attention of one layer over itself and the earlier layers of its stage.

    Args:
        channels (int): C, channels of the block's output.
        head_dim (int): d, channels per head; C / d heads. Defaults to 16,
            MRLA-base's.
        act (bool): Whether a relu follows the norm. Defaults to True.
        norm_cfg (dict, optional): mmcv config of the norm that follows the sum.
            Its affine parameters are always trained: ``requires_grad=False``
            in a config is meant for pretrained norms, and this norm is new.
            Defaults to dict(type='BN').
        drop_path_rate (float): Probability of dropping the term for a sample
            (stochastic depth). Defaults to 0.
        zero_init (bool): Multiply the term by a learnable scale per channel
            that starts at 0, see
            :class:`~ela_mm.models.layers.scaled.ScaledAttention`. Defaults to
            False.
        with_cp (bool): Save memory in backward where the value bank cannot
            recompute the norm
            (:func:`~ela_mm.models.layers.bank.batch_norm.can_be_recomputed`):
            the norm and what follows it are checkpointed, and so run twice.
            Defaults to False.

    Attributes:
        remembering (Tuple[str, ...]): Names of the children that
            :meth:`remember` runs.
        fused (bool): Whether a GPU runs the layer in Triton kernels, see
            :mod:`ela_mm.models.layers.bank.gpu`. Initially False.

    Raises:
        UsageError: If ``head_dim`` is not a positive divisor of ``channels``.
    """
    remembering: Tuple[str, ...] = ('key', 'value')
    fused = False

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
        self.retrieval = WeightedSum()
        self.norm = build_trained_norm(norm_cfg, channels)
        # Not in place: that would break backward hooks on the norm.
        self.act = nn.ReLU() if act else nn.Identity()
        self.drop_path = DropPath(
            drop_path_rate) if drop_path_rate else nn.Identity()
        self.add_scale(channels, zero_init)

    def forward(self, x: Tensor, memory: LayerMemory) -> Tensor:
        """Retrieve features for the output of a block.

        Args:
            x (Tensor): (B, C, H, W), the block's output.
            memory (LayerMemory): The stage's memory, to which this layer's key,
                value and attention weights are added.

        Returns:
            Tensor: (B, C, H, W), the term to add to ``x``.
        """
        term, memory.weights = self.attend(x, memory)
        return term

    def attend(self, x: Tensor,
               memory: LayerMemory) -> Tuple[Tensor, Tensor]:
        """Retrieve features, and return them with the attention weights.

        Args:
            x (Tensor): (B, C, H, W), the block's output.
            memory (LayerMemory): The stage's memory, to which this layer's key
                and value are added.

        Returns:
            tuple: The term (B, C, H, W) to add to ``x``, and the attention
            weights P (B, h, n) over the n layers in memory, float32 or wider.
        """
        if memory.key_bank is not None:
            term, weights = self._attend_banked(x, memory)
        else:
            weights = self._weigh(x, memory)  # (B, h, n)
            self._keep_value(x, memory)
            term = self._finish(self._retrieve(weights, memory))
        return self.drop_path(term), weights

    def add_to(self, x: Tensor, memory: LayerMemory) -> Tuple[Tensor, Tensor]:
        """Retrieve features, and add them to the output of a block.

        Args:
            x (Tensor): (B, C, H, W), the block's output.
            memory (LayerMemory): The stage's memory, to which this layer's key
                and value are added.

        Returns:
            tuple: The sum (B, C, H, W), and the attention weights P (B, h, n)
            as from :meth:`attend`.
        """
        if (memory.key_bank is not None and self._can_recompute()
                and type(self.drop_path) is nn.Identity
                and not is_watched(self.drop_path)):
            return self._attend_banked(x, memory, adds=True)
        term, weights = self.attend(x, memory)
        return x + term, weights

    def remember(self, x: Tensor, memory: LayerMemory) -> None:
        """Add this layer's key and value to the memory without attending.

        Args:
            x (Tensor): (B, C, H, W), the block's output.
            memory (LayerMemory): The stage's memory, which is written to.
        """
        if memory.key_bank is not None:
            attend(x, memory.key_bank, memory.value_bank,
                   Plan(self.head_dim, self.value, fused=self.fused),
                   self.key.weight, None, None)
            return
        self._weigh(x, memory, attends=False)
        self._keep_value(x, memory)

    # --- in the banks ---------------------------------------------------------

    def can_bank(self) -> bool:
        """Tell whether the banks may replace query, key, value and sum."""
        return is_plain(self.query) and is_plain(self.key) and (
            is_depthwise(self.value) and type(self.retrieval) is WeightedSum
            and not is_watched(self.retrieval))

    def _attend_banked(self,
                       x: Tensor,
                       memory: LayerMemory,
                       adds: bool = False) -> Tuple[Tensor, Tensor]:
        """Return the term, or x plus the term if ``adds``; and P (B, h, n)."""
        fused = self._can_recompute()
        plan = Plan(self.head_dim, self.value, self.norm if fused else None,
                    fused and isinstance(self.act, nn.ReLU), adds, self.fused)
        scale = self.scale.weight if fused and self.scale is not None else None
        term, weights = attend(x, memory.key_bank, memory.value_bank, plan,
                               self.key.weight, self.query.weight, scale)
        return term if fused else self._finish(term), weights

    def _can_recompute(self) -> bool:
        """Tell whether the banks may compute norm, act and scale themselves."""
        return (can_be_recomputed(self.norm)
                and type(self.act) in (nn.ReLU, nn.Identity)
                and not is_watched(self.act) and self.can_scale())

    # --- equation 4: the attention weights -----------------------------------

    def _weigh(self,
               x: Tensor,
               memory: LayerMemory,
               attends: bool = True) -> Optional[Tensor]:
        """Return P = softmax(q k^T / sqrt(d)), or None unless ``attends``.

        P is float32 or wider, also under autocast: in half precision weights
        that are close would become equal, and KL compares them.
        """
        heads = (x.shape[0], self.num_heads, self.head_dim)
        with without_autocast(x.device):
            pooled = average_pool(x).unsqueeze(1)  # (B, 1, C)
            key = project(self.key, pooled)  # (B, 1, C)
            memory.keys.append(key.reshape(heads))  # (B, h, d)
            if not attends:
                return None
            query = project(self.query, pooled)  # (B, 1, C)
            query = query.reshape(heads).unsqueeze(2)  # (B, h, 1, d)
            logits = (query * torch.stack(memory.keys, 2)).sum(-1)  # (B, h, n)
            return torch.softmax(
                logits / math.sqrt(self.head_dim), dim=-1)  # (B, h, n)

    # --- equation 5: the weighted sum, and what follows it --------------------

    def _keep_value(self, x: Tensor, memory: LayerMemory) -> None:
        memory.values.append(convolve(self.value, x))  # (B, C, H, W)

    def _retrieve(self, weights: Tensor, memory: LayerMemory) -> Tensor:
        """Return o = sum_i P_i v_i, (B, C, H, W)."""
        return self.retrieval(weights, memory.values)

    def _finish(self, retrieved: Tensor) -> Tensor:
        """Apply norm, relu and scale to the sum."""
        # A checkpointed batch norm would update its running statistics twice.
        if (self.with_cp and retrieved.requires_grad
                and not isinstance(self.norm, nn.BatchNorm2d)):
            return checkpoint(self._finish_now, retrieved, use_reentrant=False)
        return self._finish_now(retrieved)

    def _finish_now(self, retrieved: Tensor) -> Tensor:
        return self.scaled(self.act(apply_norm(self.norm, retrieved)))
