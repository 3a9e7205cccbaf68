"""Names runs for comparisons: by labels of their grid, or by folders."""
import json
import os
import os.path as osp
import re
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

CELL = 'cell.json'  # in each run's folder of a grid


class GridRun(NamedTuple):
    """A run of tools/ablation.py, read from its folder.

    Attributes:
        variant (str): Name of the criterion, architecture or system.
        details (Tuple[str, ...]): Network, depth and seed in words; network
            and depth are '' if the grid does not vary them.
        overrides (Dict[str, Any]): Settings of the config that the grid
            overrides, by dotted keys.
        grid (str): Folder of the grid.
    """
    variant: str
    details: Tuple[str, ...]
    overrides: Dict[str, Any]
    grid: str


def read_grid_run(folder: str) -> Optional[GridRun]:
    """Read the labels that a grid has given to a run.

    Args:
        folder (str): Work dir of the run.

    Returns:
        GridRun | None: The run; None if it is not of a grid, or if its file is
        damaged.
    """
    try:
        with open(osp.join(folder, CELL), encoding='utf-8') as file:
            cell = json.load(file)['cell']
        # As Cell.label and Cell.folder of ela_mm.experiments.grid have them.
        depth, name = cell['depth'], cell.get('name', '')
        details = (name, f'depth {depth}' if depth else '',
                   f'seed {cell["seed"]}')
        up = ['..'] * (1 + sum(map(bool, details)))
        grid = osp.normpath(osp.join(osp.abspath(folder), *up))
        return GridRun(str(cell['variant']), tuple(map(str, details)),
                       dict(cell['overrides']), grid)
    except (OSError, ValueError, KeyError, TypeError, AttributeError,
            RecursionError):
        return None


def name_of(folder: str) -> str:
    """Name a run that is not compared with others.

    Args:
        folder (str): Work dir of the run.

    Returns:
        str: All labels that its grid gives it; the name of the folder for a
        run that is not of a grid.
    """
    run = read_grid_run(folder)
    if run is None:
        return osp.basename(osp.abspath(folder))
    return ', '.join(filter(None, [run.variant, *run.details]))


def in_order(folders: Iterable[str]) -> List[str]:
    """Sort folders naturally, with numbers in their names by value."""
    return sorted(folders, key=lambda folder: [
        (0, int(part), '') if part.isdecimal() else (1, 0, part.lower())
        for part in re.split(r'(\d+|/)', folder.replace(os.sep, '/'))])


class Names(NamedTuple):
    """Names of compared runs, and what the variants of grids set.

    Attributes:
        runs (List[str]): Short names that differ, in the order of the runs. A
            run of a grid is named by its variant and by what distinguishes it
            further (network, depth, seed); the name of the grid comes first if
            other runs are compared too. Other runs are named by their folders,
            or if these are equal by the part of their paths that differs.
        settings (Dict[str, List[str]]): Overrides of the config as YAML lines,
            without those that all runs of grids share; by variant, or by
            variant and network if networks have different ones.
    """
    runs: List[str]
    settings: Dict[str, List[str]]


def names_of(folders: Sequence[str]) -> Names:
    """Name runs, and collect what the variants of grids set.

    Args:
        folders (Sequence[str]): Work dirs of the runs.

    Returns:
        Names: Names in the same order.
    """
    names = dict(zip(folders, _names_of_folders(folders)))
    runs = {folder: run for folder in folders
            if (run := read_grid_run(folder)) is not None}
    grids = list(dict.fromkeys(run.grid for run in runs.values()))
    prefixes = dict.fromkeys(grids, '')
    if len(grids) > 1 or len(runs) < len(names):
        prefixes = {grid: f'{name}: ' for grid, name in zip(
            grids, _names_of_folders(grids))}
    varies = [len(set(column)) > 1
              for column in zip(*(run.details for run in runs.values()))]

    def label(run: GridRun, details: Sequence[str]) -> str:
        shown = [text for text, differs in zip(details, varies)
                 if differs and text]
        return ', '.join([prefixes[run.grid] + run.variant, *shown])

    settings: Dict[str, Dict[str, List[str]]] = {}
    for folder, run in runs.items():
        names[folder] = label(run, run.details)
        of_variant = settings.setdefault(label(run, ()), {})
        of_variant[label(run, run.details[:-1])] = _settings(
            run, runs.values())
    return Names([names[folder] for folder in folders], {
        name: lines for variant, by_network in settings.items()
        for name, lines in _merged(variant, by_network).items()})


def _settings(run: GridRun, runs: Iterable[GridRun]) -> List[str]:
    """List the overrides that not all runs share, as lines of YAML."""
    return [f'{key}: {json.dumps(value)}'
            for key, value in run.overrides.items()
            if any(other.overrides.get(key, ...) != value for other in runs)]


def _merged(variant: str,
            by_network: Dict[str, List[str]]) -> Dict[str, List[str]]:
    """Join the entries of all networks if they are equal."""
    first, *others = by_network.values()
    return by_network if any(x != first for x in others) else {variant: first}


def _names_of_folders(folders: Sequence[str]) -> List[str]:
    paths = [osp.abspath(folder) for folder in folders]
    names = [osp.basename(path) for path in paths]
    if len(set(names)) == len(names):
        return names
    shared = osp.commonpath(paths)
    if shared in paths:  # one lies within another
        shared = osp.dirname(shared)
    parts = [osp.relpath(path, shared).split(os.sep) for path in paths]
    while len({p[-1] for p in parts}) == 1 and all(len(p) > 1 for p in parts):
        parts = [p[:-1] for p in parts]
    return ['/'.join(p) for p in parts]
