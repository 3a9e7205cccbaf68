"""Reads the work dir of a run: decisions, step times, metrics."""
import glob
import json
import os.path as osp
import re
import statistics
from collections import defaultdict
from math import isfinite, nan
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from mmengine.runner import CheckpointLoader

from ..apis.launch import check_checkpoint
from ..engine.checkpoints import latest_intact
from ..engine.journal.record import decisions_of, edits_of, read_record
from ..engine.resumption import STATE_KEY
from ..errors import UsageError
from ..hosts.registration import installed
from ..pruning.decision import Decision
from ..pruning.edit import MaskEdit

Points = List[Tuple[float, float]]


class Run(NamedTuple):
    """What the work dir of a run contains.

    Attributes:
        work_dir (str): Path of the work dir.
        record (dict): Record of all decisions, see docs/record.md.
        config (str | None): Path of the config that it was trained with.
        checkpoint (str | None): Path of the latest intact checkpoint.
        unit (str): ``'epoch'`` or ``'iteration'``, whichever windows and the
            following points count.
        step_times (Points): Pairs of epoch (or iteration) and median seconds of
            a training step without data loading, as the hook has recorded
            them; for runs of earlier versions as the training has logged them.
        metric (str | None): Name of the main metric.
        metrics (Points): Pairs of epoch (or iteration) and value of the metric;
            NaN if it was not finite.
        losses (Points): Pairs of epoch (or iteration) and mean of the logged
            losses; NaN if one was not finite.
        step_quartiles (List[Tuple]): Epoch (or iteration), first and third
            quartile for each of ``step_times``; empty for runs of earlier
            versions.
    """
    work_dir: str
    record: Dict[str, Any]
    config: Optional[str]
    checkpoint: Optional[str]
    unit: str
    step_times: Points
    metric: Optional[str]
    metrics: Points
    losses: Points = []
    step_quartiles: List[Tuple[float, float, float]] = []

    @property
    def decisions(self) -> List[Decision]:
        """Decisions, one for each window that has ended."""
        return decisions_of(self.record)

    @property
    def edits(self) -> List[MaskEdit]:
        """Changes by hand in checkpoints that the run was resumed from."""
        return edits_of(self.record)

    @property
    def best(self) -> Optional[Tuple[float, float]]:
        """Highest of ``metrics``; None if none is a finite number."""
        return max((point for point in self.metrics if isfinite(point[1])),
                   key=lambda point: point[1], default=None)

    @property
    def diverged(self) -> Optional[float]:
        """Epoch (or iteration) from which on no loss is finite; None without."""
        first = None
        for x, loss in self.losses:
            first = None if isfinite(loss) else x if first is None else first
        return first

    def place(self, edit: MaskEdit) -> int:
        """Return the epoch or iteration of an edit."""
        return edit.epoch if self.unit == 'epoch' else edit.iter

    @property
    def active(self) -> List[Tuple[float, int]]:
        """Pairs of epoch (or iteration) and active layers from then on."""
        # The initial number follows from the final one, since layers may be
        # skipped before training without a decision (fresh in frozen stages).
        changes = sorted(
            [(d.window[1], 0, -len(d.skipped)) for d in self.decisions] +
            [(self.place(e), 1, len(e.restored) - len(e.skipped))
             for e in self.edits])
        count = len(self.record['active']) - sum(c for *_, c in changes)
        points = [(0, count)]
        for x, _, change in changes:
            count += change
            points.append((x, count))
        return points


