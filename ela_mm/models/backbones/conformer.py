"""Conformer: blocks of two branches; the convolutional one has attention."""
from typing import Any, Callable, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from ..layers import LayerMemory
from .detached import DetachedStage, Pass
from .placed import PlacedAttentionMixin
from .stages import AttentionStage, StageSpec

# What a block returns: a map (B, C, H, W) and tokens (B, N, D).
Both = Tuple[Tensor, Tensor]


class ConformerStage(DetachedStage):
    """Attention on the maps of neighbouring blocks' convolutional branch."""

    def step(self, i: int, x: Pass,
             memory: LayerMemory) -> Tuple[Pass, Optional[Tensor]]:
        """Run a block on both branches, and attention on its map."""
        out, tokens = x.blocks[i](x.x, *x.args)
        out, weights = self.attend(i, out, memory)  # (B, C, H, W), (B, h, n)
        return Pass(out, x.blocks, (tokens, ),
                    [*x.outs, (out, tokens)]), weights

    def alone(self, x: List[Both], *args: Any) -> Tuple[AttentionStage, Tensor]:
        """Make a stage of the same layers, and an input for it."""
        return super().alone([x[-1][0]])

    def through(self, tap: Callable[[Tensor], Tensor],
                x: Union[Tensor, List[Both]],
                *args: Any) -> Union[Tensor, List[Both]]:
        """Apply a function to a map, or to the last map of a list of steps."""
        if isinstance(x, Tensor):
            return tap(x)
        return [*x[:-1], (tap(x[-1][0]), x[-1][1])]


class ConformerAttentionMixin(PlacedAttentionMixin):
    """Adds layer attention to the convolutional branch of a Conformer.

    What attention retrieves reaches the tokens by the fusion in the next block.
    The last block, which shrinks its map, is a stage of its own.
    """
    kinds = {'base': ConformerStage}
    norm_cfg_by_default = dict(type='BN', eps=1e-6)

    def stage_specs(self) -> List[StageSpec]:
        """Begin a stage wherever a block widens or shrinks its map."""
        self._runs: List[List[int]] = []
        width = None
        for number in range(2, self.fin_stage):
            block = getattr(self, f'conv_trans_{number}')
            channels = block.cnn_block.conv3.out_channels
            if channels != width or block.last_fusion:
                self._runs.append([])
                width = channels
            self._runs[-1].append(number)
        return [
            StageSpec(f'stage{i}', getattr(
                self, f'conv_trans_{run[0]}').cnn_block.conv3.out_channels,
                self._attention_norm_cfg, [0.] * len(run))
            for i, run in enumerate(self._runs, start=1)
        ]

    def add_attention(self) -> None:
        """Add stages beside the host's blocks, which keep their place."""
        specs = self.stage_specs()
        self.fit_head_dim([spec.channels for spec in specs])
        self._attention_paths = [spec.name for spec in specs]
        for spec, run in zip(specs, self._runs):
            stage = self.attention_kind.build(
                nn.Sequential(), spec, **self.attention_options)
            stage.belong(self, [f'conv_trans_{number}' for number in run])
            self.add_module(spec.name, stage)

    def forward(self, x: Tensor) -> Tuple[List[Tensor], ...]:
        """Run the host's modules in its order, and attention behind blocks.

        Args:
            x (Tensor): (B, 3, H, W), normalised images.

        Returns:
            Tuple[List[Tensor], ...]: For each entry of ``out_indices`` the
            features (B, C) of the map and (B, D) of the tokens.
        """
        if self.attention_kind is None:
            return super().forward(x)
        base = self.auto_pad(
            self.maxpool(self.act1(self.bn1(self.conv1(x)))))
        x = self.conv_1(base, out_conv2=False)  # (B, C, H, W)
        tokens = self.trans_patch_conv(base).flatten(2).transpose(1, 2)
        if self.with_cls_token:
            tokens = torch.cat(
                [self.cls_token.expand(x.shape[0], -1, -1), tokens], dim=1)
        tokens = self.trans_1(tokens)  # (B, N, D)
        outs = []
        for name, run in zip(self._attention_paths, self._runs):
            blocks = [getattr(self, f'conv_trans_{number}') for number in run]
            seen = getattr(self, name)(x, tokens, blocks=blocks)
            outs += [self._features(*both) for number, both in zip(run, seen)
                     if number in self.out_indices]
            x, tokens = seen[-1]
        return tuple(outs)

    def _features(self, x: Tensor, tokens: Tensor) -> List[Tensor]:
        """Compute the host's features, with or without a class token."""
        tokens = self.trans_norm(tokens)
        return [self.pooling(x).flatten(1), tokens[:, 0]
                if self.with_cls_token else tokens.mean(dim=1)]
