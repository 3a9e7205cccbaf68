"""Pre-training on masked pictures, whose networks leave patches out.

A layer's value is a convolution over the map of the patches. Where most are
left out, those that are there keep their places, with zeros between them.
"""
from contextvars import ContextVar
from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn

from ..layers import LayerMemory
from .detached import Pass
from .vit import _PATCHES, BlockGroup, ViTAttentionMixin

# (B, N), the places of the patches that the running pass has kept.
_KEPT: ContextVar[Optional[Tensor]] = ContextVar('ela_mm_kept', default=None)


class MaskedGroup(BlockGroup):
    """A group of blocks that may see some of the patches alone."""

    def new_memory(self, x: Pass) -> LayerMemory:
        """Choose, once a pass, between buffers and plain lists."""
        memory = super().new_memory(x)
        if _KEPT.get() is None:
            return memory
        memory = LayerMemory()  # buffers hold values of whole maps
        memory.hw_shape, memory.kept = _PATCHES.get(), _KEPT.get()
        return memory


class MaskArgumentMixin:
    """Lets a network with layer attention take what the host takes beside x."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the host's network.

        Args:
            x (Tensor): (B, 3, H, W), normalised pictures.
            *args: Of the host, such as its mask.
            **kwargs: Likewise.

        Returns:
            Any: What the host's class returns.
        """
        return self._run_host(x, *args, **kwargs)


class MaskedAttentionMixin(MaskArgumentMixin, ViTAttentionMixin):
    """Adds layer attention to a transformer that may leave patches out.

    A family calls :meth:`keep` where the host has chosen the patches.
    """
    kinds = {'base': MaskedGroup}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the host's network.

        Args:
            x (Tensor): (B, 3, H, W), normalised pictures.
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
        """Places that the arguments beside the pictures name; None: any."""
        return None

    def keep(self, places: Tensor) -> None:
        """Say which patches the running pass goes on with.

        Args:
            places (Tensor): (B, N), their numbers on the map, row by row, in
                the order in which they run.
        """
        _KEPT.set(places)


class MAEAttentionMixin(MaskedAttentionMixin):
    """Adds layer attention to a transformer that is pre-trained as MAE is."""

    def random_masking(self, x: Tensor, *args: Any,
                       **kwargs: Any) -> Tuple[Tensor, Tensor, Tensor]:
        """Choose patches as the host does; arguments and results are its."""
        x, mask, ids_restore = super().random_masking(x, *args, **kwargs)
        # Of a permutation, sorting gives the inverse.
        self.keep(torch.argsort(ids_restore, 1)[:, :x.shape[1]])
        return x, mask, ids_restore


class MILANAttentionMixin(MaskedAttentionMixin):
    """The same where patches are chosen by their importance."""

    def attention_masking(self, *args: Any, **kwargs: Any) -> Tuple[Any, ...]:
        """Choose patches as the host does; arguments and results are its."""
        x, ids_restore, ids_keep, ids_dump = super().attention_masking(
            *args, **kwargs)
        self.keep(ids_keep)
        return x, ids_restore, ids_keep, ids_dump


class CAEAttentionMixin(MaskedAttentionMixin):
    """The same where a mask of patches is given."""

    def given(self, mask: Optional[Tensor]) -> Optional[Tensor]:
        """Places of the patches that a mask (B, HW), or None, leaves."""
        if mask is None:
            return None
        return (~mask).nonzero()[:, 1].view(mask.shape[0], -1)


class HiViTAttentionMixin(MaskedAttentionMixin):
    """Adds layer attention to the main blocks of a HiViT.

    Those before them are MLPs within each patch, and have none.
    """
    blocks_name = 'blocks'

    @property
    def first_block(self) -> int:
        """Number of the first main block."""
        return len(self.blocks) - self.num_main_blocks

    @staticmethod
    def note_patches(module: nn.Module, args: tuple, output: Tensor) -> None:
        """Note how many patches a picture has."""
        _PATCHES.set(tuple(
            side // size for side, size in
            zip(args[0].shape[2:], module.patch_size)))

    def masking_id(self, *args: Any,
                   **kwargs: Any) -> Tuple[Tensor, Tensor, Tensor]:
        """Choose patches as the host does; arguments and results are its."""
        ids_keep, ids_restore, mask = super().masking_id(*args, **kwargs)
        self.keep(ids_keep)
        return ids_keep, ids_restore, mask

    def rescale_init_weight(self) -> None:
        """Rescale first weights as the host does, which asks for the types."""
        grouped = self.blocks
        self.blocks = nn.ModuleList(grouped[i] for i in range(len(grouped)))
        super().rescale_init_weight()
        self.blocks = grouped
