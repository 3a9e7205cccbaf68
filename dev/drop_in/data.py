"""Try the analyses on every kind of dataset and pipeline that the hosts' configs use.

A kind is a dataset within its wrappers, sampler and collation of its loader,
and the steps of its pipeline, nested ones included, of the loader that analyses
read. Of each the first config is taken: its own loader, wrappers, pipeline and
data_preprocessor, a stand-in for the data itself, and a small network.

    python -m dev.drop_in.data
    python -m dev.drop_in.data --resume --minutes 5
    python -m dev.drop_in.data --host mmpretrain --match cifar
"""
import argparse
import json
import re
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import track
from torch import nn

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from dev.drop_in.configs import HOSTS, configs_of, inside, reason
from dev.drop_in.stand_ins import Network, make_pictures, preprocessor, stand_in
from ela_mm.analysis.attention import measure
from ela_mm.analysis.cost import cost_of_config
from ela_mm.analysis.features import look
from ela_mm.analysis.whatif import compare, measured_window
from ela_mm.apis.data import (
    dataset_batches,
    file_batches,
    loader_of,
    picture_shape,
)
from ela_mm.apis.data_config import check_data, pipeline_of, walk
from ela_mm.apis.launch import run
from ela_mm.config_types import enter_scope, type_name
from ela_mm.errors import UsageError

ATTEMPTS = ('check', 'cost', 'what-if', 'Score-CAM')


class Kind(NamedTuple):
    """One kind of dataset and pipeline.

    Attributes:
        host (str): One of ``HOSTS``.
        data (str): Dataset within its wrappers, sampler, collation.
        steps (str): Of its pipeline.
    """
    host: str
    data: str
    steps: str


# --- kinds -------------------------------------------------------------------


def _wrapped(node: Any) -> str:
    """Dataset and wrappers, such as ``RepeatDataset(CocoDataset)``."""
    if isinstance(node, (list, tuple)):
        return ', '.join(dict.fromkeys(map(_wrapped, node)))
    within = node.get('dataset') or node.get('datasets')
    return type_name(node) + (f'({_wrapped(within)})' if within else '')


def kind_of_config(host: str, cfg: Config) -> Kind:
    """Find out which kind a config's analyses read."""
    name = loader_of(cfg)
    loader = cfg[name]
    parts = [_wrapped(loader.dataset)]
    parts += [type_name(loader[key])
              for key in ('sampler', 'batch_sampler', 'collate_fn')
              if loader.get(key)]
    return Kind(host, ', '.join(parts),
                ', '.join(map(type_name, walk(pipeline_of(cfg, name)))))


def catalogue(host: str, match: str,
              progress: Callable) -> Tuple[Dict[Kind, List[str]], int]:
    """The kinds of a host's configs, and how many configs have no data."""
    found: Dict[Kind, List[str]] = {}
    without = 0
    root = configs_of(host)
    paths = sorted(p.relative_to(root) for p in root.rglob('*.py'))
    for path in progress([p for p in paths if p.parts[0] != '_base_'
                          and re.search(match, f'/{host}/{p}')]):
        try:
            with inside(host), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                kind = kind_of_config(host, Config.fromfile(root / path))
        except Exception:  # does not load, or names no data
            without += 1
            continue
        found.setdefault(kind, []).append(str(path))
    return found, without


# --- trials ------------------------------------------------------------------


def _check(cfg: Config) -> None:
    """The data is not there, which has to be said in one line."""
    for name in ('train_dataloader', loader_of(cfg)):
        try:
            check_data(cfg, name)
        except UsageError as error:
            if 'does not exist' not in str(error):
                raise


def _cost(original: Config, cfg: Config, model: nn.Module) -> None:
    """Of the config's pictures, but no larger than is quick to time."""
    for config in (original, cfg):
        shape = picture_shape(config)
        if not all(32 <= side <= 4096 for side in shape):
            raise ArithmeticError(f'pictures of {shape}')
    cost_of_config(cfg, model, [min(side, 64) for side in shape], batch=2,
                   rounds=1)


