"""A grid of runs: variants x depths x seeds, from one file."""
import hashlib
import itertools
import json
import os.path as osp
import runpy
from functools import lru_cache
from typing import Any, Dict, List, NamedTuple

from mmengine.config import Config
from mmengine.fileio import load

from ..apis.launch import UsageError

# Keys of a grid file, and the types that they must have.
KEYS = dict(
    config=str, depths=list, seeds=list, variants=dict, overrides=dict,
    paper=dict, title=str)
REQUIRED = ('config', 'depths', 'seeds', 'variants')


class Cell(NamedTuple):
    """One run of a grid.

    Attributes:
        variant (str): Name of the criterion or architecture.
        depth (int): Of the backbone.
        seed (int): Of everything random.
        config (str): Path of the config file.
        overrides (Dict[str, Any]): Dotted keys of the config and the values
            that replace what is there.
    """
    variant: str
    depth: int
    seed: int
    config: str
    overrides: Dict[str, Any]

    @property
    def folder(self) -> str:
        """Where the run's files lie below the grid's."""
        name = ''.join(c if c.isalnum() or c in '-_' else '_'
                       for c in self.variant)
        return osp.join(name, f'depth_{self.depth}', f'seed_{self.seed}')

    @property
    def fingerprint(self) -> str:
        """Of all that decides the run's result, the config's content included."""
        decisive = dict(self._asdict(), config=_content(self.config))
        text = json.dumps(decisive, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=None)
def _content(config: str) -> dict:
    return Config.fromfile(config).to_dict()


def read_grid(path: str) -> dict:
    """Read and check a grid file.

    Args:
        path (str): YAML, JSON, or a Python file whose variables are the keys:
            ``config`` (path from here, else from the repository; may hold
            ``{depth}``), ``depths``, ``seeds``,
            ``variants`` (name -> overrides), and, if wanted, ``overrides`` (of
            every run), ``paper`` (name -> depth -> number) and ``title``.

    Returns:
        dict: The grid.

    Raises:
        UsageError: Naming the file and what is wrong with it.
    """
    if not osp.isfile(path):
        raise UsageError(f'grid {path!r} does not exist: expected a .yaml, '
                         '.json or .py file')
    try:
        if path.endswith('.py'):
            grid = {k: v for k, v in runpy.run_path(path).items()
                    if not k.startswith('_')}
        else:
            grid = load(path)
    except Exception as error:  # whatever a parser or the file's code raises
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
    for key, value in grid.items():
        if not isinstance(value, KEYS[key]):
            raise UsageError(f'{path}: {key} is {value!r}, expected a '
                             f'{KEYS[key].__name__}')
    for name, overrides in grid['variants'].items():
        if not isinstance(overrides, dict):
            raise UsageError(f'{path}: variant {name!r} is {overrides!r}, '
                             'expected overrides ({} for none)')
    # JSON knows no numbers as keys.
    grid['paper'] = {
        variant: {int(depth): number for depth, number in numbers.items()}
        for variant, numbers in grid.get('paper', {}).items()
    }
    return grid


def cells(grid: dict, root: str) -> List[Cell]:
    """The grid's runs, seeds outermost, so that whole rounds come first.

    Args:
        grid (dict): From :func:`read_grid`.
        root (str): What a relative ``config`` is relative to, if it is not
            found from the current folder.

    Returns:
        List[Cell]: One per seed, depth and variant.

    Raises:
        UsageError: If a config does not exist or does not evaluate top-1.
    """
    runs = []
    for seed, depth, (variant, overrides) in itertools.product(
            grid['seeds'], grid['depths'], grid['variants'].items()):
        config = grid['config'].replace('{depth}', str(depth))
        if not osp.isfile(config):
            config = osp.join(root, config)
        if not osp.isfile(config):
            raise UsageError(f'config {config!r} of the grid does not exist')
        if 'Accuracy' not in str(_content(config).get('val_evaluator')):
            raise UsageError(f'config {config!r} of the grid does not '
                             'evaluate top-1: expected a classifier with '
                             "val_evaluator=dict(type='Accuracy')")
        runs.append(
            Cell(variant, depth, seed, config,
                 {**grid.get('overrides', {}), **overrides}))
    return runs


def apply_overrides(cfg: Config, overrides: Dict[str, Any]) -> None:
    """Set values in a config; a mapping replaces the one that is there.

    Args:
        cfg (Config): Changed in place.
        overrides (Dict[str, Any]): By dotted keys; numbers index lists.

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
