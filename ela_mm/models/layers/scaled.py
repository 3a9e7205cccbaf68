"""A term that may start at exactly 0 and still learn (LayerScale)."""
from typing import Optional

import torch
from mmcv.cnn.bricks.scale import LayerScale
from torch import Tensor, nn

from ...errors import UsageError
from .watched import BranchedModule, is_watched


class ScaledAttention(BranchedModule):
    """Attention whose term is multiplied by a scale per channel, or by none.

    Attributes:
        scale (LayerScale | None): None is a scale of 1 that does not learn.
    """
    scale: Optional[nn.Module]

    def add_scale(self, channels: int, zero_init: bool) -> None:
        """Add the scale, 0 at first, if it is wanted.

        A network with fresh attention is then the plain one, bit for bit. A
        norm weight of 0 would not do: relu has no gradient at 0. This
        project's choice.
        """
        self.scale = LayerScale(
            channels, data_format='channels_first',
            scale=0.) if zero_init else None

    def can_scale(self) -> bool:
        """Tell whether the scale's weight may stand for it."""
        return self.scale is None or (
            type(self.scale) is LayerScale and not is_watched(self.scale))

    def scaled(self, term: Tensor) -> Tensor:
        """Scale a term (B, C, H, W)."""
        if self.scale is None:
            return term
        # In the term's dtype, lest a float32 scale widens half precision.
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
            # Attention trained without a scale is attention of scale 1.
            state_dict[name] = torch.ones_like(self.scale.weight)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
