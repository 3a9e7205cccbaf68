"""Base class of families whose host builds all blocks before attention."""
from typing import Any, List, Optional

from torch import nn

from ...errors import UsageError
from ..layers.map_norm import norm_for_maps
from .layer_attention_mixin import LayerAttentionMixin
from .stages import AttentionStage, Stage, StageSpec


class PlacedAttentionMixin(LayerAttentionMixin):
    """Adds layer attention to a host's network after it is built.

    A family says in :meth:`stage_specs` where the blocks are. Attention has no
    drop path here, as in MRLA's DeiT. So a network with ``zero_init_attention``
    equals the plain one in training too, with the same random numbers.

    Args:
        *args: Arguments of the host's class.
        attention_norm_cfg (dict, optional): Config of the norms of attention.
            Defaults to the host's ``norm_cfg``, so that attention adds no
            batch norm to a network without batch norms, whose output for an
            image does not depend on the rest of the batch.
        **kwargs: Arguments of the host's class and of
            :class:`~ela_mm.models.backbones.layer_attention_mixin.LayerAttentionMixin`.

    Attributes:
        norm_cfg_by_default (dict): The host's default for ``norm_cfg``.
        norm_argument (str): Name of the host's argument for the norm of its
            blocks; '' if there is none.
        caches_in_eval (bool): Whether the host computes values from its
            weights in ``eval()``, and would keep them although other weights
            are loaded.

    Raises:
        UsageError: On ``attention_norm_cfg`` without attention.
    """
    kinds = {'base': AttentionStage}
    norm_cfg_by_default = dict(type='BN')
    norm_argument = 'norm_cfg'
    caches_in_eval = False

    def __init__(self,
                 *args: Any,
                 attention_norm_cfg: Optional[dict] = None,
                 **kwargs: Any) -> None:
        if attention_norm_cfg and kwargs.get('attention', 'base') is None:
            raise UsageError(
                'attention=None knows no attention_norm_cfg (given: '
                f'{attention_norm_cfg!r}): leave it out')
        # Plain values, set before super().__init__(), which needs them.
        self._attention_norm_cfg = norm_for_maps(
            attention_norm_cfg or kwargs.get(self.norm_argument)
            or self.norm_cfg_by_default)
        self._attention_paths: List[str] = []
        super().__init__(*args, **kwargs)

    def stage_specs(self) -> List[StageSpec]:
        """Describe the stages; the name of each is the path to its blocks."""
        raise NotImplementedError(
            f'{type(self).__name__} must say where its blocks are')

    def add_attention(self) -> None:
        """Replace the host's sequences of blocks by stages."""
        specs = self.stage_specs()
        self.fit_head_dim([spec.channels for spec in specs])
        for spec in specs:
            parent, _, name = spec.name.rpartition('.')
            stage = self.attention_kind.build(
                self.get_submodule(spec.name), spec, **self.attention_options)
            setattr(self.get_submodule(parent), name, stage)
            self._attention_paths.append(spec.name)
        if self.caches_in_eval:
            self.register_load_state_dict_post_hook(evaluate_again)

    @property
    def attention_stages(self) -> List[Stage]:
        """Stages with attention, in order; empty if ``attention=None``."""
        return [self.get_submodule(path) for path in self._attention_paths]


def evaluate_again(network: nn.Module, keys: Any) -> None:
    """Make a host recompute what it caches when evaluation starts.

    Args:
        network (nn.Module): Network that has loaded weights.
        keys (Any): Missing and unexpected keys, which torch passes; not used.
    """
    if not network.training:
        network.eval()
