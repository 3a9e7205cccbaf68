"""Plain vision transformers: one list of blocks, with a memory for each group.

There are no stages. MRLA's DeiT starts a new memory every four blocks; here
such a group takes the role of a stage. The hosts' ``forward`` (with extra
tokens, relative or rotary positions) is not changed: it iterates over the list
of blocks, which yields steps that run a block and its attention.
"""
from contextvars import ContextVar
from inspect import signature
from typing import (
    Any,
    Callable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
    Union,
)

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ..layers import LayerMemory
from ..layers.token_attention import TokenLayerAttention
from .detached import DetachedStage, Pass
from .placed import PlacedAttentionMixin
from .stages import AttentionLayerInfo, StageSpec
from .walked import map_to_tokens, tokens_to_map

# H and W of the map of patches in the running pass, which hosts do not pass to
# their blocks. Local to the thread.
_PATCHES: ContextVar[Optional[Tuple[int, int]]] = ContextVar(
    'ela_mm_patches', default=None)


def _note_patches(module: nn.Module, args: tuple, output: tuple) -> None:
    _PATCHES.set(output[1])


class BlockGroup(DetachedStage):
    """Attention of neighbouring blocks, which stay in the host's list.

    Args:
        name (str): Name of the group in the backbone, such as
            ``layers.group1``.
        blocks (nn.Sequential): An empty sequence.
        layers (List[TokenLayerAttention]): Attention layers, one for each
            block.
    """
    options = ('head_dim', 'zero_init_attention')

    @classmethod
    def build(cls,
              blocks: nn.Sequential,
              spec: StageSpec,
              head_dim: int = 16,
              zero_init_attention: bool = False) -> 'BlockGroup':
        """Make a group; options as in the backbone."""
        return cls(spec.name, blocks, [
            TokenLayerAttention(spec.channels, head_dim, spec.norm_cfg,
                                zero_init_attention)
            for _ in spec.drop_path_rates
        ])

    def alone(self, x: List[Tensor],
              *args: Any) -> Tuple['BlockGroup', Tensor]:
        """Make a group of the same layers, and an input for it."""
        blocks = nn.ModuleList(nn.Identity() for _ in self.attention)
        group = type(self)(self.name, nn.Sequential(), list(self.attention))
        GroupedBlocks(blocks, [group])
        return group.train(self.training), torch.rand_like(x[-1])

    def through(self, tap: Callable[[Tensor], Tensor],
                x: Union[Tensor, List[Tensor]],
                *args: Any) -> Union[Tensor, List[Tensor]]:
        """Apply a function to the map of patches, or the last of a list."""
        if not isinstance(x, Tensor):
            return [*x[:-1], self.through(tap, x[-1])]
        hw_shape = _PATCHES.get()
        extra = x.shape[1] - hw_shape[0] * hw_shape[1]
        patches = tap(tokens_to_map(x[:, extra:], hw_shape))
        return torch.cat((x[:, :extra], map_to_tokens(patches)), 1)

    def new_memory(self, x: Pass) -> LayerMemory:
        """Choose the memory of a forward pass: buffers or plain lists."""
        memory = super().new_memory(x)
        memory.hw_shape = _PATCHES.get()
        return memory


