"""Compare parameters and GMACs with every row of the paper's tables.

    tools/complexity.py
    tools/complexity.py --tables table5

What the paper calls FLOPs are multiply-accumulates.
"""
import argparse
import os.path as osp
from typing import List, Optional, Tuple

TABLES = ('table1_cifar10', 'table1_cifar100', 'table2', 'table5')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        '--tables', nargs='+', default=TABLES, choices=TABLES)
    return parser.parse_args()


if __name__ == '__main__':
    parse_args()  # --help and typos end here, before what takes seconds

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

import ela_mm  # noqa: F401  before anything imports mmcv.ops
from ela_mm.analysis import Complexity, count_macs
from ela_mm.analysis.report.terminal import progress_bar
from ela_mm.apis.data import picture_shape
from ela_mm.apis.launch import run
from ela_mm.apis.loading import config_from_file
from ela_mm.config_types import enter_scope
from ela_mm.experiments.grid import Cell, apply_overrides, cells, read_grid
from ela_mm.experiments.published import Row, read_table
from ela_mm.hosts.registration import host_of_model
from ela_mm.models.backbones.pictures import picture_channels

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
HEADER = ('network', 'system', 'parameters, M', 'paper', 'equal', 'GMACs',
          'of it retrieval', 'paper', 'equal', 'note')


def build(cell: Cell) -> Tuple[nn.Module, Config]:
    """Build a run's network with random weights, and its config."""
    cfg = config_from_file(cell.config)
    apply_overrides(cfg, cell.overrides)
    if cell.depth is not None:
        cfg.model.backbone.depth = cell.depth
    # Its scales are this project's choice, and the paper does not count them.
    cfg.model.backbone.zero_init_attention = False
    enter_scope(cfg)
    return MODELS.build(cfg.model), cfg


def parameters(model: nn.Module, total: bool) -> int:
    """Count parameters: all, or only trainable ones."""
    return sum(p.numel() for p in model.parameters()
               if total or p.requires_grad)


def multiply_accumulates(model: nn.Module,
                         cfg: Config) -> Optional[Complexity]:
    """Count for a classifier; None for a detector, whose images differ."""
    if host_of_model(model).default_part(model) == 'backbone':
        return None
    shape = picture_shape(cfg)
    # On the meta device, since only shapes matter.
    return count_macs(model.to('meta'), (picture_channels(model), *shape))


def equal(ours: float, theirs: Optional[float], decimals: int) -> str:
    """Say whether our number, rounded like theirs, equals theirs."""
    if theirs is None:
        return '-'
    return 'yes' if round(ours, decimals) == theirs else 'no'


def rows(name: str) -> List[Tuple[str, ...]]:
    """Compute the rows of one table, in its order.

    Args:
        name (str): One of :data:`TABLES`, which are names of a preset and of a
            published table.

    Returns:
        List[Tuple[str, ...]]: Rows with the columns of ``HEADER``.
    """
    published = read_table(name)
    grid = read_grid(osp.join(ROOT, 'configs', 'ablations', f'{name}.yaml'))
    table = []
    runs = cells({**grid, 'seeds': grid['seeds'][:1]}, ROOT)
    for cell in progress_bar(name)(runs):
        row = published.rows.get((cell.variant, cell.network),
                                 Row({}, False, ''))
        model, cfg = build(cell)
        millions = parameters(model, row.total) / 1e6
        cost = multiply_accumulates(model, cfg)
        printed, giga = (row.numbers.get(x) for x in ('parameters', 'macs'))
        table.append((
            f'ResNet-{cell.depth}' if cell.depth else cell.name,
            cell.variant,
            f'{millions:.4f}',
            '-' if printed is None else f'{printed:.{published.decimals}f}',
            equal(millions, printed, published.decimals),
            '-' if cost is None else f'{cost.macs / 1e9:.3f}',
            '-' if cost is None else f'{cost.retrieval_macs / 1e9:.3f}',
            '-' if giga is None else f'{giga:.1f}',
            '-' if cost is None else equal(cost.macs / 1e9, giga, 1),
            row.note))
    return table


def main() -> None:
    for name in parse_args().tables:
        print(f'{read_table(name).title}\n')
        for line in (HEADER, ['---'] * len(HEADER), *rows(name)):
            print('| ' + ' | '.join(line) + ' |')
        print()


if __name__ == '__main__':
    run(main)
