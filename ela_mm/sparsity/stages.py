"""Finds the stages of a backbone and the blocks of each."""
import re
from typing import Any, Dict, Optional, Sequence

from torch import nn

from ..errors import UsageError

# For the name of each stage, its blocks by name.
Stages = Dict[str, Dict[str, nn.Module]]


def find_stages(model: nn.Module,
                names: Optional[Sequence[str]] = None) -> Stages:
    """Find the stages of a model's backbone.

    A backbone with layer attention knows where its blocks are. In other
    backbones, stages are ``res_layers`` (ResNet families of the hosts),
    ``layer1``, ``layer2``, ... (torchvision and timm), or the entries of
    ``stages`` or ``layers``; in plain vision transformers the latter is a list
    of blocks, which form a single stage. The blocks of a stage are its
    ``blocks``, if it has that attribute, or else its items.

    Args:
        model (nn.Module): Detector, classifier or backbone. Its first
            ``backbone`` is searched, or else the model itself. There may be a
            wrapper around it, such as mmpretrain's ``TIMMBackbone``.
        names (Sequence[str], optional): Names in the model of sequences of
            blocks to use as stages instead. Defaults to None.

    Returns:
        Dict[str, Dict[str, nn.Module]]: For the name of each stage, its blocks
        by name; names as in the model.

    Raises:
        UsageError: If there are no stages, or not under the given names.
    """
    if isinstance(names, str) or not isinstance(names, (Sequence, type(None))):
        raise UsageError(f'stages={names!r}: expected a list of names')
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
    """Select the features to compare from the output of a block.

    Args:
        output (Any): A tensor; or a sequence of features and what accompanies
            them, such as the size of their map (MViT) or the tokens of another
            branch (Conformer).

    Returns:
        Any: The tensor, or the first item of the sequence. Branches of equal
        shape, none of which is the main one, are returned unchanged.
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
    """Return a module's stages by name; empty if it has none."""
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
        # A stage that contains lists (as in PVT) is no sequence of blocks.
        if all(
                _is_sequence(stage)
                and not any(isinstance(x, nn.ModuleList) for x in stage)
                for stage in stages.values()):
            return stages
    return {}


def _blocks(name: str, sequence: nn.Module) -> Dict[str, nn.Module]:
    return {f'{name}.{i}': block for i, block in enumerate(sequence)}
