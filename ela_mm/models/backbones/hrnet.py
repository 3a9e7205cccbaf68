"""HRNet: every branch of every module is a sequence of blocks."""
from typing import List, Tuple

from .fresh_norms import FreshNormsMixin
from .placed import PlacedAttentionMixin
from .sequences import last_channels
from .stages import AttentionLayerInfo, AttentionStage, StageSpec


class BranchStage(AttentionStage):
    """A branch. HRNet-W18 has one of 18 channels, hence the head_dim of 2."""
    head_dims = (16, 8, 4, 2)


class HRNetAttentionMixin(FreshNormsMixin, PlacedAttentionMixin):
    """Adds layer attention to an HRNet, with a memory for each branch.

    Layers of ``stage3.1.branches.0``, for instance, see only each other, since
    branches are fused between modules.
    """
    kinds = {'base': BranchStage}

    def stage_specs(self) -> List[StageSpec]:
        """Describe ``layer1`` and all branches."""
        branches = [('layer1', 1, self.layer1)]
        for number in (2, 3, 4):
            branches += [
                (f'stage{number}.{m}.branches.{b}', number, branch)
                for m, module in enumerate(getattr(self, f'stage{number}'))
                for b, branch in enumerate(module.branches)
            ]
        self._stage_numbers = {name: number for name, number, _ in branches}
        return [
            StageSpec(name, last_channels(branch[-1]), self._attention_norm_cfg,
                      [0.] * len(branch), self.with_cp)
            for name, _, branch in branches
        ]

    @property
    def out_indices(self) -> Tuple[int, ...]:
        """Indices of the branches that are returned."""
        return tuple(range(len(self.stage4[-1].fuse_layers)))

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether mmseg's ``frozen_stages`` freezes a layer."""
        return self._stage_numbers[layer.stage_name] <= getattr(
            self, 'frozen_stages', -1)
