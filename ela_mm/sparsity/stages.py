"""Finds the stages of a backbone and the blocks of each."""
import re
from typing import Any, Dict, Optional, Sequence

from torch import nn

from ..errors import UsageError

# Name of a block to the block, by the name of its stage.
Stages = Dict[str, Dict[str, nn.Module]]


def find_stages(model: nn.Module,
                names: Optional[Sequence[str]] = None) -> Stages:
    """Find the stages of a model's backbone.

    A backbone with layer attention says where its blocks are. Else known are
    ``res_layers`` (the hosts' ResNet families), ``layer1``, ``layer2``, ...
    (torchvision's and timm's), and ``stages`` or ``layers``, a list of stages
    or, as in plain vision transformers, of the blocks of the only one. A
    stage's blocks are its ``blocks``, if it has such, else what it iterates
    over.

    Args:
        model (nn.Module): A detector, a classifier or a backbone. Its
            first ``backbone``, if it has one, is searched, else the model; it
            may be wrapped once, as mmpretrain's ``TIMMBackbone`` wraps.
        names (Sequence[str], optional): Names, in the model, of sequences of
            blocks, to take these instead. Defaults to None.

    Returns:
        Dict[str, Dict[str, nn.Module]]: Names as in the model.

    Raises:
        UsageError: If there are no stages, or not under the given names.
    """
    if names is not None:
        return {name: _blocks(name, _sequence(model, name)) for name in names}
    prefix = next((name for name, _ in model.named_modules()
                   if name.split('.')[-1] == 'backbone'), '')
    backbone = model.get_submodule(prefix)
    attended = getattr(backbone, 'attention_stages', None)
    if attended:
        dot = f'{prefix}.' if prefix else ''
        return {
            dot + stage.name: {
                dot + stage.block_name(i): stage.block(i)
                for i in range(len(stage))
            }
            for stage in attended
        }
    for name, module in [('', backbone), *backbone.named_children()]:
        sequences = _sequences(module)
        if sequences:
            path = '.'.join(filter(None, [prefix, name]))
            dot = f'{path}.' if path else ''
            return {
                dot + stage: _blocks(dot + stage, blocks)
                for stage, blocks in sequences.items()
            }
    raise UsageError(
        f'{type(model).__name__} has no stages of blocks: expected a backbone '
        'with res_layers, layer1, layer2, ..., stages or layers; of another '
        "one name the sequences of blocks, such as "
        "stages=['backbone.stage2.1.blocks']")


def block_features(output: Any) -> Any:
    """Of what a block returns, the features that are compared.

    Args:
        output (Any): A tensor, or a sequence: features, and what goes beside
            them, such as the size of their map (MViT) or another branch's
            tokens (Conformer).

    Returns:
        Any: The tensor, or the first of the sequence. Branches that are
        alike, which have no first, come back as they are.
    """
    if not isinstance(output, (list, tuple)) or not output:
        return output
    first, *beside = output
    shapes = [getattr(x, 'shape', None) for x in beside]
    return output if getattr(first, 'shape', None) in shapes else first


def _sequence(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if not _is_sequence(modules.get(name)):
        raise UsageError(
            f'stages: {type(model).__name__} has no sequence of blocks '
            f'{name!r}; expected names as in its named_modules()')
    return modules[name]


def _is_sequence(module: Optional[nn.Module]) -> bool:
    return hasattr(module, '__iter__') and hasattr(module, '__len__')


def _sequences(module: nn.Module) -> Dict[str, nn.Module]:
    """A module's stages by name, if it is a backbone with stages."""
    children = dict(module.named_children())
    names = getattr(module, 'res_layers', None) or [
        name for name in children if re.fullmatch(r'layer\d+', name)
    ]
    if names and all(_is_sequence(children.get(name)) for name in names):
        return {name: children[name] for name in names}
    for name in ('stages', 'layers'):
        parts = children.get(name)
        if not _is_sequence(parts) or not len(parts):
            continue
        stages = {
            f'{name}.{i}.blocks' if hasattr(part, 'blocks') else f'{name}.{i}':
            getattr(part, 'blocks', part)
            for i, part in enumerate(parts)
        }
        if not any(_is_sequence(stage) for stage in stages.values()):
            return {name: parts}
        # Lists within a stage, as in PVT, are not blocks.
        if all(
                _is_sequence(stage)
                and not any(isinstance(x, nn.ModuleList) for x in stage)
                for stage in stages.values()):
            return stages
    return {}


def _blocks(name: str, sequence: nn.Module) -> Dict[str, nn.Module]:
    return {f'{name}.{i}': block for i, block in enumerate(sequence)}
