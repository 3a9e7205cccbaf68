"""Hosts that checkpoint blocks from outside, and would pass attention by.

Their option is taken from them, and a stage does what it says.
"""
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .stages import AttentionStage, StageSpec


class CheckpointedStage(AttentionStage):
    """A stage that runs its blocks again in the backward pass, if it is to.

    Attributes:
        with_cp (bool): Whether it is to.
    """

    @classmethod
    def build(cls, blocks: nn.Sequential, spec: StageSpec,
              **options: Any) -> 'CheckpointedStage':
        """Add attention to a host's blocks; arguments as the backbone's."""
        stage = super().build(blocks, spec, **options)
        stage.with_cp = spec.with_cp
        return stage

    def run_block(self, i: int, *args: Any) -> Tensor:
        """Run a block on what the host hands to it."""
        block = self.block(i)
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)
