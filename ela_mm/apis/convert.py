"""Converts checkpoints of the published MRLA and DLA code, and back.

Only names differ: ``ELAResNetV1c`` is the same network as the published
MRLA-base ResNet, whose stem has three convolutions, and ``ELAResNet_CIFAR``
with ``attention='dla'`` is the same as the published DLA-base.
"""
import re
from typing import Dict, List, Sequence, Tuple

from mmengine.config import Config
from torch import Tensor

from ..errors import UsageError
from ..hosts.registration import host_of

_PARTS = dict(query='Wq', key='Wk', value='Wv')
# Convolutions and norms of the stem, in the order of Host.deep_stem.
_STEM = ('conv1.0', 'conv1.1', 'conv1.3', 'conv1.4', 'conv1.6', 'bn1')


def recognise(names: List[str]) -> bool:
    """Return whether names are those of the published MRLA code.

    Args:
        names (List[str]): Keys of a state dict.

    Returns:
        bool: Whether any is a name of attention in that code.
    """
    return any(re.search(r'\.mrla\.mrla\.W[qkv]\.', name) for name in names)


def from_mrla(state: Dict[str, Tensor],
              host: str = 'mmpretrain') -> Dict[str, Tensor]:
    """Rename a state dict of the published MRLA code.

    Args:
        state (Dict[str, Tensor]): State dict of MRLA-base or MRLA-light on
            ResNet, from the classification code
            (``stages.0.1.mrla.mrla.Wq.weight``) or from its MMDetection 2 code
            (``backbone.layer1.1...``).
        host (str): Host whose names the stem of three convolutions gets:
            ``'mmpretrain'``, ``'mmdet'`` or ``'mmseg'``. Defaults to
            ``'mmpretrain'``.

    Returns:
        Dict[str, Tensor]: The same tensors under this package's names, with
        the prefix ``backbone.`` and the classifier as ``head.fc``.

    Raises:
        UsageError: If the names are not those of that code, or if the host is
            not installed.
    """
    state = {re.sub(r'^module\.', '', name): x for name, x in state.items()}
    if recognise_dla(list(state)):
        raise UsageError(
            'the checkpoint names attention as the published DLA code does '
            '(bn_layer_attention): convert it with --source dla')
    if not recognise(list(state)):
        raise UsageError(
            'the checkpoint does not name attention as the published MRLA '
            "code does ('...mrla.mrla.Wq.weight'): there is nothing to "
            'convert')
    deep = any(re.search(r'(^|\.)conv1\.0\.weight$', name) for name in state)
    detector = any(name.startswith('backbone.') for name in state)
    converted = {}
    for name, value in state.items():
        prefix = 'backbone.' if not detector or name.startswith(
            'backbone.') else ''
        inner = re.sub(r'^backbone\.', '', name)
        if prefix and inner.startswith('fc.'):
            converted[f'head.{inner}'] = value
            continue
        inner, value = _block(inner, value)
        if deep and prefix:
            inner = _moved(inner, _STEM, _deep_stem(host))
        converted[prefix + inner] = value
    return converted


def to_mrla(state: Dict[str, Tensor],
            host: str = 'mmpretrain') -> Dict[str, Tensor]:
    """Rename a state dict of this package to the names of MRLA's code.

    Args:
        state (Dict[str, Tensor]): State dict of a classifier or a backbone with
            ``attention='base'`` or ``'light'``. Buffers of masks, which that
            code does not have, are left out.
        host (str): Host of the network, as in :func:`from_mrla`.

    Returns:
        Dict[str, Tensor]: The same tensors under names of the classification
        code, such as ``stages.0.1.mrla.mrla.Wq.weight``.

    Raises:
        UsageError: If a layer is skipped or scaled, which that code does not
            support.
    """
    published = {}
    for name, value in _plain(state).items():
        match = re.fullmatch(r'layer(\d+)\.attention\.(\d+)\.(.+)', name)
        if match is None:
            name = re.sub(r'^layer(\d+)\.',
                          lambda m: f'stages.{int(m[1]) - 1}.', name)
            published[_moved(name, _deep_stem(host), _STEM)] = value
            continue
        stage, block, part = match.groups()
        place = f'stages.{int(stage) - 1}.{block}'
        first, _, rest = part.partition('.')
        if first in _PARTS:
            published[f'{place}.mrla.mrla.{_PARTS[first]}.{rest}'] = value
        elif first == 'mix':
            published[f'{place}.mrla.lambda_t'] = value.view(-1, 1, 1)
        elif first == 'norm':
            published[f'{place}.bn_mrla.{rest}'] = value
        else:
            raise _nameless(name, first, "'base' or 'light'; 'dla' goes by "
                            '--source dla')
    return published


