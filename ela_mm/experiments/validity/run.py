"""Runs the cells of a study, in one process or several."""
import json
import os.path as osp
import traceback
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Callable, Dict, List, Tuple

from ...engine.journal.record import write_whole
from ...errors import UsageError
from .cells import cells_of, run_cell
from .starts import run_start, start_cells
from .study import Study

SETTINGS = 'study.json'


def begin(study: Study, out: str) -> None:
    """Write the settings of a study to its folder.

    Raises:
        UsageError: If the folder was begun under other settings.
    """
    path = osp.join(out, SETTINGS)
    if osp.isfile(path):
        with open(path, encoding='utf-8') as file:
            begun = json.load(file).get('fingerprint')
        if begun != study.fingerprint:
            raise UsageError(
                f'{out} was begun under other settings than the study has '
                'now: choose another --out, or remove that folder')
        return
    write_whole(json.dumps(dict(title=study.title,
                                fingerprint=study.fingerprint)), path)


def tasks_of(study: Study, out: str) -> List[Tuple[str, Callable, tuple]]:
    """List what is left to run: label, function and arguments.

    All networks are measured before the first one is pruned, so that an
    unfinished study has results too.
    """
    if study.kind == 'starts':
        return [(cell.label, run_start, (cell, ))
                for cell in start_cells(study, out) if cell.result() is None]
    cells = cells_of(study, out)
    return [
        *((f'{cell.label}: measuring', run_cell, (cell, False))
          for cell in cells if not cell.is_measured()),
        *((f'{cell.label}: pruning', run_cell, (cell, True))
          for cell in cells if not cell.is_finished())
    ]


def run_study(study: Study, out: str, jobs: int = 1) -> int:
    """Run what is not finished of a study.

    Args:
        study (Study): Study, from
            :func:`~ela_mm.experiments.validity.study.read_study`.
        out (str): Folder of the runs.
        jobs (int): Number of processes, with one thread each. Defaults to 1:
            this process.

    Returns:
        int: Number of failures, whose tracebacks are printed.
    """
    begin(study, out)
    tasks = tasks_of(study, out)
    if jobs == 1:
        failures = 0
        for number, (label, function, arguments) in enumerate(tasks, 1):
            _say(number, tasks, label)
            try:
                function(*arguments)
            except UsageError:  # all others would raise the same
                raise
            except Exception:
                failures += 1
                traceback.print_exc()
        return failures
    # All measuring has to end before pruning begins.
    rounds: Dict[Callable, List] = {}
    for label, function, arguments in tasks:
        rounds.setdefault((function, *arguments[1:]), []).append(
            (label, function, arguments))
    return sum(_in_processes(own, jobs) for own in rounds.values())


def _in_processes(tasks: list, jobs: int) -> int:
    failures = 0
    with ProcessPoolExecutor(jobs, get_context('spawn')) as pool:
        futures: Dict[Future, str] = {
            pool.submit(function, *arguments): label
            for label, function, arguments in tasks
        }
        for number, future in enumerate(as_completed(futures), 1):
            _say(number, tasks, futures[future] + ' ended')
            error = future.exception()
            if isinstance(error, UsageError):
                for waiting in futures:
                    waiting.cancel()
                raise error
            if error is not None:
                failures += 1
                traceback.print_exception(type(error), error,
                                          error.__traceback__)
    return failures


def _say(number: int, tasks: list, label: str) -> None:
    print(f'[{number}/{len(tasks)}] {label}', flush=True)


