"""TridentNet, whose last stage has three branches and is built afterwards."""
from typing import Any, Callable, List, Optional, Tuple, Union

import torch
from torch import Tensor

from ...errors import UsageError
from ..layers import LayerMemory
from .resnet import PlanesMixin
from .stages import AttentionStage, StageSpec


class TridentStage(AttentionStage):
    """A stage whose blocks pass on a list of branches with shared weights.

    Branches share attention as well, which takes them as one batch.
    """

    def step(
        self, i: int, x: Union[Tensor, List[Tensor]], memory: LayerMemory
    ) -> Tuple[Union[Tensor, List[Tensor]], Optional[Tensor]]:
        """Run a block and its attention on branches (B, C, H, W)."""
        x = self.block(i)(x)
        if isinstance(x, Tensor):  # the last block joins its branches
            return self.attend(i, x, memory)
        if len(x) == 1:  # chunk() would fix the batch size of an export
            x, weights = self.attend(i, x[0], memory)
            return [x], weights
        branches = len(x)
        x, weights = self.attend(i, torch.cat(x), memory)
        return list(x.chunk(branches)), weights

    def through(self, tap: Callable[[Tensor], Tensor],
                x: Union[Tensor, List[Tensor]]) -> Union[Tensor, List[Tensor]]:
        """Apply a function to each branch (B, C, H, W)."""
        return tap(x) if isinstance(x, Tensor) else [tap(y) for y in x]


class TridentMixin(PlanesMixin):
    """Adds layer attention to a TridentResNet."""
    kinds = {'base': AttentionStage}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in getattr(self, self.res_layers[-1]):
            # The host's init_cfg refers to a conv2 within conv2, and fails:
            # neither its own class nor this one could be initialised.
            block.conv2.init_cfg = dict(
                type='Kaiming', layer='TridentConv', distribution='uniform',
                mode='fan_in')

    def _leave_to_host(self, kwargs: dict) -> dict:
        """Pass on all plugins, since the host builds the last stage anew."""
        kwargs = super()._leave_to_host(kwargs)
        if self._plugins:
            raise UsageError(
                f'plugins={list(self._plugins)}: {type(self).__name__} takes '
                "none with blocks, and none in place of 'conv2'")
        return kwargs

    def add_attention(self) -> None:
        """Add attention to the last stage, which the host has rebuilt."""
        name = self.res_layers[-1]
        blocks = getattr(self, name)
        channels = blocks[0].conv3.out_channels
        spec = StageSpec(name, channels, self.norm_cfg, [0.] * len(blocks),
                         self.with_cp, last=True)
        setattr(self, name,
                TridentStage.build(blocks, spec, **self.attention_options))
        self._freeze_stages()