def _nameless(name: str, part: str, kinds: str) -> UsageError:
    why = ('it trains without zero_init_attention' if part == 'scale' else
           f'expected a network of attention={kinds}')
    return UsageError(f'{name!r} has no name in the published code: {why}')


# --- DLA ---------------------------------------------------------------------

_CELL = dict(input='w_ih', hidden='w_hh')  # parts of the cell, there "lstm"
_OF_STAGE = re.compile(r'stages\.(\d+)\.(layers|attention|lstm)\.(.+)')


def recognise_dla(names: List[str]) -> bool:
    """Return whether names are those of the published DLA code.

    Args:
        names (List[str]): Keys of a state dict.

    Returns:
        bool: Whether any is a name of attention in that code.
    """
    return any('.bn_layer_attention.' in name for name in names)


def from_dla(state: Dict[str, Tensor],
             host: str = 'mmpretrain') -> Dict[str, Tensor]:
    """Rename a state dict of the published DLA code: DLA-base for CIFAR.

    Args:
        state (Dict[str, Tensor]): State dict with names such as
            ``stages.0.lstm.w_ih.0.seq.0.weight`` and
            ``stages.0.attention.1.bn_layer_attention.weight``.
        host (str): Not used, since the stem has the same names in all hosts.

    Returns:
        Dict[str, Tensor]: The same tensors under this package's names, for
        ``attention='dla'``, with the prefix ``backbone.`` and the classifier as
        ``head.fc``.

    Raises:
        UsageError: If the names are not those of that code, or if they are
            those of its DLA-light.
    """
    state = {re.sub(r'^module\.', '', name): x for name, x in state.items()}
    if not recognise_dla(list(state)):
        raise UsageError(
            'the checkpoint does not name attention as the published DLA code '
            "does ('...bn_layer_attention.weight'): there is nothing to "
            'convert' + ('; --source mrla does it' if recognise(list(state))
                         else ''))
    light = next((name for name in state
                  if re.search(r'\.(excite|extict|lambda_t)(\.|$)', name)), None)
    if light is not None:
        raise UsageError(
            f'the checkpoint is of the published DLA-light ({light!r}), which '
            "adds a convolution that attention='dla-light' does not have: no "
            'network of this package computes the same. DLA-base can be '
            'converted')
    converted = {}
    for name, value in state.items():
        outside = f'head.{name}' if name.startswith('fc.') else f'backbone.{name}'
        match = _OF_STAGE.fullmatch(name)
        converted[_dla_part(name, *match.groups()) if match else outside] = value
    return converted


def _dla_part(name: str, stage: str, kind: str, part: str) -> str:
    ours = f'backbone.layer{int(stage) + 1}'
    if kind == 'layers':
        return f'{ours}.{part}'
    if kind == 'lstm':
        for where, theirs in _CELL.items():
            if part.startswith(f'{theirs}.0.seq.'):
                return (f'{ours}.attention.0.cell.{where}.'
                        f'{part[len(theirs) + len(".0.seq."):]}')
    block, _, part = part.partition('.')
    for where, theirs in _PARTS.items():
        if part == f'layer_attention.layer_attention.{theirs}.weight':
            return f'{ours}.attention.{block}.{where}.weight'
    if part.startswith('bn_layer_attention.'):
        return f'{ours}.attention.{block}.norm.{part.partition(".")[2]}'
    raise UsageError(f'{name!r} is no name of the published DLA-base: the '
                     'checkpoint was changed, or is of another network')


