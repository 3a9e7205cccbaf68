"""Checks and completes the state of layer attention before it is loaded."""
import logging
import re
from typing import Dict, Iterable

from mmengine.logging import print_log
from torch import Tensor, nn

from ...errors import UsageError

# Keys that may be missing or extra in the state of the same kind of attention.
_OPTIONAL = {'scale.weight', 'norm.num_batches_tracked'}
# Names of attention in the published code of MRLA and DLA.
_PUBLISHED = re.compile(r'(^|\.)(W[qkv]|bn_mrla|bn_layer_attention)\.')


def complete_masks(backbone: nn.Module, state_dict: Dict[str, Tensor],
                   prefix: str) -> None:
    """Add the mask to a checkpoint that has none, or only half of it.

    Attention that was saved without a mask is active. Layers that the
    checkpoint does not contain keep the mask of the backbone.

    Args:
        backbone (LayerAttentionMixin): Backbone with prunable layers that
            loads the checkpoint.
        state_dict (Dict[str, Tensor]): State of the checkpoint, changed in
            place.
        prefix (str): Prefix of the backbone's keys in it.

    Raises:
        UsageError: If the checkpoint has a mask of another length.
    """
    names = [f'{prefix}{name}' for name in ('active', 'visible')]
    for name in names:
        if name in state_dict and state_dict[name].shape != (
                backbone.active.shape):
            raise UsageError(
                f'the checkpoint has a mask of {state_dict[name].numel()} '
                f'attention layers ({name}), this {type(backbone).__name__} '
                f'has {backbone.active.numel()}: build the backbone with the '
                'depth that the checkpoint was trained with')
    active, visible = names
    if active in state_dict:
        state_dict.setdefault(visible, state_dict[active].clone())
        return
    own = {
        f'{prefix}{layer.prefix}.{name}': i
        for i, layer in enumerate(backbone.attention_layers)
        for name, _ in layer.module.named_parameters()
    }
    held = sorted({own[key] for key in state_dict if key in own})
    for name, mask in zip(names, (backbone.active, backbone.visible)):
        state_dict[name] = mask.clone()
        state_dict[name][held] = True


def warn_of_other_attention(backbone: nn.Module, state_dict: Dict[str, Tensor],
                            prefix: str) -> None:
    """Log a warning if a checkpoint has another attention than the network.

    Args:
        backbone (LayerAttentionMixin): Backbone that loads the checkpoint.
        state_dict (Dict[str, Tensor]): State of the checkpoint.
        prefix (str): Prefix of the backbone's keys in it.
    """
    own, found = set(), set()
    for stage in backbone.attention_stages:
        start = f'{prefix}{stage.name}.attention.'
        own |= {name.split('.', 1)[1]
                for name in stage.attention.state_dict()}
        found |= {key[len(start):].split('.', 1)[-1]
                  for key in state_dict if key.startswith(start)}
    theirs = next((key for key in state_dict if key.startswith(prefix)
                   and _PUBLISHED.search(key)), None)
    foreign, lacking = found - own - _OPTIONAL, own - found - _OPTIONAL
    if not own:
        return
    if theirs is not None:
        print_log(
            'the checkpoint names attention as the published MRLA or DLA '
            f'code does ({theirs!r}): none of it is loaded, and the '
            'attention of this network stays as it is. Convert it first: '
            'python tools/convert_weights.py IN OUT' +
            (' --source dla' if 'layer_attention' in theirs else ''),
            'current', logging.WARNING)
    elif found and (foreign or lacking):
        print_log(
            f"the checkpoint's attention is not that of attention="
            f'{backbone.attention!r}: it has {_some(foreign)} that this '
            f'network lacks, and lacks {_some(lacking)} that this network '
            'has, which stays as it is. Build the network with the '
            'attention and norm that the checkpoint was trained with',
            'current', logging.WARNING)


def _some(names: Iterable[str]) -> str:
    return ', '.join(map(repr, sorted(names)[:3])) or 'nothing'
