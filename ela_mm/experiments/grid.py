"""Grids of runs (variants x depths x seeds), read from a file."""
import hashlib
import itertools
import json
import os.path as osp
import runpy
from functools import lru_cache
from typing import Any, Dict, List, NamedTuple, Optional, Union

import yaml
from mmengine.config import Config

from ..apis.loading import config_from_file
from ..errors import UsageError
from .published import read_table
from .systems import overrides as system_overrides

# Keys of a grid file, and the types of their values.
KEYS: Dict[str, tuple] = dict(
    config=(str, dict), depths=(list, ), seeds=(list, dict), systems=(list, ),
    variants=(dict, ), overrides=(dict, ), metrics=(list, ),
    paper=(dict, str), title=(str, ))
REQUIRED = ('config', 'seeds')
METRICS = ('accuracy/top1', )
# Evaluators by the first part of the metric's name.
EVALUATORS = dict(accuracy='Accuracy', coco='CocoMetric')


class Cell(NamedTuple):
    """One run of a grid.

    Attributes:
        variant (str): Name of the criterion, architecture or system.
        depth (int, optional): Depth of the backbone; None: that of the config.
        seed (int): Seed of the run.
        config (str): Path of the config file.
        overrides (Dict[str, Any]): Values to set in the config, by dotted keys.
        name (str): Name of the config, if the grid has several. Defaults to
            ``''``.
    """
    variant: str
    depth: Optional[int]
    seed: int
    config: str
    overrides: Dict[str, Any]
    name: str = ''

    @property
    def network(self) -> Union[int, str, None]:
        """Name of the network in tables: the config's name, or the depth."""
        return self.name or self.depth

    @property
    def label(self) -> str:
        """Description of the run: variant, network, depth and seed."""
        parts = [self.variant, self.name,
                 f'depth {self.depth}' if self.depth else '',
                 f'seed {self.seed}']
        return ', '.join(filter(None, parts))

    @property
    def folder(self) -> str:
        """Path of the run's folder below that of the grid."""
        parts = [_file_name(self.variant), _file_name(self.name),
                 f'depth_{self.depth}' if self.depth else '',
                 f'seed_{self.seed}']
        return osp.join(*filter(None, parts))

    @property
    def settings(self) -> Dict[str, Any]:
        """Everything that decides the result, the config's content included."""
        decisive = dict(self._asdict(), config=_content(self.config))
        del decisive['name']
        return decisive

    @property
    def fingerprint(self) -> str:
        """Hash of the settings."""
        text = json.dumps(self.settings, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def begin(self) -> Dict[str, Any]:
        """Describe the run for the file in its folder.

        Returns:
            Dict[str, Any]: The description, in types of JSON.
        """
        return json.loads(
            json.dumps(
                dict(cell=self._asdict(), fingerprint=self.fingerprint,
                     settings=self.settings),
                default=str))

    def difference(self, begun: Dict[str, Any]) -> Optional[str]:
        """Say which setting has changed since a run was begun.

        Args:
            begun (Dict[str, Any]): Description from :meth:`begin` at that time;
                those of earlier versions have no settings.

        Returns:
            str | None: What has changed; None if nothing has.
        """
        if begun['fingerprint'] == self.fingerprint:
            return None
        then = begun.get('settings') or {
            k: v for k, v in begun.get('cell', {}).items()
            if k not in ('config', 'name')}
        then, now = _flat(then), _flat(self.begin()['settings'])
        for key in sorted({*then, *now}):
            if then.get(key) != now.get(key) and (
                    'settings' in begun or not key.startswith('config')):
                return (f'{key} was {_short(then, key)}, is '
                        f'{_short(now, key)}')
        return 'its config has changed'


def _flat(tree: Any, prefix: str = '') -> Dict[str, Any]:
    """Return the values of nested dicts and lists by dotted keys."""
    if isinstance(tree, dict):
        pairs = tree.items()
    elif isinstance(tree, list) and tree:
        pairs = enumerate(tree)
    else:
        return {prefix[:-1]: tree}
    return {key: value for name, branch in pairs
            for key, value in _flat(branch, f'{prefix}{name}.').items()}


def _short(values: Dict[str, Any], key: str) -> str:
    return f'{values[key]!r:.60}' if key in values else 'not there'


def _file_name(text: str) -> str:
    return ''.join(c if c.isalnum() or c in '-_' else '_' for c in text)


@lru_cache(maxsize=None)
def _content(config: str) -> dict:
    return config_from_file(config).to_dict()


def read_grid(path: str) -> dict:
    """Read and check a grid file.

    Required keys are ``config`` (a path, relative to the current folder or to
    the repository, which may contain ``{depth}``; or several, name -> path),
    ``seeds`` (a list, or depth -> list), and ``variants`` (name -> overrides)
    or ``systems`` (names of
    :data:`~ela_mm.experiments.systems.SYSTEMS`) or both. Optional are
    ``depths`` (of the backbone; by default that of the config), ``overrides``
    (for every run), ``metrics`` (named as by the config's evaluator; by default
    ``accuracy/top1``), ``paper`` (name -> depth or config's name -> number of
    the first metric; or the name of a published table, whose systems are then
    run only for the networks in it) and ``title``.

    Args:
        path (str): Path of a YAML or JSON file, or of a Python file whose
            variables are the keys.

    Returns:
        dict: The grid, with ``metrics``, ``systems`` and ``variants`` filled
        in.

    Raises:
        UsageError: If the file is malformed; it names the file and the error.
    """
    if not osp.isfile(path):
        raise UsageError(f'grid {path!r} does not exist: expected a .yaml, '
                         '.json or .py file')
    try:
        if path.endswith('.py'):
            grid = {k: v for k, v in runpy.run_path(path).items()
                    if not k.startswith('_')}
        else:
            with open(path, encoding='utf-8') as file:
                # Not by mmengine, whose YAML reader may run code in the file.
                grid = json.load(file) if path.endswith(
                    '.json') else yaml.safe_load(file)
    except Exception as error:  # the file's code may raise anything
        first = (str(error).splitlines() or [''])[0]
        raise UsageError(f'{path}: {type(error).__name__}: {first}') from None
    if not isinstance(grid, dict):
        raise UsageError(f'{path}: expected keys {", ".join(KEYS)}, got '
                         f'{type(grid).__name__}')
    for key in grid:
        if key not in KEYS:
            raise UsageError(f'{path}: unknown key {key!r}; expected '
                             f'{", ".join(KEYS)}')
    for key in REQUIRED:
        if not grid.get(key):
            raise UsageError(f'{path}: {key!r} is missing or empty')
    if not (grid.get('variants') or grid.get('systems')):
        raise UsageError(f"{path}: 'variants' is missing or empty, and so is "
                         "'systems'")
    for key, value in grid.items():
        if not isinstance(value, KEYS[key]):
            expected = ' or a '.join(kind.__name__ for kind in KEYS[key])
            raise UsageError(f'{path}: {key} is {value!r}, expected a '
                             f'{expected}')
    grid.setdefault('metrics', list(METRICS))
    grid.setdefault('systems', [])
    grid.setdefault('variants', {})
    for name, overrides in grid['variants'].items():
        if not isinstance(overrides, dict):
            raise UsageError(f'{path}: variant {name!r} is {overrides!r}, '
                             'expected overrides ({} for none)')
    if isinstance(grid.get('paper'), str):
        read_table(grid['paper'])
    else:  # in JSON, keys cannot be numbers
        grid['paper'] = {
            variant: {_network(key): number for key, number in row.items()}
            for variant, row in grid.get('paper', {}).items()
            if isinstance(row, dict)
        }
    if isinstance(grid['seeds'], dict):
        grid['seeds'] = {_network(d): s for d, s in grid['seeds'].items()}
    _check_entries(path, grid)
    return grid


def _check_entries(path: str, grid: dict) -> None:
    """Check the entries that name runs and folders: texts and integers."""
    seeds, configs = grid['seeds'], grid['config']
    several = isinstance(configs, dict)
    texts = [*grid['variants'], *grid['systems'], *grid['metrics'],
             *grid.get('overrides', {}), *(configs if several else ()),
             *(configs.values() if several else ()),
             *(key for own in grid['variants'].values() for key in own)]
    for text in texts:
        if not isinstance(text, str) or not text:
            raise UsageError(f'{path}: {text!r} is no name: expected text, in '
                             'quotes where YAML takes it for something else')
    numbers = list(grid.get('depths', []))
    for own in seeds.values() if isinstance(seeds, dict) else [seeds]:
        numbers += own if isinstance(own, list) else [own]
    if isinstance(seeds, dict):
        numbers += seeds
    for number in numbers:
        if type(number) is not int or number < 0:
            raise UsageError(f'{path}: {number!r} among depths and seeds: '
                             'expected whole numbers from 0 on')
    both = set(grid['variants']).intersection(grid['systems'])
    if both:
        raise UsageError(f'{path}: {min(both)!r} is a system and a variant: '
                         'expected another name for one of them')


def _network(key: Union[int, str]) -> Union[int, str]:
    return int(key) if str(key).isdecimal() else key


def short_name(metric: str) -> str:
    """Return a metric's name without its prefix, such as ``bbox_mAP``."""
    return metric.split('/')[-1]


def published_number(grid: dict, variant: str, network: Union[int, str, None],
                     metric: str) -> Union[float, str, None]:
    """Look up the paper's number for a group of runs.

    Args:
        grid (dict): Grid from :func:`read_grid`.
        variant (str): Name of the variant or system.
        network (int | str, optional): Network, see :attr:`Cell.network`.
        metric (str): One of the grid's metrics.

    Returns:
        float | str | None: The number in percent, possibly with a deviation;
        None if the paper has no such number.
    """
    paper = grid['paper']
    if isinstance(paper, str):
        row = read_table(paper).rows.get((variant, network))
        return row and row.numbers.get(short_name(metric))
    if metric != grid['metrics'][0]:
        return None
    return paper.get(variant, {}).get(network)


def cells(grid: dict, root: str) -> List[Cell]:
    """List the runs of a grid, ordered by seed.

    Args:
        grid (dict): Grid from :func:`read_grid`.
        root (str): Folder that a relative ``config`` is looked for in, if it is
            not found from the current folder.

    Returns:
        List[Cell]: A run for each seed, config, depth and variant, systems
        first. All runs of a seed come before those of the next.

    Raises:
        UsageError: If a config does not exist, does not evaluate the first
            metric or does not fit a system, or if two runs would share a
            folder.
    """
    configs = grid['config']
    if isinstance(configs, str):
        configs = {'': configs}
    networks = []
    for (name, config), depth in itertools.product(
            configs.items(), grid.get('depths') or [None]):
        config = config.replace('{depth}', str(depth))
        if not osp.isfile(config):
            config = osp.join(root, config)
        if not osp.isfile(config):
            raise UsageError(f'config {config!r} of the grid does not exist')
        _check_metric(config, grid['metrics'][0])
        networks.append((name, config, depth, {
            **_systems(grid, config, depth, name or depth),
            **grid['variants']
        }))
    seeds = grid['seeds']
    rounds = seeds
    if isinstance(seeds, dict):
        rounds = dict.fromkeys(seed for own in seeds.values() for seed in own)
    runs = [
        Cell(variant, depth, seed, config,
             {**grid.get('overrides', {}), **overrides}, name)
        for seed in rounds
        for name, config, depth, variants in networks
        if seed in _seeds(seeds, depth)
        for variant, overrides in variants.items()
    ]
    folders: Dict[str, Cell] = {}
    for cell in runs:
        other = folders.setdefault(cell.folder, cell)
        if other is not cell:
            raise UsageError(
                f'two runs of the grid ({other.label}; {cell.label}) would '
                f'share the folder {cell.folder!r}: expected names that differ '
                'in letters or digits, and no seed or depth twice')
    return runs


def _seeds(seeds: Union[list, dict], depth: Optional[int]) -> List[int]:
    return seeds.get(depth, []) if isinstance(seeds, dict) else seeds


def _check_metric(config: str, metric: str) -> None:
    evaluator = EVALUATORS.get(metric.split('/')[0], '')
    if evaluator not in str(_content(config).get('val_evaluator')):
        raise UsageError(
            f'config {config!r} of the grid does not evaluate {metric}: '
            f"expected one with val_evaluator=dict(type='{evaluator}'), or "
            'other metrics in the grid')


def _systems(grid: dict, config: str, depth: Optional[int],
             network: Union[int, str, None]) -> Dict[str, Dict[str, Any]]:
    """Return the overrides of those systems of the grid a network has."""
    if not grid['systems']:
        return {}
    cfg = config_from_file(config)
    apply_overrides(cfg, grid.get('overrides', {}))
    if depth is not None:
        cfg.model.backbone.depth = depth
    chosen = grid['systems']
    if isinstance(grid['paper'], str):
        table = read_table(grid['paper'])
        chosen = [name for name in chosen
                  if network in (table.networks_of(name) or [network])]
    return {name: system_overrides(name, cfg) for name in chosen}


def apply_overrides(cfg: Config, overrides: Dict[str, Any]) -> None:
    """Set values in a config; a mapping replaces the one that is there.

    Args:
        cfg (Config): Config, changed in place.
        overrides (Dict[str, Any]): Values by dotted keys; numbers are indices
            of lists.

    Raises:
        UsageError: If a key leads nowhere.
    """
    for key, value in overrides.items():
        *path, last = key.split('.')
        place = cfg
        try:
            for name in path:
                place = place[int(name) if name.isdigit() else name]
            place[int(last) if last.isdigit() else last] = value
        except (KeyError, IndexError, TypeError) as error:
            raise UsageError(f'override {key!r} leads nowhere in the config '
                             f'({type(error).__name__}: {error})') from None
