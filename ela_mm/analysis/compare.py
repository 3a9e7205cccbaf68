"""Compares runs: what they skipped, their metrics, and their parameters."""
import glob
import os
import os.path as osp
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..apis.loading import build_any_model, read_config
from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import ela_backbones
from ..pruning.decision import Decision, LayerDecision
from .history import Run, as_of_checkpoint, read_run
from .run_names import CELL, in_order, names_of


class Parameters(NamedTuple):
    """Numbers of parameters of a network.

    Attributes:
        total (int): Number of all parameters, skipped layers included.
        unused (int): Number of those that skipped layers do not use.
    """
    total: int
    unused: int


class Fate(NamedTuple):
    """What a run did with a layer, and how narrowly.

    Attributes:
        layer (LayerDecision | None): Entry of the layer in the last decision
            that measured it; None if it was never measured.
        decision (Decision | None): That decision.
        active (bool): Whether the layer is active in the end.
    """
    layer: Optional[LayerDecision]
    decision: Optional[Decision]
    active: bool

    @property
    def margin(self) -> Optional[float]:
        """The criterion's mu minus the mapped value of the layer.

        It is negative if the criterion kept the layer; None if the layer was
        out of reach, or if the criterion has no mu.
        """
        if self.layer is None or self.layer.mapped is None:
            return None
        mu = self.decision.criterion.get('mu')
        return None if mu is None else mu - self.layer.mapped


class Compared(NamedTuple):
    """Compared runs.

    Attributes:
        names (List[str]): Names of the runs, see
            :class:`~ela_mm.analysis.run_names.Names`.
        runs (List[Run]): The runs, in the same order.
        parameters (List[Parameters | None]): Parameters of each run; None if
            unknown.
        layers (List[str]): Names of the layers of all networks, in order.
        fates (List[Dict[str, Fate]]): For each run, the fates of its layers by
            name.
        notes (List[str]): Sentences on what could not be found out, and why.
        settings (Dict[str, List[str]]): Settings of variants of grids, see
            :class:`~ela_mm.analysis.run_names.Names`.
    """
    names: List[str]
    runs: List[Run]
    parameters: List[Optional[Parameters]]
    layers: List[str]
    fates: List[Dict[str, Fate]]
    notes: List[str]
    settings: Dict[str, List[str]] = {}

    @property
    def differing(self) -> List[str]:
        """Layers that some runs skipped and other runs with them did not."""
        return [
            name for name in self.layers
            if len({f[name].active for f in self.fates if name in f}) > 1
        ]


def find_runs(folders: Sequence[str]) -> List[str]:
    """Find the work dirs of runs, in grids of tools/ablation.py as well.

    Args:
        folders (Sequence[str]): Work dirs, and folders of grids.

    Returns:
        List[str]: At least two work dirs.

    Raises:
        UsageError: If a folder does not exist, or there are fewer than two
            runs.
    """
    found: List[str] = []
    for folder in folders:
        if not osp.isdir(folder):
            raise UsageError(f'{folder!r} is no folder: expected work dirs of '
                             'runs, or the folder of a grid')
        cells = glob.glob(osp.join(glob.escape(folder), '**', CELL),
                          recursive=True)
        found += in_order(map(osp.dirname, cells)) or [folder]
    found = list(dict.fromkeys(map(osp.normpath, found)))
    if len(found) < 2:
        raise UsageError(f'one run ({found[0]}): expected two to compare, or '
                         'the folder of a grid' if found else
                         'nothing is named: expected work dirs of runs')
    return found


def common_folder(folders: Sequence[str]) -> str:
    """Find where results of several runs belong: in none of the runs.

    Args:
        folders (Sequence[str]): Work dirs, or the folder of a grid.

    Returns:
        str: The folder of a grid, or the nearest folder that holds all work
        dirs; the first work dir if nothing can be written there.
    """
    common = osp.commonpath(map(osp.abspath, folders))
    if common == osp.dirname(common) or not os.access(common, os.W_OK):
        return folders[0]
    return osp.relpath(common)