def read_run(work_dir: str, needs_record: bool = True) -> Run:
    """Read the work dir of a run.

    Args:
        work_dir (str): Work dir, as given to ``tools/train.py``.
        needs_record (bool): Whether the run has to have a record, that is to
            have trained with ELAPruneHook. If False, other runs get an empty
            record. Defaults to True.

    Returns:
        Run: What was found; anything but the record may be missing.

    Raises:
        UsageError: If there is no such folder, no record, or one that this
            version cannot read.
    """
    if not osp.isdir(work_dir):
        raise UsageError(f'{work_dir!r} is no folder: expected the work dir of '
                         'a run')
    try:
        record = read_record(work_dir)
    except FileNotFoundError as error:
        if needs_record:
            raise UsageError(str(error)) from None
        record = dict(by_epoch=True, windows=[], criterion=dict(type='none'),
                      skip='layer', layers=[], active=[], decisions=[])
    by_epoch = record['by_epoch']
    unit = 'epoch' if by_epoch else 'iter'
    logs = _read_logs(work_dir)
    name, metrics = _main_metric(logs, unit)
    recorded = record.get('step_times') or []
    return Run(
        work_dir=work_dir,
        record=record,
        config=find_config(work_dir, logs),
        checkpoint=latest_intact(work_dir)[0],
        unit='epoch' if by_epoch else 'iteration',
        step_times=[(x, median) for x, _, median, _ in recorded]
        or _step_times(logs, unit),
        step_quartiles=[(x, first, third) for x, first, _, third in recorded],
        metric=name,
        metrics=metrics,
        losses=_by_unit(logs, unit,
                        lambda entry: _measured(entry.get('loss')),
                        statistics.mean))


def as_of(run: Run, state: Dict[str, Any]) -> Run:
    """Return a run as it was when a checkpoint was saved.

    Args:
        run (Run): The run as it is now.
        state (Dict[str, Any]): State of ELAPruneHook in the checkpoint.

    Returns:
        Run: A copy with the decisions and edits of that time.
    """
    record = dict(run.record, decisions=state['decisions'],
                  edits=state.get('edits', []))
    then = run._replace(record=record)
    # Layers skipped before training, which no decision mentions.
    gone = set(record['layers']).difference(record['active']) - _skipped(run)
    gone |= _skipped(then)
    record['active'] = [n for n in record['layers'] if n not in gone]
    return then


def as_of_checkpoint(run: Run, path: str) -> Run:
    """Return a run as it was when a checkpoint was saved.

    Args:
        run (Run): The run as it is now.
        path (str): Path of the checkpoint.

    Returns:
        Run: A copy, see :func:`as_of`.

    Raises:
        UsageError: If the checkpoint has no state of ELAPruneHook.
    """
    check_checkpoint(path)
    state = CheckpointLoader.load_checkpoint(
        path, 'cpu', logger='silent').get(STATE_KEY)
    if state is None:
        raise UsageError(f'{path!r} has no decisions of ELAPruneHook')
    return as_of(run, state)


def _skipped(run: Run) -> Set[str]:
    """Return the layers skipped by decisions or by hand, and not restored."""
    changes = [(d.iter, d.skipped, []) for d in run.decisions]
    changes += [(e.iter, e.skipped, e.restored) for e in run.edits]
    gone: Set[str] = set()
    for _, skipped, restored in sorted(changes, key=lambda change: change[0]):
        gone = gone.union(skipped).difference(restored)
    return gone


def decided(run: Run) -> List[Decision]:
    """Return the decisions of a run.

    Raises:
        UsageError: If no window has ended yet.
    """
    if not run.decisions:
        raise UsageError(
            f'no window of the run in {run.work_dir!r} has ended yet (windows '
            f'{run.record["windows"]}, counted in {run.unit}s): nothing was '
            'decided, there is nothing to show')
    return run.decisions


def find_config(work_dir: str,
                logs: Optional['_Logs'] = None) -> Optional[str]:
    """Find the config that a run was trained with.

    It is the config of the latest start that has trained, or else the newest
    one in the work dir. The latter may be of a test: the hosts' test tools
    overwrite it, and ``--tta`` wraps the model in it.

    Args:
        work_dir (str): Work dir of the run.
        logs (optional): Logs of the run, if they are read already.

    Returns:
        str | None: Path of the config; None if there is none.
    """
    logs = logs or _read_logs(work_dir)
    if logs.start is not None:
        path = osp.join(logs.start, 'config.py')  # from LocalVisBackend
        if osp.isfile(path):
            return path
    paths = glob.glob(osp.join(glob.escape(work_dir), '*.py'))
    for path in sorted(
            filter(osp.isfile, paths), key=osp.getmtime, reverse=True):
        with open(path, encoding='utf-8', errors='replace') as file:
            if re.search(r'^model = ', file.read(), re.M):  # as mmengine dumps
                return path
    return None