def try_kind(host: str, config: str, folder: Path) -> Dict[str, str]:
    """Try a config's data: ``'ok'``, or why not, by attempt.

    Args:
        host (str): Whose it is.
        config (str): Path below the host's configs.
        folder (Path): Of :func:`make_pictures`.

    Returns:
        Dict[str, str]: For each of ``ATTEMPTS``.
    """
    torch.manual_seed(0)
    with inside(host), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        original = Config.fromfile(configs_of(host) / config)
        enter_scope(original)
        backbone = original.model.get('backbone') or {}
        cfg = stand_in(Config.fromfile(configs_of(host) / config), folder)
        model = Network(backbone.get('in_channels', 3)
                        if isinstance(backbone.get('in_channels', 3), int)
                        else 3, preprocessor(cfg)).eval()

        def what_if() -> None:
            found = measure(model, dataset_batches(cfg, 4))
            names = [x.name for x in model.backbone.attention_layers]
            if not compare(measured_window(found.kl, names, 'four')):
                raise ArithmeticError('nothing is compared')

        def maps() -> None:
            (batch, ) = file_batches(cfg, [str(folder / '0.png')])
            cam = look(model, batch, ['layer4.1'], 1).pruned[0].cam
            if not np.isfinite(cam).all():
                raise ArithmeticError('the map is not finite')

        attempts = dict(zip(ATTEMPTS, (
            lambda: _check(original),
            lambda: _cost(original, cfg, model),
            what_if, maps)))
        return {name: _outcome(attempt) for name, attempt in attempts.items()}


def _outcome(attempt: Callable) -> str:
    try:
        attempt()
    except Exception as error:
        return reason(error)
    return 'ok'


def report(results: List[Tuple[Kind, List[str], Dict[str, str]]]) -> None:
    """Print how many kinds pass, and every one that does not."""
    console = Console()
    for host in dict.fromkeys(kind.host for kind, _, _ in results):
        own = [x for x in results if x[0].host == host]
        console.print(f'{host}: {len(own)} kinds, '
                      f'{sum(len(x[1]) for x in own)} configs')
        for name in ATTEMPTS:
            well = [x for x in own if x[2].get(name) == 'ok']
            console.print(f'    {name}: {len(well)} '
                          f'({sum(len(x[1]) for x in well)})')
    for kind, configs, outcome in results:
        for name, value in outcome.items():
            if value != 'ok':
                console.print(
                    f'{name}: NO. {value}\n    {kind.data}\n    {kind.steps}'
                    f'\n    {len(configs)} configs, {configs[0]}',
                    markup=False, highlight=False, soft_wrap=True)


Result = Tuple[List[str], Dict[str, str]]


def _tried(kinds: Dict[Kind, List[str]], path: Path) -> Iterator[
        Tuple[Kind, Result]]:
    with tempfile.TemporaryDirectory() as folder, open(
            path, 'a', encoding='utf-8') as file:
        make_pictures(Path(folder))
        for kind, configs in kinds.items():
            try:
                outcome = try_kind(kind.host, configs[0], Path(folder))
            except Exception as error:  # of the config or the network
                outcome = dict.fromkeys(ATTEMPTS, reason(error))
            file.write(json.dumps([kind, configs, outcome]) + '\n')
            file.flush()
            yield kind, (configs, outcome)


def read(path: Path) -> Dict[Kind, Result]:
    """What an earlier run has tried; of a kind that was tried again the last."""
    found = {}
    for line in path.read_text(encoding='utf-8').splitlines():
        kind, configs, outcome = json.loads(line)
        found[Kind(*kind)] = configs, outcome
    return found


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--host', choices=HOSTS, action='append',
                        help='may be repeated; default: all')
    parser.add_argument('--match', default='', help='only configs whose '
                        '/host/folder/file.py matches this regular expression')
    parser.add_argument('--out', default='work_dirs/drop_in_data.jsonl',
                        help='one line a kind; default %(default)s')
    parser.add_argument('--minutes', type=float,
                        help='start no further kind after so long')
    parser.add_argument('--resume', action='store_true',
                        help='leave out what --out has')
    parser.add_argument('--again', action='store_true',
                        help='only what did not pass, as --out has it')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')
    path = Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = read(path) if args.resume or args.again else {}
    if args.again:
        kinds = {kind: configs for kind, (configs, outcome) in known.items()
                 if set(outcome.values()) != {'ok'}}
    else:
        kinds = {}
        for host in args.host or HOSTS:
            found, without = catalogue(
                host, args.match, lambda paths, host=host: track(
                    paths, f'reading the configs of {host}'))
            print(f'{host}: {len(found)} kinds; {without} configs do not load '
                  'or name no data')
            kinds.update(x for x in found.items() if x[0] not in known)
    end = time.monotonic() + 60 * (args.minutes or float('inf'))
    for kind, result in track(_tried(kinds, path), 'trying',
                              total=len(kinds)):
        known[kind] = result
        if time.monotonic() > end:
            break
    report([(kind, *result) for kind, result in known.items()])


if __name__ == '__main__':
    run(main)
