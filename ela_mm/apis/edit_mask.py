"""Restores or skips attention layers in a checkpoint, without its config."""
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from torch import Tensor

from ..engine import validations
from ..engine.checkpoints import DEPLOY_KEY
from ..engine.journal.record import decision_from_json, edit_to_json
from ..engine.resumption import STATE_KEY
from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import SKIP_MODES
from ..pruning.decision import Decision
from ..pruning.edit import MaskEdit

# Stage and index in the name of a tensor of attention.
_LAYER = re.compile(r'(.+)\.attention\.(\d+)\.')


class Edited(NamedTuple):
    """What :func:`edit_mask` did.

    Attributes:
        checkpoint (dict): The new checkpoint.
        edit (MaskEdit): What changed.
        layers (List[str]): Names of all prunable layers.
        before (int): Number of active layers in the given checkpoint.
        after (int): Number of active layers in the new one.
        places (List[str]): Keys of the checkpoint whose masks were changed:
            ``state_dict``, and with EMA ``ema_state_dict``.
        left_out (Tuple[int, int] | None): Window that was being measured, whose
            statistics were dropped, if any.
    """
    checkpoint: Dict[str, Any]
    edit: MaskEdit
    layers: List[str]
    before: int
    after: int
    places: List[str]
    left_out: Optional[Tuple[int, int]]

    @property
    def skipped_firsts(self) -> List[str]:
        """Skipped layers that are the first of their stage; ELA keeps these."""
        firsts: Dict[str, str] = {}
        for name in self.layers:
            firsts.setdefault(name.rsplit('.', 1)[0], name)
        return [n for n in self.edit.skipped if n in firsts.values()]


def edit_mask(checkpoint: Dict[str, Any],
              restore: Sequence[str] = (),
              skip: Sequence[str] = (),
              undo_window: Optional[int] = None,
              skip_mode: str = 'layer') -> Edited:
    """Change which attention layers of a checkpoint are active.

    Restored layers have the weights that they had when they were skipped. Masks
    of averaged models are changed as well. The change is noted in the state of
    ELAPruneHook, so that the record of a resumed run contains it. Statistics of
    a window that has not ended are dropped, since they were measured between
    other neighbours. So is the note that the checkpoint was validated: a run
    resumed from it validates the edited network.

    Args:
        checkpoint (Dict[str, Any]): Checkpoint of mmengine, loaded; not
            changed.
        restore (Sequence[str]): Names of skipped layers to restore, such as
            ``'layer3.5'``.
        skip (Sequence[str]): Names of active layers to skip.
        undo_window (int, optional): Number of a window, from 1, whose skipped
            layers are restored.
        skip_mode (str): How to skip, ``'layer'`` or ``'retrieval'``, see
            ``skip_layers`` of the backbone. Defaults to ``'layer'``.

    Returns:
        Edited: The new checkpoint, and what was done.

    Raises:
        UsageError: On a checkpoint without a mask or for deployment, unknown
            names, layers that are as wanted already, a window that decided
            nothing, or if nothing is to be done.
    """
    if skip_mode not in SKIP_MODES:
        raise UsageError(f'skip={skip_mode!r}: expected one of {SKIP_MODES}')
    if not (restore or skip or undo_window is not None):
        raise UsageError('nothing to do: name layers to restore or to skip, or '
                         'a window to undo')
    meta = checkpoint.get('meta') or {}
    if DEPLOY_KEY in meta:
        raise UsageError(
            'a deploy checkpoint has lost the weights of skipped layers: edit '
            'the checkpoint of the training, and export it again')
    masks = _masks(checkpoint)
    state = checkpoint.get(STATE_KEY) or {}
    decisions = _decisions(checkpoint)
    key, prefix = masks[0]
    layers = _layers(checkpoint[key], prefix, decisions)
    active = dict(zip(layers, checkpoint[key][f'{prefix}active'].tolist()))
    undone = None
    if undo_window is not None:
        undone = _decision(decisions, undo_window)
        restore = [*(n for n in undone.skipped if not active.get(n, True)),
                   *restore]
        if not restore:
            raise UsageError(f'window {undo_window} {undone.window} has '
                             'skipped no layer that is skipped now: nothing to '
                             'undo')
    restore, skip = list(dict.fromkeys(restore)), list(dict.fromkeys(skip))
    _check_names(active, restore, skip)
    edited = validations.forget(checkpoint)
    for key, prefix in masks:
        edited[key] = _with_mask(edited[key], prefix, layers, restore, skip,
                                 skip_mode)
    edit = MaskEdit(
        meta.get('epoch', 0), meta.get('iter', 0), restore, skip,
        undone and undone.window)
    window = state.get('window') if state.get('statistics') else None
    if state:
        edited[STATE_KEY] = dict(
            state, statistics={}, window=None,
            edits=[*state.get('edits', []), edit_to_json(edit)])
    before = sum(active.values())
    return Edited(edited, edit, layers, before,
                  before + len(restore) - len(skip),
                  [key for key, _ in masks], window and tuple(window))


