"""Replace backbones by ELA's in all configs that the hosts have installed.

Counts which models build and train a step with the plain backbone and with
ELA, on random pictures. Building all takes half an hour on 2 cores, steps
take hours; started again with --resume it goes on. Families of which no model
was tried come first, then models that build quickly.

    python -m dev.drop_in.run --build-only
    python -m dev.drop_in.run --resume --minutes 5
    python -m dev.drop_in.run --match '/(mask_rcnn|solov2)/' --limit 4
    python -m dev.drop_in.run --report
"""
import argparse
import json
import multiprocessing
import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from mmengine.logging import MMLogger
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, track
from rich.table import Table

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from dev.drop_in.configs import HOSTS, NO_BACKBONE, Entry, catalogue, count
from dev.drop_in.trial import try_model
from ela_mm.apis.launch import UsageError, run

ATTEMPTS = dict(plain_build='plain builds', ela_build='ELA builds',
                plain_step='plain trains a step', ela_step='ELA trains a step')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--host', choices=HOSTS, action='append',
                        help='may be repeated; default: those installed')
    parser.add_argument('--match', default='',
                        help='only models with a config whose '
                        '/host/folder/file.py matches this regular expression')
    parser.add_argument('--limit', type=int, help='at most so many models')
    parser.add_argument('--minutes', type=float,
                        help='start no further model after so long')
    parser.add_argument('--timeout', type=float, default=90,
                        help='seconds for one model, default 90')
    parser.add_argument('--memory', type=float,
                        help='GiB that one model may take; default: no limit')
    parser.add_argument('--build-only', action='store_true',
                        help='train no step')
    parser.add_argument('--out', default='work_dirs/drop_in.jsonl',
                        help='results, one line each; default %(default)s')
    parser.add_argument('--resume', action='store_true',
                        help='leave out what the results have')
    parser.add_argument('--report', action='store_true',
                        help='only print what the results have')
    return parser.parse_args()


