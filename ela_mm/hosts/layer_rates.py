"""Layer-wise learning rates for hosts that go by the names of parameters.

MMPretrain asks the backbone instead (``get_layer_depth``).
"""
from typing import Dict, Iterator, List, Tuple

from torch import nn

from ..models.backbones.layer_attention_mixin import LayerAttentionMixin


class _NamesOfBlocks:
    """A view of a model in which attention has the names of its blocks."""

    def __init__(self, model: nn.Module) -> None:
        self.backbone = model.backbone
        self._model = model
        self._blocks: Dict[str, str] = {}
        if isinstance(self.backbone, LayerAttentionMixin):
            self._blocks = {
                f'backbone.{stage.name}.attention.{i}.':
                f'backbone.{stage.block_name(i)}.'
                for stage in self.backbone.attention_stages
                for i in range(len(stage))
            }

    def named_parameters(self) -> Iterator[Tuple[str, nn.Parameter]]:
        for name, parameter in self._model.named_parameters():
            for own, block in self._blocks.items():
                if name.startswith(own):
                    name = block + name[len(own):]
                    break
            yield name, parameter


class KnowsAttention:
    """Gives attention layers the learning rates of their blocks.

    Put it before a host's constructor of optimizers, which derives the layer of
    a parameter from the number of the block in its name.
    """

    def add_params(self, params: List[dict], module: nn.Module,
                   **kwargs) -> None:
        """Add all parameters as the host does.

        Args:
            params (List[dict]): Parameter groups, to which new ones are added.
            module (nn.Module): Model with a ``backbone``.
            **kwargs: Further arguments of the host.
        """
        super().add_params(params, _NamesOfBlocks(module), **kwargs)
