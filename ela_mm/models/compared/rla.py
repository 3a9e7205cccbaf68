"""RLA: recurrent layer aggregation (RLA-Net, arXiv 2110.11852)."""
import logging
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Iterator, List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer
from mmengine.logging import print_log
from torch import Tensor, nn

from ..backbones.stages import StageSpec, register_attention
from ..layers.bank.batch_norm import apply_norm
from ..layers.trained_norm import build_trained_norm
from ..layers.watched import BranchedModule
from .recurrent import RecurrentStage, run_block

# Number of channels of the state, k in the paper.
CHANNELS = 32

# State that a stage hands to the next one in the running forward pass, since
# the backbone hands on x alone. Local to the thread.
_CARRIED: ContextVar[Optional[List[Tensor]]] = ContextVar(
    'ela_mm_rla_state', default=None)


class RLALayer(BranchedModule):
    """Modules that update the state after a block.

    Args:
        norm_cfg (dict): Config of the norm, which is always trained.
        channels (int, optional): C, output channels of the blocks, for the
            first layer of a stage, which holds the two convolutions that all
            layers share. Defaults to None: the layer has a norm only.
        ends (bool): Whether the layer also holds the norm of the state at the
            end of a classifier. Defaults to False.
    """

    def __init__(self,
                 norm_cfg: dict,
                 channels: Optional[int] = None,
                 ends: bool = False) -> None:
        super().__init__()
        self.norm = build_trained_norm(norm_cfg, CHANNELS)
        if channels is not None:
            self.project = nn.Conv2d(channels, CHANNELS, 1, bias=False)
            self.recur = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        if ends:
            self.final_norm = build_trained_norm(norm_cfg, CHANNELS)


