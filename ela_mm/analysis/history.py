"""What a run left in its work dir: decisions, step times, metrics."""
import glob
import json
import os.path as osp
import statistics
from collections import defaultdict
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ..engine.checkpoints import latest_intact
from ..engine.record import FILE_NAME, FORMAT, read_record
from ..errors import UsageError

Points = List[Tuple[float, float]]
# Which of a run's metrics stands for it, the first that there is.
MAIN_METRICS = ('coco/bbox_mAP', 'coco/segm_mAP', 'accuracy/top1',
                'single-label/f1-score', 'multi-label/mAP')


class Run(NamedTuple):
    """A work dir, read.

    Attributes:
        work_dir (str): Its path.
        record (dict): Of all decisions, see docs/record.md.
        config (str | None): Path of the config that mmengine left there.
        checkpoint (str | None): The latest that was written to its end.
        unit (str): ``'epoch'`` or ``'iteration'``: what windows and the
            following points count.
        step_times (Points): Pairs of unit and median seconds of a training
            step, data loading excluded.
        metric (str | None): Name of the main metric.
        metrics (Points): Pairs of unit and its value.
    """
    work_dir: str
    record: Dict[str, Any]
    config: Optional[str]
    checkpoint: Optional[str]
    unit: str
    step_times: Points
    metric: Optional[str]
    metrics: Points

    @property
    def decisions(self) -> List[Dict[str, Any]]:
        """One per window that has ended."""
        return self.record['decisions']

    @property
    def active(self) -> List[Tuple[float, int]]:
        """Pairs of unit and the number of active layers from then on."""
        decided = self.decisions
        # What was skipped before training, fresh in frozen stages, is no
        # decision; the first window finds it gone.
        start = (
            decided[0]['active'] + len(decided[0]['skipped'])
            if decided else len(self.record['active']))
        return [(0, start)] + [(d['window'][1], d['active']) for d in decided]


def read_run(work_dir: str) -> Run:
    """Read the work dir of a run that ELAPruneHook took part in.

    Args:
        work_dir (str): As given to ``tools/train.py``.

    Returns:
        Run: What was found; only the record has to be there.

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
        raise UsageError(str(error)) from None
    except json.JSONDecodeError as error:
        raise UsageError(
            f'{osp.join(work_dir, FILE_NAME)!r} is no JSON ({error}): it was '
            'changed or damaged; a resumed run writes it anew from its '
            'checkpoint') from None
    number = record.get('format') if isinstance(record, dict) else None
    if number != FORMAT or 'decisions' not in record:
        raise UsageError(
            f'{osp.join(work_dir, FILE_NAME)!r} has format {number!r}, this '
            f'version of ela_mm reads {FORMAT}: install the version that wrote '
            'it')
    by_epoch = record['by_epoch']
    entries = _log_entries(work_dir)
    name, metrics = _main_metric(entries)
    return Run(
        work_dir=work_dir,
        record=record,
        config=_config(work_dir),
        checkpoint=latest_intact(work_dir)[0],
        unit='epoch' if by_epoch else 'iteration',
        step_times=_step_times(entries, 'epoch' if by_epoch else 'iter'),
        metric=name,
        metrics=metrics)


def decided(run: Run) -> List[Dict[str, Any]]:
    """The decisions of a run.

    Raises:
        UsageError: If no window has ended yet.
    """
    if not run.decisions:
        raise UsageError(
            f'no window of the run in {run.work_dir!r} has ended yet (windows '
            f'{run.record["windows"]}, counted in {run.unit}s): nothing was '
            'decided, there is nothing to show')
    return run.decisions


def _config(work_dir: str) -> Optional[str]:
    """The newest: a work dir may have been trained in more than once."""
    return max(
        glob.glob(osp.join(glob.escape(work_dir), '*.py')),
        key=osp.getmtime,
        default=None)


def _log_entries(work_dir: str) -> List[dict]:
    """What mmengine's LocalVisBackend wrote, of all times it was started."""
    entries = []
    for path in sorted(
            glob.glob(
                osp.join(
                    glob.escape(work_dir), '*', 'vis_data', 'scalars.json'))):
        with open(path) as file:
            for line in file:
                try:
                    entries.append(json.loads(line))
                except json.JSONDecodeError:  # cut off by a kill
                    continue
    return entries


def _step_times(entries: List[dict], unit: str) -> Points:
    by_iteration = {  # of a part that was run twice, the later
        entry['iter']: entry
        for entry in entries if {'iter', 'time', unit} <= set(entry)
    }
    times = defaultdict(list)
    for entry in by_iteration.values():
        times[entry[unit]].append(entry['time'] - entry.get('data_time', 0.))
    return sorted((x, statistics.median(t)) for x, t in times.items())


def _main_metric(entries: List[dict]) -> Tuple[Optional[str], Points]:
    points: Dict[str, Dict[int, float]] = defaultdict(dict)
    for entry in entries:
        if 'iter' in entry or any(key.startswith('ela/') for key in entry):
            continue
        for key, value in entry.items():
            if key not in ('step', 'time', 'data_time') and isinstance(
                    value, float):
                points[key][entry['step']] = value
    names = [n for n in MAIN_METRICS if n in points] or list(points)
    if not names:
        return None, []
    return names[0], sorted(points[names[0]].items())
