"""Writes and reads the machine-readable record of a run's decisions.

This is the only place where a decision is turned into JSON and read back.
"""
import json
import os
import os.path as osp
import re
import tempfile
from typing import Any, Dict, List, Optional

from ...errors import UsageError
from ...pruning.build import build_criterion
from ...pruning.criteria import CRITERIA
from ...pruning.decision import Decision, LayerDecision, Outcome
from ...pruning.edit import MaskEdit
from ...pruning.kl import check_redundancy
from ...pruning.step_times import StepTimes
from ...pruning.windows import Course, Windows

FILE_NAME = 'ela_decisions.json'
FORMAT = 1


def _umask() -> int:
    """Read the process' umask."""
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def write_whole(text: str, path: str) -> None:
    """Write a file atomically: it is replaced completely or not at all.

    Args:
        text (str): Content of the file.
        path (str): Path of the file. Its folder is made if missing.

    Raises:
        OSError: If it cannot be written.
    """
    folder = osp.dirname(path)
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, suffix='.tmp')
    try:
        # File names in the text may hold what UTF-8 cannot encode.
        with os.fdopen(handle, 'w', encoding='utf-8',
                       errors='backslashreplace') as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:  # such as a full disk, or Ctrl-C
        os.remove(temporary)
        raise


def write_record(record: dict, folder: str) -> None:
    """Write the record of a run.

    Args:
        record (dict): Record, of types that JSON has; no infinity or NaN.
        folder (str): Work dir of the run.
    """
    text = json.dumps(record, indent=1, allow_nan=False)
    # Put lists of numbers on one line. (JSON strings contain no line breaks.)
    text = re.sub(r'\[\n[-+.,\s\w]*?\]',
                  lambda numbers: ' '.join(numbers[0].split()), text)
    write_whole(text, osp.join(folder, FILE_NAME))


def read_record(folder: str) -> dict:
    """Read the record of a run.

    Args:
        folder (str): Work dir of the run.

    Returns:
        dict: The record, with ``layers``, ``windows``, ``criterion``, ``skip``
        and ``decisions``, one for each window so far; see docs/record.md.
        :func:`decisions_of` makes objects of the decisions.

    Raises:
        FileNotFoundError: If the run has no record.
        UsageError: If this version cannot read the record.
    """
    path = osp.join(folder, FILE_NAME)
    if not osp.isfile(path):
        raise FileNotFoundError(
            f'no {FILE_NAME} in {folder!r}: expected the work dir of a run '
            'that was trained with ELAPruneHook')
    try:
        with open(path, encoding='utf-8') as file:
            record = json.load(file)
    except OSError as error:
        raise UsageError(f'{path!r} cannot be read: {error}') from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f'{path!r} is no JSON ({error}): it was changed or damaged; a '
            'resumed run writes it anew from its checkpoint') from None
    number = record.get('format') if isinstance(record, dict) else None
    if number != FORMAT:
        raise UsageError(
            f'{path!r} has format {number!r:.40}, this version of ela_mm reads '
            f'{FORMAT}: install the version that wrote it')
    try:
        _expect(record, _RECORD, 'it')
        for point in record.get('step_times') or []:
            _expect(point, [_NUMBER] * 4, 'a point of step_times')
        decisions_of(record)
        edits_of(record)
        for decision in record['decisions']:
            _complete(decision['criterion'])
    except (KeyError, TypeError, ValueError) as error:
        what = f'lacks {error}' if isinstance(error, KeyError) else error
        raise UsageError(
            f'{path!r} is no record of decisions ({what}): it was changed or '
            'damaged; a resumed run writes it anew from its checkpoint'
        ) from None
    return record


def decisions_of(record: Dict[str, Any]) -> List[Decision]:
    """Read the decisions of a record.

    Args:
        record (Dict[str, Any]): Record from :func:`read_record`.

    Returns:
        List[Decision]: Decisions, one for each window that has ended.
    """
    return [decision_from_json(d) for d in record['decisions']]


def windows_of(record: Dict[str, Any]) -> Windows:
    """Read the windows of a record, as they were given and resolved.

    Args:
        record (Dict[str, Any]): Record from :func:`read_record`.

    Returns:
        Windows: Windows, resolved as in that run.
    """
    spans = [(first, last) for first, last in record['windows']]
    given = record.get('windows_given') or spans
    windows = Windows(given, record['by_epoch'])
    windows.begun = dict(zip(map(tuple, given), spans))
    windows.resolve(Course(spans[-1][1]))
    return windows


def edits_of(record: Dict[str, Any]) -> List[MaskEdit]:
    """Read the changes by hand in a record from :func:`read_record`."""
    return [edit_from_json(e) for e in record.get('edits') or []]