def compare_runs(folders: Sequence[str],
                 count: bool = True,
                 progress: Callable = iter,
                 configs: Sequence[str] = (),
                 checkpoints: Sequence[str] = ()) -> Compared:
    """Read runs and compare them.

    Args:
        folders (Sequence[str]): Work dirs of runs, with ELAPruneHook or
            without.
        count (bool): Whether to build each network to count its parameters.
            Defaults to True.
        progress (Callable): Function that wraps the list of runs, to show a
            bar. Defaults to ``iter``.
        configs (Sequence[str]): Configs to use instead of those in the work
            dirs, one for all runs or one for each. Defaults to none.
        checkpoints (Sequence[str]): One checkpoint of each run; runs are
            compared as they were when these were saved. Defaults to none: runs
            are compared as they are.

    Returns:
        Compared: The runs, in the same order.

    Raises:
        UsageError: If a folder holds no run, or there are not as many configs
            or checkpoints as runs.
    """
    runs, parameters, notes = [], [], []
    known: Dict[str, Parameters] = {}  # by config and mask
    own_configs = _one_each('--config', configs, folders, shared=True)
    own_checkpoints = _one_each('--checkpoint', checkpoints, folders)
    for folder, config, checkpoint in progress(
            list(zip(folders, own_configs, own_checkpoints))):
        run = read_run(folder, needs_record=False)
        if config is not None:
            run = run._replace(config=config)
        if checkpoint is not None:
            run = as_of_checkpoint(run, checkpoint)
        if not (run.record['layers'] or run.losses or run.config):
            raise UsageError(f'{folder!r} holds no run: neither decisions of '
                             'ELAPruneHook, nor a log, nor a config')
        runs.append(run)
        try:
            parameters.append(_parameters(run, known) if count else None)
        except Exception as error:  # whatever a user's config asks for
            parameters.append(None)
            notes.append(f'parameters of {folder} are not counted: '
                         f'{type(error).__name__}: {error}')
    layers = dict.fromkeys(n for r in runs for n in r.record['layers'])
    names = names_of(folders)
    return Compared(names.runs, runs, parameters, list(layers),
                    [_fates(run) for run in runs], notes, names.settings)


def _one_each(option: str, paths: Sequence[str], folders: Sequence[str],
              shared: bool = False) -> List[Optional[str]]:
    """Return a path for each run, or None for all if no paths are given."""
    if not paths:
        return [None] * len(folders)
    if shared and len(paths) == 1:
        return list(paths) * len(folders)
    if len(paths) != len(folders):
        raise UsageError(
            f'{option}: {len(paths)} for {len(folders)} runs: expected ' +
            ('one for all, or ' if shared else '') + 'one each, in the order '
            f'of the runs: {", ".join(folders)}')
    return list(paths)


def _parameters(run: Run, known: Dict[str, Parameters]) -> Parameters:
    if run.config is None:
        raise UsageError('it has no config')
    cfg = read_config(run.config)
    skipped = set(run.record['layers']).difference(run.record['active'])
    # What went whole has no key and value left for later layers.
    modes = {name: d.skip_mode for d in run.decisions for name in d.skipped}
    seen = skipped.intersection(n for n, x in modes.items() if x == 'retrieval')
    key = f'{cfg.model} {sorted(skipped)} {sorted(seen)}'
    if key not in known:
        model = build_any_model(cfg)
        unused = 0
        for backbone in ela_backbones(model).values():
            if skipped:
                backbone.skip_layers(seen, 'retrieval')
                backbone.skip_layers(skipped)  # the others
            own = dict(backbone.named_parameters())
            unused += sum(own[name].numel()
                          for names in backbone.unused_state().values()
                          for name in names if name in own)
        known[key] = Parameters(
            sum(p.numel() for p in model.parameters()), unused)
    return known[key]


def _fates(run: Run) -> Dict[str, Fate]:
    fates: Dict[str, Fate] = {}
    for name in run.record['layers']:
        seen: Tuple = (None, None)
        for decision in run.decisions:
            layer = next((x for x in decision.layers if x.name == name), None)
            if layer is not None and layer.kl is not None:
                seen = layer, decision
        fates[name] = Fate(*seen, name in run.record['active'])
    return fates
