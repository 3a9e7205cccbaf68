"""Networks for pre-training on masked images, which leave patches out.

The value of a layer is a convolution over the map of patches. If patches are
left out, the others keep their places on the map, with zeros in between.
"""
from contextvars import ContextVar
from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn

from ..layers import LayerMemory
from .detached import Pass
from .vit import _PATCHES, BlockGroup, ViTAttentionMixin

# (B, N), positions on the map of the patches that the running pass has kept.
_KEPT: ContextVar[Optional[Tensor]] = ContextVar('ela_mm_kept', default=None)


class MaskedGroup(BlockGroup):
    """A group of blocks that may run on some of the patches only."""

    def new_memory(self, x: Pass) -> LayerMemory:
        """Choose the memory of a forward pass: buffers or plain lists."""
        memory = super().new_memory(x)
        if _KEPT.get() is None:
            return memory
        memory = LayerMemory()  # no buffers: they hold values of whole maps
        memory.hw_shape, memory.kept = _PATCHES.get(), _KEPT.get()
        return memory


class MaskArgumentMixin:
    """Lets ``forward`` take further arguments of the host, such as a mask."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the host's network.

        Args:
            x (Tensor): (B, 3, H, W), normalised images.
            *args: Of the host, such as its mask.
            **kwargs: Likewise.

        Returns:
            Any: What the host's class returns.
        """
        return self._run_host(x, *args, **kwargs)


class MaskedAttentionMixin(MaskArgumentMixin, ViTAttentionMixin):
    """Adds layer attention to a transformer that may leave patches out.

    Each family calls :meth:`keep` once the host has chosen the patches.
    """
    kinds = {'base': MaskedGroup}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the host's network.

        Args:
            x (Tensor): (B, 3, H, W), normalised images.
            *args: Of the host, such as its mask.
            **kwargs: Likewise.

        Returns:
            Any: What the host's class returns.
        """
        token = _KEPT.set(self.given(*args, **kwargs))
        try:
            return super().forward(x, *args, **kwargs)
        finally:
            _KEPT.reset(token)

    def given(self, *args: Any, **kwargs: Any) -> Optional[Tensor]:
        """Return the positions that forward's arguments keep; None: all."""
        return None

    def keep(self, places: Tensor) -> None:
        """Set which patches the running pass continues with.

        Args:
            places (Tensor): (B, N), positions of the patches on the map,
                counted row by row from 0, in the order of the tokens.
        """
        _KEPT.set(places)


class MAEAttentionMixin(MaskedAttentionMixin):
    """Adds layer attention to transformers that choose patches as MAE does."""

    def random_masking(self, x: Tensor, *args: Any,
                       **kwargs: Any) -> Tuple[Tensor, Tensor, Tensor]:
        """Choose patches as the host does; same arguments and results."""
        x, mask, ids_restore = super().random_masking(x, *args, **kwargs)
        # argsort inverts a permutation.
        self.keep(torch.argsort(ids_restore, 1)[:, :x.shape[1]])
        return x, mask, ids_restore


class MILANAttentionMixin(MaskedAttentionMixin):
    """Adds layer attention to MILAN, which chooses patches by importance."""

    def attention_masking(self, *args: Any, **kwargs: Any) -> Tuple[Any, ...]:
        """Choose patches as the host does; same arguments and results."""
        x, ids_restore, ids_keep, ids_dump = super().attention_masking(
            *args, **kwargs)
        self.keep(ids_keep)
        return x, ids_restore, ids_keep, ids_dump


class CAEAttentionMixin(MaskedAttentionMixin):
    """Adds layer attention to CAE, which is given a mask of patches."""

    def given(self, mask: Optional[Tensor]) -> Optional[Tensor]:
        """Return the positions that a mask (B, HW) leaves; None: all."""
        if mask is None:
            return None
        return (~mask).nonzero()[:, 1].view(mask.shape[0], -1)


class HiViTAttentionMixin(MaskedAttentionMixin):
    """Adds layer attention to the main blocks of a HiViT.

    The blocks before them are MLPs within each patch and get no attention.
    """
    blocks_name = 'blocks'

    @property
    def first_block(self) -> int:
        """Index of the first main block."""
        return len(self.blocks) - self.num_main_blocks

    @staticmethod
    def note_patches(module: nn.Module, args: tuple, output: Tensor) -> None:
        """Note the size of the map of patches."""
        _PATCHES.set(tuple(
            side // size for side, size in
            zip(args[0].shape[2:], module.patch_size)))

    def masking_id(self, *args: Any,
                   **kwargs: Any) -> Tuple[Tensor, Tensor, Tensor]:
        """Choose patches as the host does; same arguments and results."""
        ids_keep, ids_restore, mask = super().masking_id(*args, **kwargs)
        self.keep(ids_keep)
        return ids_keep, ids_restore, mask

    def rescale_init_weight(self) -> None:
        """Rescale initial weights as the host does, by the types of blocks."""
        grouped = self.blocks
        self.blocks = nn.ModuleList(grouped[i] for i in range(len(grouped)))
        super().rescale_init_weight()
        self.blocks = grouped