def _work(connection, memory: Optional[float]) -> None:
    """A process of its own, so that a crash costs one model."""
    if memory:
        import resource  # not on Windows
        size = int(memory * 2 ** 30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    MMLogger.get_current_instance().setLevel('ERROR')  # of every init_weights
    while True:
        try:
            entry, steps = connection.recv()
        except EOFError:  # the parent has ended
            return
        try:
            result = try_model(Entry(*entry), steps)
        except Exception as error:  # the config itself
            result = dict(plain_build=f'{type(error).__name__}: {error}')
        if any(re.search("can't allocate memory|MemoryError", str(value))
               for value in result.values()):
            result = dict(failure=f'needs more memory than {memory:g} GiB'
                          if memory else 'needs more memory')
        connection.send(result)


class Worker:
    """Tries models in another process, which it replaces when it dies."""

    def __init__(self, timeout: float, memory: Optional[float]) -> None:
        self.timeout = timeout
        self.memory = memory
        self._context = multiprocessing.get_context('spawn')
        self._process = None

    def _start(self) -> None:
        self._connection, other = self._context.Pipe()
        self._process = self._context.Process(
            target=_work, args=(other, self.memory), daemon=True)
        self._process.start()
        other.close()

    def __call__(self, entry: Entry, steps: bool) -> Dict[str, Any]:
        used = self._process is not None
        result = self._try(entry, steps)
        if used and 'memory' in result.get('failure', ''):
            return self._try(entry, steps)  # earlier models may have left some
        return result

    def _try(self, entry: Entry, steps: bool) -> Dict[str, Any]:
        if self._process is None:
            self._start()
        self._connection.send((tuple(entry), steps))
        failure = f'took longer than {self.timeout:g} s'
        try:
            if self._connection.poll(self.timeout):
                result = self._connection.recv()
                # What is left after a lack of memory may crash the next model.
                if 'failure' not in result:
                    return result
                failure = result['failure']
        except EOFError:
            self._process.join()
            failure = f'the process died ({self._process.exitcode})'
        self._process.kill()
        self._process = None
        return dict(failure=failure)


def read(path: Path) -> Tuple[List[Entry], Dict[str, Any], Dict[str, Any]]:
    """Catalogue, left-out configs and results of an earlier run."""
    entries: List[Entry] = []
    others: Dict[str, Any] = {}
    results: Dict[str, Any] = {}
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            item = json.loads(line)
        except ValueError:
            continue  # cut off when the run was interrupted
        if 'catalogue' in item:
            entries += [Entry(*entry) for entry in item['catalogue']]
            others[item['host']] = item['others']
        else:
            results.setdefault(item.pop('key'), {}).update(item)
    return entries, others, results


def cheapest_first(entries: List[Entry], todo: List[Entry],
                   results: Dict[str, Any]) -> List[Entry]:
    """Order models: one of each family without a step yet, then by cost.

    Args:
        entries (List[Entry]): All models.
        todo (List[Entry]): Those to order.
        results (Dict[str, Any]): Of all that was tried, by key. The seconds
            that building took tell how large a model is.

    Returns:
        List[Entry]: ``todo``; of equal cost in the order given.
    """
    def cost(entry: Entry) -> float:
        return results.get(entry.key, {}).get('seconds', float('inf'))

    seen = {(e.host, e.family) for e in entries
            if 'plain_step' in results.get(e.key, {})}
    first, later = [], []
    for entry in sorted(todo, key=cost):
        family = entry.host, entry.family
        (later if family in seen else first).append(entry)
        seen.add(family)
    return first + later


def append(path: Path, item: dict) -> None:
    with open(path, 'a', encoding='utf-8') as file:
        file.write(json.dumps(item) + '\n')


def report(entries: List[Entry], others: Dict[str, Any],
           results: Dict[str, Any]) -> None:
    """Print the counts, and every failure that the plain network has not."""
    console = Console()
    table = Table('', *(f'{host}: models (configs)' for host in others))
    counts, without = ([
        count([e for e in entries if e.host == host and bool(e.backbones) == has],
              results) for host in others] for has in (True, False))

    def cell(pair: Tuple[int, int]) -> str:
        return f'{pair[0]} ({pair[1]})'

    def share(some: int, of: int) -> str:
        return f'{some / of:.1%} ({some} of {of})' if of else '-'

    table.add_row('configs without a backbone that has ELA', *(
        f'({sum(v == NO_BACKBONE for v in o.values())})'
        for o in others.values()))
    table.add_row('configs that do not load', *(
        f'({sum(v != NO_BACKBONE for v in o.values())})'
        for o in others.values()))
    table.add_row('with a backbone to replace', *(cell(c['found'])
                                                for c in counts))
    for attempt, title in ATTEMPTS.items():
        table.add_row(title, *(
            f'{cell(c[attempt])} of {cell(c[attempt + " tried"])}'
            for c in counts))
    table.add_row('without one: plain builds', *(
        f'{cell(c["plain_build"])} of {cell(c["plain_build tried"])}'
        for c in without))
    table.add_row('ELA builds, of all configs that build plain', *(
        share(c['ela_build'][1], c['plain_build'][1] + w['plain_build'][1])
        for c, w in zip(counts, without)))
    console.print(table)
    groups: Dict[Tuple[str, str], List[str]] = {}
    for entry in entries:
        for name, value in results.get(entry.key, {}).items():
            if name in (*ATTEMPTS, 'failure') and value != 'ok':
                groups.setdefault((name, value), []).append(
                    f'{entry.host}/{entry.configs[0]}')
    for (name, value), paths in sorted(groups.items()):
        console.print(f'{ATTEMPTS.get(name, "failure")}: NO, {len(paths)} '
                      f'models. {value}\n    {", ".join(paths[:3])}',
                      markup=False, emoji=False, highlight=False,
                      soft_wrap=True)


def main() -> None:
    args = parse_args()
    path = Path(args.out)
    if args.report and not path.is_file():
        raise UsageError(f'{args.out!r} does not exist: run without --report')
    if path.exists() and not (args.resume or args.report):
        raise UsageError(f'{args.out!r} has results already: go on with '
                         '--resume, print them with --report, or delete it')
    path.parent.mkdir(parents=True, exist_ok=True)
    entries, others, results = read(path) if path.exists() else ([], {}, {})
    if args.report:
        report(entries, others, results)
        return
    hosts = args.host or [host for host in HOSTS if find_spec(host)]
    for host in hosts:
        if host not in others:
            found, others[host] = catalogue(
                host, lambda paths, host=host: track(
                    paths, f'reading the configs of {host}'))
            entries += found
            append(path, dict(host=host, catalogue=found,
                              others=others[host]))

    def wanted(entry: Entry) -> bool:
        known = results.get(entry.key, {})
        done = 'failure' in known or known.get('plain_build', 'ok') != 'ok' or (
            'plain_build' in known and not entry.backbones) or (
            'ela_build' in known and (args.build_only
                                      or 'plain_step' in known))
        return not done and entry.host in hosts and any(
            re.search(args.match, f'/{entry.host}/{config}')
            for config in entry.configs)

    todo = cheapest_first(entries, list(filter(wanted, entries)), results)
    todo = todo[:args.limit]
    end = time.monotonic() + 60 * (args.minutes or float('inf'))
    worker = Worker(args.timeout, args.memory)
    with Progress() as progress:
        task = progress.add_task('trying', total=len(todo))
        for entry in todo:
            if time.monotonic() > end:
                break
            progress.update(
                task,
                description=escape(f'{entry.host}/{entry.configs[0]}'[:60]))
            start = time.monotonic()
            result = worker(entry, not args.build_only)
            result['seconds'] = round(time.monotonic() - start, 2)
            results.setdefault(entry.key, {}).update(result)
            append(path, dict(key=entry.key, **result))
            progress.advance(task)
    report(entries, others, results)


if __name__ == '__main__':
    run(main)