@register_attention('rla')
class RLAStage(RecurrentStage):
    """A stage whose blocks read and write a state of 32 channels.

    With y (B, C, H, W) the output of a block's last norm:

        x, y = block(x and h, concatenated)
        h = conv3x3(tanh(norm(h + conv1x1(y))))

    h (B, 32, H, W) starts at 0 and passes through all stages. If a block has a
    stride, h is averaged over windows of that size. The two convolutions are
    shared by the stage; each block has a norm of its own. The first convolution
    of each block has 32 more input channels; the shortcut sees x alone.

    The backbone returns x alone, as in the authors' detectors. So the state
    after the last block is not computed, and its norm does not require
    gradients. ``attention='rla-concat'`` returns the state as well
    (:class:`RLAConcatStage`).

    Weights of the plain network load, except for the widened convolutions,
    which is logged. With ``zero_init_attention=True`` these load as well: their
    weights for the state start at 0, so the network starts as the plain one
    (this project's choice). RLA has no weights over layers, and so nothing to
    prune.

    y is that of the paper's equation. In the authors' code it is the output of
    the block, since the shortcut is added to it in place before the convolution
    sees it. At odd sizes, which their code does not support, windows at the
    border average what there is.

    Args:
        blocks (nn.Sequential): Blocks of the host, changed in place.
        spec (StageSpec): Description of the stage.
        zero_init_attention (bool): Whether weights for the state start at 0,
            see above. Defaults to False.
    """
    options = ('zero_init_attention', )
    concatenates = False

    def __init__(self,
                 blocks: nn.Sequential,
                 spec: StageSpec,
                 zero_init_attention: bool = False) -> None:
        total = len(blocks)
        super().__init__(blocks, [
            RLALayer(spec.norm_cfg, None if i else spec.channels,
                     self.concatenates and spec.last and i == total - 1)
            for i in range(total)
        ], spec)
        self.last = spec.last
        self.zero_init = zero_init_attention
        for block in blocks:
            _widen(block)
        if zero_init_attention:
            self._zero_init()
        if self._is_unread(total - 1):
            self.attention[-1].requires_grad_(False)

    @classmethod
    def build(cls, blocks: nn.Sequential, spec: StageSpec,
              **options: bool) -> 'RLAStage':
        """Add the state to a host's blocks; options as in the backbone."""
        return cls(blocks, spec, **options)

    @classmethod
    @contextmanager
    def one_pass(cls) -> Iterator[None]:
        """Hold the state while the stages of a backbone run."""
        token = _CARRIED.set([])
        try:
            yield
        finally:
            _CARRIED.reset(token)

    def init_weights(self) -> None:
        """Initialise as the host does, then zero what has to start at 0."""
        super().init_weights()
        if self.zero_init:
            self._zero_init()

    def _zero_init(self) -> None:
        for block in self:
            nn.init.zeros_(block.conv1.weight[:, -CHANNELS:])

    def _is_unread(self, i: int) -> bool:
        """Return whether nobody reads the state after block i."""
        return self.last and not self.concatenates and i == len(self) - 1

    def norms(self, i: int) -> List[nn.Module]:
        """Return the norms of the state after block i."""
        if self._is_unread(i):
            return []
        layer = self.attention[i]
        return [
            getattr(layer, name) for name in ('norm', 'final_norm')
            if hasattr(layer, name)
        ]

    def new_memory(self, x: Tensor) -> List[Tensor]:
        """Take the state of the previous stage, or start with zeros."""
        carried = _CARRIED.get()
        if carried:
            return [carried.pop()]
        return [x.new_zeros(x.shape[0], CHANNELS, *x.shape[2:])]

    def run(self, i: int, x: Tensor, state: Tensor) -> Tuple[Tensor, ...]:
        """Run a block on x and the state, and update the state."""
        block, shared = self.block(i), self.attention[0]
        projected: List[Tensor] = []

        def project(y: Tensor) -> Tensor:
            projected.append(shared.project(y))  # (B, 32, H, W)
            # The block adds its shortcut in place, and backward needs y.
            return y.clone() if torch.is_grad_enabled() else y

        joined = torch.cat((x, state), 1)  # (B, C' + 32, H', W')
        if self._is_unread(i):
            return block(joined), state
        x = run_block(block, joined, project)  # (B, C, H, W)
        if block.stride != 1:
            state = F.avg_pool2d(
                state, block.stride, ceil_mode=True, count_include_pad=False)
        state = apply_norm(self.attention[i].norm, state + projected[0])
        return x, shared.recur(state.tanh())  # (B, C, H, W), (B, 32, H, W)

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks, and hand the state on to the next stage.

        Args:
            x (Tensor): (B, C_in, H_in, W_in).

        Returns:
            Tensor: (B, C, H, W), or (B, C + 32, H, W) in the last stage of
            ``'rla-concat'``.
        """
        memory = self.new_memory(x)
        for i in range(len(self)):
            x, _ = self.step(i, x, memory)  # (B, C, H, W)
        carried = _CARRIED.get()
        if not self.last:
            if carried is not None:
                carried.append(memory[0])
        elif self.concatenates:
            state = apply_norm(self.attention[-1].final_norm, memory[0])
            x = torch.cat((x, state.relu()), 1)
        return x

    def _load_from_state_dict(self, state_dict, prefix, *args,
                              **kwargs) -> None:
        """Load weights of plain blocks as far as possible, and log it."""
        plain = []
        for i, block in enumerate(self):
            name, own = f'{prefix}{i}.conv1.weight', block.conv1.weight
            found = state_dict.get(name)
            if found is not None and (found.shape[1] + CHANNELS
                                      == own.shape[1]):
                plain.append(name)
                del state_dict[name]
                if self.zero_init:
                    state_dict[name] = F.pad(found,
                                             (0, 0, 0, 0, 0, CHANNELS))
        if plain:
            print_log(
                f'{self.name}: the first convolutions of {len(plain)} blocks '
                f"read the {CHANNELS} channels of RLA's state as well, and the "
                f'checkpoint is of a network without it ({plain[0]!r}, ...). ' +
                ('They start with its weights, and 0 for the state'
                 if self.zero_init else
                 'All else of the blocks is loaded, these convolutions stay as '
                 'they are; zero_init_attention=True would load them too'),
                'current', logging.WARNING)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@register_attention('rla-concat')
class RLAConcatStage(RLAStage):
    """RLA as in its authors' classifiers, where the state is a feature.

    The last stage returns x and ``relu(norm(h))`` concatenated, (B, C + 32, H,
    W). The head has to take that many channels (``in_channels=2080`` at depth
    50).
    """
    concatenates = True


def _widen(block: nn.Module) -> None:
    """Widen a block's first convolution by the state, but not its shortcut."""
    conv = block.conv1
    channels = conv.in_channels
    block.conv1 = build_conv_layer(
        block.conv_cfg,
        channels + CHANNELS,
        conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        bias=conv.bias is not None)
    if block.downsample is None:
        block.downsample = _WithoutState(channels)
    else:
        block.downsample.register_forward_pre_hook(
            partial(_without_state, channels))


def _without_state(channels: int, module: nn.Module,
                   args: Tuple[Tensor]) -> Tensor:
    return args[0][:, :channels]


class _WithoutState(nn.Module):
    """An identity shortcut that leaves out the state."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :self.channels]
