"""Shows attention weights as heat maps by stage (figures 2a, 6 and 7)."""
from typing import List

import numpy as np
from matplotlib.patches import Rectangle

from ...plotting import COLOURS, WIDTH, Picture, cell_colours, new_figure, style
from ..attention import AttentionRow, Measured
from .page import Section, Table

# With more layers than this, cells are too small for numbers.
NUMBERED = 12


def attention_pictures(measured: Measured) -> List[Picture]:
    """Draw every stage that has layer attention.

    Args:
        measured (ela_mm.analysis.attention.Measured): Measurements, from
            :func:`ela_mm.analysis.attention.measure`.

    Returns:
        List[Picture]: Pictures, named ``attention_stage<s>``.
    """
    stages = sorted({layer.stage for layer in measured.layers})
    return [_stage_picture(measured, stage) for stage in stages]


def _stage_picture(measured: Measured, stage: int) -> Picture:
    layers = [layer for layer in measured.layers if layer.stage == stage]
    rows = [row for row in measured.rows if row.stage == stage]
    side = min(max(2.6, .42 * len(layers) + 1.2), 9.)
    with style():
        figure = new_figure(max(WIDTH, side + 1.3), 2 * side + .6)
        above, below = figure.subplots(2, 1)
        _heat_map(above, layers, rows, 'mean')
        _heat_map(below, layers, rows, 'std')
        figure.suptitle(
            f'Stage {stage}: attention weights over {measured.images} '
            'pictures, all heads',
            fontsize=10)
    return Picture(f'attention_stage{stage}', figure, _alt(stage, layers, rows))


def _heat_map(axes, layers: list, rows: List[AttentionRow],
              field: str) -> None:
    names = [layer.name for layer in layers]
    values = np.full((len(names), len(names)), np.nan)
    for row in rows:
        columns = [names.index(source) for source in row.sources]
        values[names.index(row.name), columns] = getattr(row, field)
    highest = max((getattr(row, field).max() for row in rows), default=0.)
    high = 1. if field == 'mean' else max(float(highest), 1e-3)
    image = axes.imshow(values, cmap=COLOURS, vmin=0, vmax=high)
    axes.figure.colorbar(image, ax=axes, shrink=.8)
    attending = {row.name for row in rows}
    for i, name in enumerate(names):
        if name not in attending:
            axes.add_patch(
                Rectangle((-.5, i - .5), i + 1, 1, fill=False, hatch='////',
                          edgecolor='#999999', linewidth=0))
            axes.text(
                i / 2, i, 'skipped', ha='center', va='center', fontsize=7,
                bbox=dict(facecolor='white', edgecolor='none', pad=1))
    if len(names) <= NUMBERED:
        shown = np.argwhere(~np.isnan(values))
        colours = cell_colours(values[tuple(shown.T)], 0, high)
        for (i, j), colour in zip(shown, colours):
            axes.text(
                j, i, f'{values[i, j]:.2f}', ha='center', va='center',
                fontsize=7, color=colour)
    axes.set_title(
        'Mean' if field == 'mean' else 'Standard deviation')
    axes.set_xticks(range(len(names)), [layer.index for layer in layers])
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel('attends to block')
    axes.set_ylabel('layer')


def _alt(stage: int, layers: list, rows: List[AttentionRow]) -> str:
    skipped = [layer.name for layer in layers if not layer.active]
    said = [
        f'{row.name} attends most to {row.sources[int(row.mean.argmax())]} '
        f'({row.mean.max():.2f})' for row in rows
    ]
    gone = f' Skipped: {", ".join(skipped)}.' if skipped else ''
    return f'Attention weights of stage {stage}: {"; ".join(said)}.{gone}'


def attention_section(measured: Measured, source: str) -> Section:
    """Show which layers every layer attends to.

    Args:
        measured (ela_mm.analysis.attention.Measured): Measurements, from
            :func:`ela_mm.analysis.attention.measure`.
        source (str): Words for where the images are from.

    Returns:
        Section: A table, and a heat map for each stage.
    """
    blocks = {layer.name: layer.index for layer in measured.layers}
    rows = [[
        row.name,
        ', '.join(f'{blocks[s]}: {m:.2f} ± {d:.2f}'
                  for s, m, d in zip(row.sources, row.mean, row.std)),
        f'{measured.kl[row.name].mean:.4g}' if row.name in measured.kl else '-'
    ] for row in measured.rows]
    text = [
        f'Attention weights over the values of the layers of a stage, on '
        f'{measured.images} pictures ({source}), in eval mode: mean and '
        'standard deviation over pictures and heads. Rows with equal weights '
        'are redundant; skipped layers have none.'
    ]
    return Section(
        'Attention weights', text,
        [
            Table('Weights', ['layer', 'attends to block', 'KL now'], rows,
                  [['layer', 'source', 'mean', 'std']] + [[
                      row.name, source, mean, std
                  ] for row in measured.rows for source, mean, std in zip(
                      row.sources, row.mean, row.std)])
        ],
        attention_pictures(measured))
