"""Activation checkpointing for hosts that checkpoint blocks from outside.

Their own loop would bypass attention. So their option is switched off, and the
stage checkpoints the blocks.
"""
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .stages import AttentionStage, StageSpec


class CheckpointedStage(AttentionStage):
    """A stage that can checkpoint its blocks.

    Attributes:
        with_cp (bool): Whether blocks run again in the backward pass to save
            memory.
    """

    @classmethod
    def build(cls, blocks: nn.Sequential, spec: StageSpec,
              **options: Any) -> 'CheckpointedStage':
        """Add attention to a host's blocks; options as in the backbone."""
        stage = super().build(blocks, spec, **options)
        stage.with_cp = spec.with_cp
        return stage

    def run_block(self, i: int, *args: Any) -> Tensor:
        """Run a block on what the host passes to it."""
        block = self.block(i)
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)