class _Logs(NamedTuple):
    """Logs of mmengine's LocalVisBackend.

    Attributes:
        steps (Dict[int, dict]): Logged training steps, by iteration.
        metrics (Dict[int, dict]): Validations, by epoch, or by iteration in an
            iteration-based loop.
        start (str | None): Folder of the latest start that has trained.
    """
    steps: Dict[int, dict]
    metrics: Dict[int, dict]
    start: Optional[str]


def _read_logs(work_dir: str) -> _Logs:
    """Join the logs of all starts; a later start replaces what it repeats."""
    pattern = osp.join(
        glob.escape(work_dir), '*', 'vis_data', 'scalars.json')
    logs = _Logs({}, {}, None)
    # Folders are named by the time of the start.
    for path in sorted(filter(osp.isfile, glob.glob(pattern))):
        steps, metrics = _read_log(path)
        if not steps:
            # All was trained, and the resumed checkpoint validated; or, at
            # step 0, a validation alone.
            logs.metrics.update({x: m for x, m in metrics.items() if x})
            continue
        begin = min(steps)
        first_val = steps[begin].get('epoch', begin)
        for points, start in ((logs.steps, begin), (logs.metrics, first_val)):
            for x in [x for x in points if x >= start]:
                del points[x]
        logs.steps.update(steps)
        logs.metrics.update(metrics)
        logs = logs._replace(start=osp.dirname(path))
    return logs


def _read_log(path: str) -> Tuple[Dict[int, dict], Dict[int, dict]]:
    steps, metrics = {}, {}
    with open(path, encoding='utf-8', errors='replace') as file:
        for line in file:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):  # truncated, or no JSON
                continue
            if not isinstance(entry, dict):
                continue
            if 'iter' in entry:
                if all(_is_count(entry.get(key, 0)) for key in ('iter', 'epoch')):
                    steps[entry['iter']] = entry
            elif _is_count(entry.get('step')) and not any(
                    key.startswith('ela/') for key in entry):
                metrics[entry['step']] = entry
    return steps, metrics


def _is_count(value: Any) -> bool:
    return type(value) is int and abs(value) < 1e15


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e15  # NaN is not


def _measured(value: Any) -> Optional[float]:
    """Return a loss or a metric, NaN if it is not finite; None of other types."""
    if type(value) not in (int, float):
        return None
    return value if _is_number(value) else nan


def _step_times(logs: _Logs, unit: str) -> Points:

    def seconds(entry: dict) -> Optional[float]:
        step, loading = entry.get('time'), entry.get('data_time', 0.)
        known = _is_number(step) and _is_number(loading)
        return step - loading if known else None

    return _by_unit(logs, unit, seconds, statistics.median)


def _by_unit(logs: _Logs, unit: str, value_of: Callable,
             average: Callable) -> Points:
    """Average a value over the logged steps of each epoch or iteration."""
    values = defaultdict(list)
    for entry in logs.steps.values():
        value = value_of(entry)
        if unit in entry and value is not None:
            values[entry[unit]].append(value)
    return sorted((x, average(found)) for x, found in values.items())


def _main_metric(logs: _Logs, unit: str) -> Tuple[Optional[str], Points]:
    ends = {}  # last iteration of each epoch, if windows count iterations
    if unit == 'iter':
        for entry in logs.steps.values():
            if 'epoch' in entry:
                ends[entry['epoch']] = max(
                    entry['iter'], ends.get(entry['epoch'], 0))
    points: Dict[str, Dict[float, float]] = defaultdict(dict)
    for step, entry in logs.metrics.items():
        for key, value in entry.items():
            if key not in ('step', 'time', 'data_time') and isinstance(
                    value, float):
                points[key][ends.get(step, step)] = _measured(value)
    main = [name for host in installed() for name in host.main_metrics]
    names = [n for n in main if n in points] or list(points)
    if not names:
        return None, []
    return names[0], sorted(points[names[0]].items())
