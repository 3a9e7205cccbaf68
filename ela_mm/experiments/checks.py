"""What a run of a grid trains with, and whether it can, before any has begun."""
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
    """The config that a run trains with.

    Args:
        cell (Cell): Of a grid.

    Returns:
        Config: With the cell's overrides, depth and seed; what it imports,
        also by an override, is imported.

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

    Its overrides, imports, data, hooks and network: what would end a run as
    it begins is said before the others have taken their days. Data that
    download themselves do so here, once.

    Args:
        runs (Sequence[Cell]): From :func:`~ela_mm.experiments.grid.cells`.

    Raises:
        UsageError: Naming the run and what is wrong with it, or what cannot
            be downloaded.
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
        except Exception as error:  # whatever a variant asks for
            what = '' if isinstance(error, UsageError) else (
                f'{type(error).__name__}: ')
            raise UsageError(f'{cell.label}: {what}{error}') from None
    for cfg, place in downloads.values():
        enter_scope(cfg)
        with downloads_explained(cfg, weights=False):
            DATASETS.build(cfg[place.partition('.')[0]].dataset)