def edit_to_json(edit: MaskEdit) -> Dict[str, Any]:
    """Turn an edit into its entry in records and checkpoints."""
    return dict(
        epoch=edit.epoch,
        iter=edit.iter,
        restored=edit.restored,
        skipped=edit.skipped,
        undone=edit.undone and list(edit.undone))


def edit_from_json(entry: Dict[str, Any]) -> MaskEdit:
    """Read an edit from its entry; raises as :func:`decision_from_json`."""
    _expect(entry, _EDIT, 'an edit')
    undone = entry.get('undone')
    return MaskEdit(entry['epoch'], entry['iter'], list(entry['restored']),
                    list(entry['skipped']), undone and tuple(undone))


# --- one decision ------------------------------------------------------------

# The schema of a record, see `_expect`. A tuple lists allowed types. A list of
# one schema stands for a list of any length, a list of several for one of that
# length. A dict has schemas by key; keys with a question mark may be missing or
# None.
_INT, _TEXT = (int, ), (str, )
_NUMBER = (int, float)
_NUMBER_OR_NONE = (int, float, type(None))
_RECORD = {
    'by_epoch': (bool, ),
    'windows': [[_INT, _INT]],
    'windows_given?': [[(str, int, float), _NUMBER]],
    'criterion': {'type': _TEXT},
    'redundancy?': _TEXT,
    'skip': _TEXT,
    'layers': [_TEXT],
    'active': [_TEXT],
    'decisions': [(dict, )],
    'edits?': [(dict, )],
    'step_times?': [(list, )],
}
_LAYER = {
    'name': _TEXT,
    'stage': _INT,
    'index': _INT,
    'kl': _NUMBER_OR_NONE,
    'kl_std': _NUMBER_OR_NONE,
    'bad_iterations?': _INT,
    'kl_iterations?': [_NUMBER_OR_NONE],
    'excess?': _NUMBER,
    'conditional?': _NUMBER,
    'conditional_std?': _NUMBER,
    'conditional_iterations?': [_NUMBER_OR_NONE],
    'mapped': _NUMBER_OR_NONE,
    'stability?': _NUMBER,
    'status': _TEXT,
}
_DECISION = {
    'window': [_INT, _INT],
    'epoch': _INT,
    'iter': _INT,
    'samples?': _INT,
    'iterations?': _INT,
    'steps?': _INT,
    'step_samples?': [_NUMBER],
    'criterion': {'type': _TEXT},
    'redundancy?': _TEXT,
    'skip?': _TEXT,
    'layers': [_LAYER],
    'note': (str, type(None)),
    'by_position?': (bool, ),
    'saturated?': (bool, ),
    'as_drawn?': (bool, ),
    'step_time_before': _NUMBER_OR_NONE,
    'step_time_after': _NUMBER_OR_NONE,
    'steps_timed?': [_INT, _INT],
    'step_quartiles_before?': [_NUMBER, _NUMBER],
    'step_quartiles_after?': [_NUMBER, _NUMBER],
    'step_ratio?': [_NUMBER, _NUMBER, _NUMBER],
    'step_ratio_rounds?': _INT,
    'step_times_resumed?': (bool, ),
}
_EDIT = {
    'epoch': _INT,
    'iter': _INT,
    'restored': [_TEXT],
    'skipped': [_TEXT],
    'undone?': [_INT, _INT],
}
# Largest number allowed; beyond it neither floats nor pictures are reliable.
_LARGEST = 1e15


def _expect(value: Any, kind: Any, place: str) -> None:
    """Raise an error unless a value matches a schema.

    Args:
        value (Any): Value read from JSON.
        kind (Any): Schema, see above.
        place (str): Name of the value's place, for the error.

    Raises:
        KeyError: If something is missing.
        TypeError: If something is of another type.
        ValueError: On a wrong length, or a number that is not finite or too
            large.
    """
    types = kind if isinstance(kind, tuple) else (type(kind), )
    if not isinstance(value, types) or (
            isinstance(value, bool) and bool not in types):
        raise TypeError(f'{place} is a {type(value).__name__}')
    if isinstance(kind, dict):
        for key, inner in kind.items():
            name = key.rstrip('?')
            if name == key or value.get(name) is not None:
                _expect(value[name], inner, f'{name} of {place}')
    elif isinstance(kind, list):
        if len(kind) > 1 and len(value) != len(kind):
            raise ValueError(f'{place} has {len(value)} entries')
        for i, item in enumerate(value):
            _expect(item, kind[i % len(kind)], f'entry {i} of {place}')
    elif isinstance(value, (int, float)) and not abs(value) <= _LARGEST:
        raise ValueError(f'{place} is infinite, too large or no number')


