"""Layer-wise learning rates of hosts that read a parameter's layer in its name.

MMPretrain asks the backbone for it (``get_layer_depth``) instead.
"""
from typing import Dict, Iterator, List, Tuple

from torch import nn

from ..models.backbones.layer_attention_mixin import LayerAttentionMixin


class _NamesOfBlocks:
    """A model whose attention layers are named as their blocks are."""

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
    """Gives an attention layer the learning rate of its block.

    Put it before a host's constructor of optimizers, which finds a parameter's
    layer in its name, where it expects the number of a block.
    """

    def add_params(self, params: List[dict], module: nn.Module,
                   **kwargs) -> None:
        """Add all parameters as the host does.

        Args:
            params (List[dict]): Written: the groups of the optimizer.
            module (nn.Module): The model, with a ``backbone``.
            **kwargs: Of the host.
        """
        super().add_params(params, _NamesOfBlocks(module), **kwargs)
