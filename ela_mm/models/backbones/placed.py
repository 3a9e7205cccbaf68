"""Families whose host builds all of its blocks before attention comes."""
from typing import Any, List, Optional

from torch import nn

from ...errors import UsageError
from ..layers.map_norm import norm_for_maps
from .layer_attention_mixin import LayerAttentionMixin
from .stages import AttentionStage, Stage, StageSpec


class PlacedAttentionMixin(LayerAttentionMixin):
    """Adds layer attention to a host's class that has its blocks by now.

    A family says by :meth:`stage_specs` where they are. No attention here drops
    its terms at random (stochastic depth), as none does in MRLA's DeiT: a start
    at zero is then the plain network also in training, draw for draw.

    Args:
        *args: Of the host's class.
        attention_norm_cfg (dict, optional): Norm of attention's terms.
            Defaults to the host's ``norm_cfg``: a network without batch norm
            gets none by attention, so that what it answers to a picture never
            depends on the others of its batch.
        **kwargs: Of the host's class and of
            :class:`~ela_mm.models.backbones.layer_attention_mixin.LayerAttentionMixin`.

    Attributes:
        norm_cfg_by_default (dict): What ``norm_cfg`` is in the host where a
            config names none.
        norm_argument (str): Of the host, for the norm of its blocks; '' where
            no argument says it.

    Raises:
        UsageError: On ``attention_norm_cfg`` without attention.
    """
    kinds = {'base': AttentionStage}
    norm_cfg_by_default = dict(type='BN')
    norm_argument = 'norm_cfg'

    def __init__(self,
                 *args: Any,
                 attention_norm_cfg: Optional[dict] = None,
                 **kwargs: Any) -> None:
        if attention_norm_cfg and kwargs.get('attention', 'base') is None:
            raise UsageError(
                'attention=None knows no attention_norm_cfg (given: '
                f'{attention_norm_cfg!r}): leave it out')
        # Plain values, which LayerAttentionMixin's __init__ needs.
        self._attention_norm_cfg = norm_for_maps(
            attention_norm_cfg or kwargs.get(self.norm_argument)
            or self.norm_cfg_by_default)
        self._attention_paths: List[str] = []
        super().__init__(*args, **kwargs)

    def stage_specs(self) -> List[StageSpec]:
        """Say where the host's blocks are; a stage's name leads to them."""
        raise NotImplementedError(
            f'{type(self).__name__} must say where its blocks are')

    def add_attention(self) -> None:
        """Put stages in place of the host's sequences of blocks."""
        specs = self.stage_specs()
        self.fit_head_dim([spec.channels for spec in specs])
        for spec in specs:
            parent, _, name = spec.name.rpartition('.')
            stage = self.attention_kind.build(
                self.get_submodule(spec.name), spec, **self.attention_options)
            setattr(self.get_submodule(parent), name, stage)
            self._attention_paths.append(spec.name)

    @property
    def attention_stages(self) -> List[Stage]:
        """The stages that have attention, in order; none without any."""
        return [self.get_submodule(path) for path in self._attention_paths]


def evaluate_again(network: nn.Module, keys: Any) -> None:
    """Let a host renew what it computes of its weights when evaluation starts.

    A hook for ``register_load_state_dict_post_hook``: such hosts keep it,
    whatever is loaded since.

    Args:
        network (nn.Module): That has loaded.
        keys (Any): What torch says of missing and unexpected keys.
    """
    if not network.training:
        network.eval()
