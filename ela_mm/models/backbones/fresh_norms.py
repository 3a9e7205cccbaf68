"""Keeps norms that have seen no data in training mode under ``norm_eval``."""
from typing import Dict, Iterable, List, Optional

import torch
from mmengine.logging import print_log
from torch import nn

from .layer_attention_mixin import LayerAttentionMixin

# Values of the buffer fresh_norm_mask.
_UNDECIDED, _AS_THE_HOST, _FRESH = -1, 0, 1


class FreshNormsMixin(LayerAttentionMixin):
    """Layer attention on a host's class that has ``norm_eval``.

    ``norm_eval`` freezes the statistics of pretrained norms. The norms of fresh
    attention have seen no data: frozen, they would keep mean 0 and variance 1
    forever.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        norms = self.new_norms()
        if self.attention_kind is not None or any(norms.values()):
            self.register_buffer(
                'fresh_norm_mask',
                torch.full((len(norms), ), _UNDECIDED, dtype=torch.int8))

    def new_norms(self) -> Dict[str, List[nn.Module]]:
        """List the norms that attention has added, by layer."""
        return {
            f'{stage.name}.{i}': stage.norms(i)
            for stage in self.attention_stages for i in range(len(stage))
        }

    def frozen_norms(self) -> List[str]:
        """List the names of layers that ``frozen_stages`` freezes."""
        return [x.name for x in self.attention_layers if self.is_frozen(x)]

    @property
    def fresh_norms(self) -> Optional[frozenset]:
        """Names of layers whose norms ``norm_eval=True`` keeps in training.

        They are determined once, when training starts: those whose norms have
        never seen a batch, except in frozen stages. The names are saved in a
        buffer, so runs that load the weights, to resume or to fine-tune, keep
        them. None means not determined yet; set None to determine them anew.
        """
        if not hasattr(self, 'fresh_norm_mask'):
            return frozenset()
        states = self.fresh_norm_mask.tolist()
        if _UNDECIDED in states:
            return None
        return frozenset(name for name, state in zip(self.new_norms(), states)
                         if state == _FRESH)

    @fresh_norms.setter
    def fresh_norms(self, names: Optional[Iterable[str]]) -> None:
        if names is None:
            self.fresh_norm_mask.fill_(_UNDECIDED)
            return
        names = set(names)
        self.fresh_norm_mask.copy_(torch.tensor(
            [_FRESH if name in names else _AS_THE_HOST
             for name in self.new_norms()]))

    def _find_fresh_norms(self) -> List[str]:
        """List layers that are active, not frozen, and have an unused norm."""
        out = {x.name for x in self.attention_layers if not x.active}
        out.update(self.frozen_norms())
        return [
            name for name, norms in self.new_norms().items()
            if name not in out and any(
                getattr(norm, 'num_batches_tracked', None) == 0
                for norm in norms)
        ]

    def train(self, mode: bool = True):
        """Set the mode as the host does; keep fresh norms in training.

        Args:
            mode (bool): True for training, False for evaluation. Defaults to
                True.

        Returns:
            FreshNormsMixin: self, also where the host returns None.
        """
        super().train(mode)
        if not (mode and self.norm_eval and hasattr(self, 'fresh_norm_mask')):
            return self
        if self.fresh_norm_mask.is_meta:  # meta tensors have no values
            return self
        if self.fresh_norms is None:
            self.fresh_norms = self._find_fresh_norms()
            if self.fresh_norms:
                print_log(
                    f'norm_eval=True: the norms of {len(self.fresh_norms)} '
                    'attention layers have seen no data yet and stay in '
                    'training mode', 'current')
        fresh = self.fresh_norms
        for name, norms in self.new_norms().items():
            if name in fresh:
                for norm in norms:
                    norm.train()
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args,
                              **kwargs) -> None:
        """Load weights; if they lack the buffer, it becomes undetermined."""
        name = prefix + 'fresh_norm_mask'
        if hasattr(self, 'fresh_norm_mask') and any(
                key.startswith(prefix) for key in state_dict):
            undecided = torch.full_like(self.fresh_norm_mask, _UNDECIDED)
            if state_dict.setdefault(name, undecided).shape != (
                    undecided.shape):
                state_dict[name] = undecided
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
