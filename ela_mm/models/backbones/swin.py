"""Swin, DaViT: ``stages[i].blocks`` work on tokens; what FPN sees has attention."""
from functools import partial
from typing import Any, List, Optional

from torch import Tensor, nn

from .placed import PlacedAttentionMixin
from .stages import AttentionLayerInfo, StageSpec
from .walked import TokenStage


class SwinAttentionMixin(PlacedAttentionMixin):
    """Adds layer attention to a SwinTransformer, before patches are merged.

    Attributes:
        frozen_from (int): The value of ``frozen_stages`` that freezes the
            first stage.
    """
    kinds = {'base': TokenStage}
    norm_cfg_by_default = dict(type='LN')
    frozen_from = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        merge_windows_of_any_batch(self)

    def stage_specs(self) -> List[StageSpec]:
        """Take every stage."""
        return [
            StageSpec(f'stages.{i}.blocks', stage.blocks[0].ffn.embed_dims,
                      self._attention_norm_cfg, [0.] * len(stage.blocks),
                      stage.blocks[0].with_cp)
            for i, stage in enumerate(self.stages)
        ]

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Tell whether ``frozen_stages`` freezes a layer."""
        return layer.stage <= self.frozen_stages - self.frozen_from + 1


class DaViTAttentionMixin(SwinAttentionMixin):
    """Adds layer attention to a DaViT; a spatial and a channel block are one."""
    frozen_from = 0

    def stage_specs(self) -> List[StageSpec]:
        """Take every stage."""
        return [
            StageSpec(f'stages.{i}.blocks', stage.embed_dims,
                      self._attention_norm_cfg, [0.] * len(stage.blocks))
            for i, stage in enumerate(self.stages)
        ]


def merge_windows_of_any_batch(network: nn.Module) -> None:
    """Let a network with windows be exported for batches of any size.

    The hosts' blocks find the batch by a division of floats, which
    torch.export takes for the number that it was at the time.

    Args:
        network (nn.Module): Its blocks get another ``window_reverse``, with
            the same result.
    """
    for module in network.modules():
        if hasattr(module, 'window_reverse'):
            module.window_reverse = partial(
                _merge_windows, window_size=module.window_size)


def _merge_windows(windows: Tensor, height: int, width: int,
                   size: Optional[int] = None, *,
                   window_size: int) -> Tensor:
    """Put windows together to a map, with any batch.

    Args:
        windows (Tensor): (B * number of windows, size, size, C).
        height (int): Of the map.
        width (int): Of the map.
        size (int, optional): Of a window, where the host hands it on.
        window_size (int): Otherwise.

    Returns:
        Tensor: (B, height, width, C).
    """
    size = size or window_size
    x = windows.view(-1, height // size, width // size, size, size,
                     windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(
        -1, height, width, windows.shape[-1])