def describe(checkpoint: Dict[str, Any]) -> str:
    """Say which layers of a checkpoint are active, and what was decided.

    Args:
        checkpoint (Dict[str, Any]): Checkpoint of mmengine, loaded.

    Returns:
        str: A line for each stage, and for each window that has decided.

    Raises:
        UsageError: On a checkpoint without a mask.
    """
    key, prefix = _masks(checkpoint)[0]
    decisions = _decisions(checkpoint)
    layers = _layers(checkpoint[key], prefix, decisions)
    active = checkpoint[key][f'{prefix}active'].tolist()
    lines = [f'{sum(active)} of {len(layers)} attention layers active']
    stages: Dict[str, Dict[bool, List[str]]] = {}
    for name, attends in zip(layers, active):
        stage, index = name.rsplit('.', 1)
        stages.setdefault(stage, {True: [], False: []})[attends].append(index)
    for stage, indices in stages.items():
        lines.append(f'{stage}: {" ".join(indices[True]) or "none"} active, '
                     f'{" ".join(indices[False]) or "none"} skipped')
    for number, decision in enumerate(decisions, start=1):
        lines.append(f'window {number} {decision.window} skipped '
                     f'{", ".join(decision.skipped) or "none"}')
    return '\n'.join(lines)


def _decisions(checkpoint: Dict[str, Any]) -> List[Decision]:
    state = checkpoint.get(STATE_KEY) or {}
    return [decision_from_json(d) for d in state.get('decisions', [])]


def _masks(checkpoint: Dict[str, Any]) -> List[Tuple[str, str]]:
    """Find all masks: keys of state dicts, and prefixes within them."""
    found = [(key, prefix) for key, state in checkpoint.items()
             if isinstance(state, dict) for prefix in _prefixes(state)]
    if not any(key == 'state_dict' for key, _ in found):
        raise UsageError(
            'the checkpoint has no mask of attention layers: expected one of a '
            "training with an ELA backbone, such as 'ELAResNet', and "
            "attention='base'")
    found.sort(key=lambda place: place[0] != 'state_dict')
    for key in dict.fromkeys(key for key, _ in found):
        inside = [prefix for other, prefix in found if other == key]
        if len(inside) > 1:
            raise UsageError(
                f'{key!r} has several backbones with masks '
                f'({", ".join(inside)}): expected one')
    return found


def _prefixes(state: Dict[str, Any]) -> Iterator[str]:
    for name, value in state.items():
        prefix = name[:-len('active')] if isinstance(name, str) else ''
        if (isinstance(value, Tensor) and name == f'{prefix}active'
                and isinstance(state.get(f'{prefix}visible'), Tensor)):
            yield prefix


def _layers(state: Dict[str, Tensor], prefix: str,
            decisions: Sequence[Decision]) -> List[str]:
    """Return the names of layers, in the order of the mask."""
    found = {}
    for name in state:
        match = _LAYER.match(name[len(prefix):])
        if match and name.startswith(prefix):
            found[f'{match[1]}.{match[2]}'] = None
    names = list(found)
    if decisions:  # they have the order
        names = [layer.name for layer in decisions[-1].layers]
    if set(names) != set(found) or len(names) != len(
            state[f'{prefix}active']):
        raise UsageError(
            f'the mask is of {len(state[prefix + "active"])} attention layers, '
            f'the weights of {len(found)} and the record of {len(names)}: the '
            'checkpoint was changed or damaged')
    return names


def _decision(decisions: Sequence[Decision], number: int) -> Decision:
    if not decisions:
        raise UsageError('the checkpoint has no decisions of ELAPruneHook: '
                         'name the layers to restore')
    if not 1 <= number <= len(decisions):
        windows = ', '.join(f'{i}: {d.window}'
                            for i, d in enumerate(decisions, start=1))
        raise UsageError(f'window {number}: expected one that has decided '
                         f'({windows})')
    return decisions[number - 1]


def _check_names(active: Dict[str, bool], restore: Sequence[str],
                 skip: Sequence[str]) -> None:
    for names, wanted, there in ((restore, 'restore', True),
                                 (skip, 'skip', False)):
        for name in names:
            if name not in active:
                raise UsageError(f'no attention layer {name!r} is in the '
                                 f'checkpoint: it has {", ".join(active)}')
            if name in restore and name in skip:
                raise UsageError(f'{name} is to be restored and skipped: '
                                 'expected one of them')
            if active[name] is there:
                others = [n for n in active if active[n] is not there]
                raise UsageError(
                    f'{name} is {"active" if there else "skipped"} already; '
                    f'to {wanted}: {", ".join(others) or "none"}')


def _with_mask(state: Dict[str, Any], prefix: str, layers: Sequence[str],
               restore: Sequence[str], skip: Sequence[str],
               skip_mode: str) -> Dict[str, Any]:
    changed = type(state)(state)  # an OrderedDict stays one
    for name in ('active', 'visible'):
        mask = state[prefix + name].clone()
        for layer in restore:
            mask[layers.index(layer)] = True
        for layer in skip:
            mask[layers.index(layer)] = (
                name == 'visible' and skip_mode == 'retrieval')
        changed[prefix + name] = mask
    return changed
