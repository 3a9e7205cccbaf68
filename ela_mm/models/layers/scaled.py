"""LayerScale for attention: a term that starts at exactly 0 and still learns."""
from typing import Optional

import torch
from mmcv.cnn.bricks.scale import LayerScale
from torch import Tensor, nn

from ...errors import UsageError
from .watched import BranchedModule, is_watched


class ScaledAttention(BranchedModule):
    """Attention whose term may be multiplied by a learnable scale per channel.

    Attributes:
        scale (LayerScale | None): The scale; None leaves the term as it is.
        data_format (str): Position of a term's channels: ``'channels_first'``
            or ``'channels_last'``, as LayerScale takes it.
    """
    scale: Optional[nn.Module]
    data_format = 'channels_first'

    def add_scale(self, channels: int, zero_init: bool) -> None:
        """Add a scale that starts at 0 if ``zero_init``. This project's choice.

        With it, a network with untrained attention computes bit for bit what
        the plain network computes. A norm weight of 0 would not serve: relu has
        no gradient at 0.
        """
        self.scale = LayerScale(
            channels, data_format=self.data_format,
            scale=0.) if zero_init else None

    def can_scale(self) -> bool:
        """Tell whether reading the scale's weight can replace calling it."""
        return self.scale is None or (
            type(self.scale) is LayerScale and not is_watched(self.scale))

    def scaled(self, term: Tensor) -> Tensor:
        """Scale a term, (B, C, H, W) or (B, N, C)."""
        if self.scale is None:
            return term
        # Keep the term's dtype: a float32 scale would widen half precision.
        return self.scale(term).to(term.dtype)

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
            # Attention that was trained without a scale has a scale of 1.
            state_dict[name] = torch.ones_like(self.scale.weight)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
