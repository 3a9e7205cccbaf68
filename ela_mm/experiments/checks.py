"""Builds the configs of a grid's runs, and checks them before the first run."""
from typing import Dict, Sequence, Tuple

from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS
from mmengine.utils import import_modules_from_strings

from ..apis.data import check_data, prepare_config
from ..apis.downloads import downloads_explained, remote_data
from ..apis.loading import build_any_model, config_from_file
from ..config_types import enter_scope
from ..errors import UsageError
from .grid import Cell, apply_overrides


def config_of(cell: Cell) -> Config:
    """Build the config that a run trains with.

    Args:
        cell (Cell): Run of a grid.

    Returns:
        Config: The config, with the cell's overrides, depth and seed. Its
        ``custom_imports`` are imported.

    Raises:
        UsageError: If an override leads nowhere, or an import fails.
    """
    cfg = config_from_file(cell.config)
    apply_overrides(cfg, cell.overrides)
    if cfg.get('custom_imports'):
        try:
            import_modules_from_strings(**cfg.custom_imports)
        except (ImportError, TypeError) as error:
            raise UsageError(f'custom_imports={dict(cfg.custom_imports)}: '
                             f'{error}') from None
    prepare_config(cfg)
    if cell.depth is not None:
        cfg.model.backbone.depth = cell.depth
    cfg.randomness = dict(seed=cell.seed)
    return cfg


def check_cells(runs: Sequence[Cell]) -> None:
    """Check every variant of a grid before its first run.

    Overrides, imports, data, hooks and network are checked, so that a run that
    cannot start is reported before others have trained for days. Datasets that
    can be downloaded are, once.

    Args:
        runs (Sequence[Cell]): Runs, from
            :func:`~ela_mm.experiments.grid.cells`.

    Raises:
        UsageError: If a run cannot start, or a download fails; it says which
            and why.
    """
    downloads: Dict[Tuple[str, str], Tuple[Config, str]] = {}
    first = {(c.variant, c.name, c.depth): c for c in reversed(runs)}
    for cell in reversed(list(first.values())):
        try:
            cfg = config_of(cell)
            check_data(cfg, 'train_dataloader', 'val_dataloader')
            for place, source in remote_data(cfg).items():
                downloads[source] = cfg, place
            enter_scope(cfg)
            for hook in cfg.get('custom_hooks') or []:
                if isinstance(hook, dict):
                    HOOKS.build({k: v for k, v in hook.items()
                                 if k != 'priority'})
            build_any_model(cfg)
        except Exception as error:  # a variant's code may raise anything
            what = '' if isinstance(error, UsageError) else (
                f'{type(error).__name__}: ')
            raise UsageError(f'{cell.label}: {what}{error}') from None
    for cfg, place in downloads.values():
        enter_scope(cfg)
        with downloads_explained(cfg, weights=False):
            DATASETS.build(cfg[place.partition('.')[0]].dataset)