def _complete(config: Dict[str, Any]) -> None:
    """Add parameters that an earlier version left out of a criterion."""
    if config['type'] in CRITERIA:  # raises if a parameter is wrong
        config.update({**build_criterion(config).config, **config})


def decision_to_json(decision: Decision) -> Dict[str, Any]:
    """Turn a decision into its entry in records and checkpoints."""
    entry = dict(
        window=list(decision.window),
        epoch=decision.epoch,
        iter=decision.iter,
        samples=decision.samples,
        iterations=decision.iterations,
        criterion=decision.criterion,
        redundancy=decision.redundancy,
        skip=decision.skip_mode,
        layers=[
            dict(
                name=layer.name,
                stage=layer.stage,
                index=layer.index,
                kl=layer.kl,
                kl_std=layer.kl_std,
                bad_iterations=layer.bad_iterations,
                kl_iterations=layer.kl_iterations,
                excess=layer.excess,
                conditional=layer.conditional,
                conditional_std=layer.conditional_std,
                conditional_iterations=layer.conditional_iterations,
                mapped=layer.mapped,
                stability=layer.stability,
                status=layer.outcome.value) for layer in decision.layers
        ],
        skipped=decision.skipped,
        active=decision.active,
        total=decision.total,
        note=decision.note,
        step_time_before=decision.times.before,
        step_time_after=decision.times.after,
        steps_timed=list(decision.times.steps))
    # Left out for a run on one rank with equal batches.
    if decision.steps not in (None, decision.iterations):
        entry['steps'] = decision.steps
    if decision.step_samples:
        entry['step_samples'] = decision.step_samples
    times = decision.times
    for name, known in (('step_quartiles_before', times.before_quartiles),
                        ('step_quartiles_after', times.after_quartiles),
                        ('step_ratio', times.ratio)):
        if known is not None:
            entry[name] = list(known)
    if times.ratio is not None:
        entry['step_ratio_rounds'] = times.rounds
    if times.resumed:
        entry['step_times_resumed'] = True
    for name in ('by_position', 'saturated', 'as_drawn'):
        if getattr(decision, name):
            entry[name] = True
    return entry


def decision_from_json(entry: Dict[str, Any]) -> Decision:
    """Read a decision from its entry, also one of an earlier version.

    Args:
        entry (Dict[str, Any]): Entry from :func:`decision_to_json`.

    Returns:
        Decision: The decision.

    Raises:
        KeyError: If something is missing.
        TypeError: If something is of another type.
        ValueError: On an unknown status, or a number that is not finite or
            too large.
    """
    _expect(entry, _DECISION, 'a decision')
    first, last = entry['window']
    layers = []
    for layer in entry['layers']:
        if not layer['name'].isprintable():
            raise ValueError(f'a layer is called {layer["name"]!r:.40}')
        layers.append(
            LayerDecision(
                layer['name'],
                layer['stage'],
                layer['index'],
                Outcome(layer['status']),
                kl=layer['kl'],
                kl_std=layer['kl_std'],
                bad_iterations=layer.get('bad_iterations') or 0,
                # Records of earlier versions have no single iterations and no
                # measure but KL.
                kl_iterations=list(layer.get('kl_iterations') or []),
                excess=layer.get('excess'),
                conditional=layer.get('conditional'),
                conditional_std=layer.get('conditional_std'),
                conditional_iterations=list(
                    layer.get('conditional_iterations') or []),
                mapped=layer['mapped'],
                stability=layer.get('stability')))
    return Decision((first, last),
                    entry['epoch'],
                    entry['iter'],
                    entry['criterion'],
                    entry.get('skip') or 'layer',
                    layers,
                    samples=entry.get('samples'),
                    iterations=entry.get('iterations'),
                    steps=entry.get('steps', entry.get('iterations')),
                    step_samples=list(entry.get('step_samples') or []),
                    note=entry['note'],
                    by_position=bool(entry.get('by_position')),
                    saturated=bool(entry.get('saturated')),
                    as_drawn=bool(entry.get('as_drawn')),
                    redundancy=check_redundancy(
                        entry.get('redundancy') or 'paper'),
                    times=_times_from_json(entry))


def _times_from_json(entry: Dict[str, Any]) -> StepTimes:

    def known(name: str) -> Optional[tuple]:
        return tuple(entry[name]) if entry.get(name) else None

    return StepTimes(
        entry['step_time_before'],
        entry['step_time_after'],
        known('steps_timed') or (0, 0),
        known('step_quartiles_before'),
        known('step_quartiles_after'),
        known('step_ratio'),
        entry.get('step_ratio_rounds') or 0,
        bool(entry.get('step_times_resumed')))