def to_dla(state: Dict[str, Tensor],
           host: str = 'mmpretrain') -> Dict[str, Tensor]:
    """Rename a state dict of this package to the names of DLA's code.

    Args:
        state (Dict[str, Tensor]): State dict of a classifier or a backbone with
            ``attention='dla'``. Buffers of masks are left out.
        host (str): Not used, as in :func:`from_dla`.

    Returns:
        Dict[str, Tensor]: The same tensors under names of that code, such as
        ``stages.0.lstm.w_ih.0.seq.0.weight``.

    Raises:
        UsageError: If a layer is skipped or scaled, or if the attention is not
            DLA-base.
    """
    state = _plain(state)
    if not any('.attention.0.cell.' in name for name in state) or any(
            name.endswith('.mix') for name in state):
        raise UsageError("expected a checkpoint of attention='dla' "
                         '(DLA-base): this one has no such cell')
    published = {}
    for name, value in state.items():
        match = re.fullmatch(r'layer(\d+)\.(attention\.)?(\d+)\.(.+)', name)
        if match is None:
            published[name] = value
            continue
        stage, attention, block, part = match.groups()
        place = f'stages.{int(stage) - 1}'
        first, _, rest = part.partition('.')
        if not attention:
            published[f'{place}.layers.{block}.{part}'] = value
        elif first in _PARTS:
            published[f'{place}.attention.{block}.layer_attention.'
                      f'layer_attention.{_PARTS[first]}.{rest}'] = value
        elif first == 'norm':
            published[f'{place}.attention.{block}.bn_layer_attention.'
                      f'{rest}'] = value
        elif first == 'cell':
            where, _, rest = rest.partition('.')
            published[f'{place}.lstm.{_CELL[where]}.0.seq.{rest}'] = value
        else:
            raise _nameless(name, first, "'dla'")
    return published


#: For each published code, the functions from its names and to them.
SOURCES = dict(mrla=(from_mrla, to_mrla), dla=(from_dla, to_dla))


def _plain(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Strip prefixes from names, and leave out masks."""
    state = {re.sub(r'^(backbone|head)\.', '', name): x
             for name, x in state.items()}
    if 'active' in state and not state['active'].all():
        raise UsageError('attention layers are skipped in this checkpoint; the '
                         'published code has no such network')
    return {name: x for name, x in state.items()
            if name not in ('active', 'visible', 'fresh_norm_mask')}


def _block(name: str, value: Tensor) -> Tuple[str, Tensor]:
    """Convert a name within a stage, and the shape of its tensor."""
    match = re.fullmatch(r'(?:stages\.(\d+)|layer(\d+))\.(\d+)\.(.+)', name)
    if match is None:
        return name, value
    stage = int(match[1]) + 1 if match[1] is not None else int(match[2])
    block, part = match[3], match[4]
    attention = f'layer{stage}.attention.{block}'
    for ours, theirs in _PARTS.items():
        if part.startswith(f'mrla.mrla.{theirs}.'):
            return f'{attention}.{ours}.{part.rpartition(".")[2]}', value
    if part == 'mrla.lambda_t':
        return f'{attention}.mix', value.flatten()
    if part.startswith('bn_mrla.'):
        return f'{attention}.norm.{part.rpartition(".")[2]}', value
    return f'layer{stage}.{block}.{part}', value


def _deep_stem(host: str) -> Tuple[str, ...]:
    return host_of(Config(dict(default_scope=host))).deep_stem


def _moved(name: str, before: Sequence[str], after: Sequence[str]) -> str:
    """Rename the module in a parameter's name, if it is in ``before``."""
    module, _, parameter = name.rpartition('.')
    moved = dict(zip(before, after)).get(module, module)
    return f'{moved}.{parameter}' if module else name
