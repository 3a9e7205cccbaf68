"""Swin and DaViT: ``stages[i].blocks`` work on tokens."""
from functools import partial
from typing import Any, List, Optional

from torch import Tensor, nn

from .placed import PlacedAttentionMixin
from .stages import AttentionLayerInfo, StageSpec
from .walked import TokenStage


class SwinAttentionMixin(PlacedAttentionMixin):
    """Adds layer attention to a SwinTransformer, before patch merging.

    So the outputs of stages, which a neck takes, include attention.

    Attributes:
        frozen_from (int): Value of ``frozen_stages`` that freezes the first
            stage only.
    """
    kinds = {'base': TokenStage}
    norm_cfg_by_default = dict(type='LN')
    frozen_from = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        merge_windows_of_any_batch(self)

    def stage_specs(self) -> List[StageSpec]:
        """Describe every stage."""
        return [
            StageSpec(f'stages.{i}.blocks', stage.blocks[0].ffn.embed_dims,
                      self._attention_norm_cfg, [0.] * len(stage.blocks),
                      stage.blocks[0].with_cp)
            for i, stage in enumerate(self.stages)
        ]

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether ``frozen_stages`` freezes a layer."""
        return layer.stage <= self.frozen_stages - self.frozen_from + 1


class DaViTAttentionMixin(SwinAttentionMixin):
    """Adds layer attention to a DaViT.

    A spatial and a channel block together make a block of the stage.
    """
    frozen_from = 0

    def stage_specs(self) -> List[StageSpec]:
        """Describe every stage."""
        return [
            StageSpec(f'stages.{i}.blocks', stage.embed_dims,
                      self._attention_norm_cfg, [0.] * len(stage.blocks))
            for i, stage in enumerate(self.stages)
        ]


def merge_windows_of_any_batch(network: nn.Module) -> None:
    """Make a network with windows exportable for batches of any size.

    The hosts' ``window_reverse`` computes the batch size by a division of
    floats, which torch.export turns into a constant. It is replaced by a
    function with the same result.

    Args:
        network (nn.Module): Network with such blocks, changed in place.
    """
    for module in network.modules():
        if hasattr(module, 'window_reverse'):
            module.window_reverse = partial(
                _merge_windows, window_size=module.window_size)


def _merge_windows(windows: Tensor, height: int, width: int,
                   size: Optional[int] = None, *,
                   window_size: int) -> Tensor:
    """Assemble windows into maps, for any batch size.

    Args:
        windows (Tensor): (B * number of windows, size, size, C).
        height (int): Height of the map.
        width (int): Width of the map.
        size (int, optional): Size of a window, if the host passes it.
        window_size (int): Size of a window otherwise.

    Returns:
        Tensor: (B, height, width, C).
    """
    size = size or window_size
    x = windows.view(-1, height // size, width // size, size, size,
                     windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(
        -1, height, width, windows.shape[-1])