class MapBlockGroup(BlockGroup):
    """A group of blocks that take maps in channels last, (B, H, W, C)."""

    def step(self, i: int, x: Pass,
             memory: LayerMemory) -> Tuple[Pass, Optional[Tensor]]:
        """Run a block and its attention on a map (B, H, W, C)."""
        out = x.blocks[i](x.x, *x.args)  # (B, H, W, C)
        memory.hw_shape = tuple(out.shape[1:3])
        tokens, weights = self.attend(i, out.flatten(1, 2), memory)
        out = tokens.reshape(out.shape)  # (B, HW, C) -> (B, H, W, C)
        return x._replace(x=out, outs=[*x.outs, out]), weights

    def through(self, tap: Callable[[Tensor], Tensor],
                x: Union[Tensor, List[Tensor]],
                *args: Any) -> Union[Tensor, List[Tensor]]:
        """Apply a function to a map, or to the last map of a list of steps."""
        if not isinstance(x, Tensor):
            return [*x[:-1], self.through(tap, x[-1])]
        return tap(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class GroupedBlocks(nn.Module):
    """A list of blocks that yields steps with attention when iterated.

    It has the length and indices of the host's list, and the blocks keep their
    names. Iterating over it yields callables that run a block and its
    attention.

    Args:
        blocks (nn.ModuleList): The host's list.
        groups (List[BlockGroup]): Groups that cover all blocks from ``first``
            on, in order.
        first (int): Index of the first block with attention. Defaults to 0.
    """

    def __init__(self, blocks: nn.ModuleList, groups: List[BlockGroup],
                 first: int = 0) -> None:
        super().__init__()
        for name, block in blocks.named_children():
            self.add_module(name, block)
        self._first = first
        for number, group in enumerate(groups, start=1):
            self.add_module(f'group{number}', group)
            group.belong(self, [str(first + i) for i in range(len(group))])
            first += len(group)
        self._sizes = [len(group) for group in groups]

    def __len__(self) -> int:
        return self._first + sum(self._sizes)

    def __getitem__(self, index):
        if isinstance(index, slice):  # the host iterates over a part
            return list(self)[index]
        return self._blocks()[index]

    def _blocks(self) -> List[nn.Module]:
        return [self._modules[str(i)] for i in range(len(self))]

    def __iter__(self) -> Iterator[Any]:
        blocks, first = self._blocks(), self._first
        steps = blocks[:first]
        for number, size in enumerate(self._sizes, start=1):
            run = _Run(self._modules[f'group{number}'],
                       blocks[first:first + size])
            steps += [_Step(run, i) for i in range(size)]
            first += size
        return iter(steps)


class _Run:
    """A pass through a group; the first step runs it, each returns its part."""

    def __init__(self, group: BlockGroup, blocks: List[nn.Module]) -> None:
        self.group, self.blocks = group, blocks
        self.outs: List[Tensor] = []


class _Step(NamedTuple):
    """A step of a run, which a host calls like a block."""
    run: _Run
    i: int

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the block, such as weights to rescale."""
        return getattr(self.run.blocks[self.i], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = self.run
        if kwargs:
            block = run.blocks[self.i]
            args = signature(block.forward).bind(*args, **kwargs).args
        if self.i == 0:
            run.outs = run.group(*args, blocks=run.blocks)
        elif args[0] is not _tokens(run.outs[self.i - 1]):
            raise UsageError(
                'a plain vision transformer changed the tokens between two of '
                f'its blocks (within {run.group.name}), which layer attention '
                'does not know: set attention=None, or attention_groups so '
                'that a group ends there')
        return run.outs[self.i]


def _tokens(out: Any) -> Tensor:
    """Return the part of a block's output that the next block takes first."""
    return out[0] if isinstance(out, tuple) else out


class ViTAttentionMixin(PlacedAttentionMixin):
    """Adds layer attention to a plain vision transformer.

    Args:
        *args: Arguments of the host's class.
        attention_groups (int, optional): Number of blocks per group, >= 2;
            each group has its own memory of keys and values. None for one
            group of all blocks. Defaults to 4, as in MRLA's DeiT.
        **kwargs: Arguments of the host's class and of
            :class:`~ela_mm.models.backbones.layer_attention_mixin.LayerAttentionMixin`.

    Attributes:
        blocks_name (str): Name of the host's list of blocks.
        patches_name (str): Name of the module that embeds patches and returns
            the size of their map; '' if blocks take maps.
        first_block (int): Index of the first block with attention.

    Raises:
        UsageError: On an invalid ``attention_groups``, or an
            ``attention_norm_cfg`` that is no layer norm.
    """
    kinds = {'base': BlockGroup}
    norm_cfg_by_default = dict(type='LN', eps=1e-6)
    blocks_name = 'layers'
    patches_name = 'patch_embed'
    first_block = 0
    note_patches = staticmethod(_note_patches)

    def __init__(self,
                 *args: Any,
                 attention_groups: Optional[int] = 4,
                 **kwargs: Any) -> None:
        if attention_groups is not None and (
                type(attention_groups) is not int or attention_groups < 2):
            raise UsageError(
                f'attention_groups={attention_groups!r}: expected the number '
                'of blocks in a group, 2 or more, or None for the whole depth')
        self._group_size = attention_groups
        # The norm of tokens; the base class would choose one for maps.
        own = kwargs.get('attention_norm_cfg')
        if own and own['type'] != 'LN':
            raise UsageError(
                f'attention_norm_cfg={own!r}: tokens of {type(self).__name__} '
                "attend behind a layer norm: expected dict(type='LN', ...), "
                'or leave it out')
        self._token_norm_cfg = (
            own or kwargs.get('norm_cfg') or self.norm_cfg_by_default)
        super().__init__(*args, **kwargs)

    def stage_specs(self) -> List[StageSpec]:
        """Describe the groups of blocks; the last one may be smaller."""
        depth = len(getattr(self, self.blocks_name)) - self.first_block
        size = self._group_size or depth
        return [
            StageSpec(f'{self.blocks_name}.group{number}',
                      self.token_channels(), self._token_norm_cfg,
                      [0.] * min(size, depth - first))
            for number, first in enumerate(range(0, depth, size), start=1)
        ]

    def token_channels(self) -> int:
        """Return the number of channels C of the tokens."""
        return self.embed_dims

    def add_attention(self) -> None:
        """Add groups beside the host's blocks; freeze those of frozen ones."""
        specs = self.stage_specs()
        self.fit_head_dim([self.token_channels()])
        groups = [
            self.attention_kind.build(nn.Sequential(), spec,
                                      **self.attention_options)
            for spec in specs
        ]
        setattr(self, self.blocks_name, GroupedBlocks(
            getattr(self, self.blocks_name), groups, self.first_block))
        self._attention_paths = [spec.name for spec in specs]
        if self.patches_name:
            getattr(self, self.patches_name).register_forward_hook(
                self.note_patches)
        for layer in self.attention_layers:
            if self.is_frozen(layer):
                layer.module.eval().requires_grad_(False)

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether ``frozen_stages``, a number of blocks, freezes it."""
        return self.depth_of(layer.stage, layer.index) < getattr(
            self, 'frozen_stages', -1)

    def depth_of(self, group: int, index: int) -> int:
        """Return the index of a block in the whole network.

        Args:
            group (int): Number of its group, from 1.
            index (int): Index of the block in the group, from 0.
        """
        return self.first_block + (group - 1) * (self._group_size or 0) + index


class MapGroupsMixin(ViTAttentionMixin):
    """Adds layer attention to one list of blocks of maps (B, C, H, W).

    Attention works as in a convolutional network, followed by its norm.
    """
    kinds = {'base': DetachedStage}
    norm_cfg_by_default = dict(type='BN')
    patches_name = ''

    def stage_specs(self) -> List[StageSpec]:
        """Describe the groups of blocks; the last one may be smaller."""
        return [spec._replace(norm_cfg=self._attention_norm_cfg)
                for spec in super().stage_specs()]


class FrozenAgainMixin:
    """Keeps attention frozen if a host freezes its blocks again in ``train()``.

    Put it before a :class:`ViTAttentionMixin`.
    """

    def train(self, mode: bool = True) -> 'FrozenAgainMixin':
        """Set the mode as the host does; keep frozen layers in evaluation."""
        super().train(mode)
        for layer in self.attention_layers:
            if self.is_frozen(layer):
                layer.module.eval()
        return self
