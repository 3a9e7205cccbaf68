"""Runs side by side: what each skipped, what it reached, what it cost."""
import glob
import os.path as osp
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..apis.loading import build_any_model, read_config
from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import ela_backbones
from ..pruning.decision import Decision, LayerDecision
from .history import Run, as_of_checkpoint, read_run
from .run_names import CELL, in_order, names_of


class Parameters(NamedTuple):
    """Of a whole network.

    Attributes:
        total (int): Skipped layers included.
        unused (int): Those of skipped layers.
    """
    total: int
    unused: int


class Fate(NamedTuple):
    """What a run did with a layer, and how narrowly.

    Attributes:
        layer (LayerDecision | None): As the last decision has it that
            measured the layer; None where it was never measured.
        decision (Decision | None): That one.
        active (bool): Whether the layer attends in the end.
    """
    layer: Optional[LayerDecision]
    decision: Optional[Decision]
    active: bool

    @property
    def margin(self) -> Optional[float]:
        """How far below the criterion's mu the layer was mapped.

        Negative where it was kept; None where it was out of reach, or the
        criterion has no mu.
        """
        if self.layer is None or self.layer.mapped is None:
            return None
        mu = self.decision.criterion.get('mu')
        return None if mu is None else mu - self.layer.mapped


class Compared(NamedTuple):
    """Runs and what tells them apart.

    Attributes:
        names (List[str]): Of the runs, see
            :class:`~ela_mm.analysis.run_names.Names`.
        runs (List[Run]): In the same order.
        parameters (List[Parameters | None]): None where it is not known.
        layers (List[str]): Of all networks, in order.
        fates (List[Dict[str, Fate]]): Of each run, by layer.
        notes (List[str]): What could not be found out, and why.
        settings (Dict[str, List[str]]): Of grids, see there. Defaults to
            none.
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
        """Layers that some runs skipped and others, having them, did not."""
        return [
            name for name in self.layers
            if len({f[name].active for f in self.fates if name in f}) > 1
        ]


def find_runs(folders: Sequence[str]) -> List[str]:
    """Work dirs of runs; of a grid of tools/ablation.py, those of its runs.

    Args:
        folders (Sequence[str]): Work dirs, and folders of grids.

    Returns:
        List[str]: At least two.

    Raises:
        UsageError: If one is no folder, or there is one run alone.
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


def compare_runs(folders: Sequence[str],
                 count: bool = True,
                 progress: Callable = iter,
                 configs: Sequence[str] = (),
                 checkpoints: Sequence[str] = ()) -> Compared:
    """Read runs and set them side by side.

    Args:
        folders (Sequence[str]): Work dirs, of runs with ELAPruneHook or
            without.
        count (bool): Whether to build each network to count its parameters.
            Defaults to True.
        progress (Callable): Wraps the list of runs, to show a bar.
        configs (Sequence[str]): In the place of the work dirs': one for all
            runs, or one each. Defaults to none.
        checkpoints (Sequence[str]): One of each run, which is taken as it was
            when that was saved. Defaults to none: as it is.

    Returns:
        Compared: In the same order.

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
    """A path for each run, None where none is named."""
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
    key = f'{cfg.model} {sorted(skipped)}'
    if key not in known:
        model = build_any_model(cfg)
        unused = 0
        for backbone in ela_backbones(model).values():
            if skipped:
                backbone.skip_layers(skipped)
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
