"""Shows what stages and attention layers cost."""
import numpy as np
from matplotlib.patches import Patch

from ...plotting import KEPT, OUT, SKIPPED, WIDTH, Picture, new_figure, style
from ..cost import Cost, LayerCost, StageCost
from .page import Section, Table


def cost_picture(cost: Cost) -> Picture:
    """Draw the time of every stage and of every attention layer.

    Args:
        cost (ela_mm.analysis.cost.Cost): Cost, from
            :func:`ela_mm.analysis.cost.measure_cost`.

    Returns:
        Picture: The picture, named ``cost``.
    """
    stages, layers = cost.stages, cost.layers
    heights = [.5 * len(stages) + .9, .19 * len(layers) + .9]
    with style():
        figure = new_figure(WIDTH, sum(heights))
        above, below = figure.subplots(
            2, 1, gridspec_kw=dict(height_ratios=heights))
        for y, stage in enumerate(stages):
            for offset, total in ((-.2, stage.seconds_before),
                                  (.2, stage.seconds_after)):
                above.barh(y + offset, 1e3 * stage.seconds, .36, color=OUT)
                above.barh(
                    y + offset, 1e3 * max(0., total - stage.seconds), .36,
                    left=1e3 * stage.seconds, color=KEPT,
                    hatch='////' if offset > 0 else None, edgecolor='white',
                    linewidth=0)
        above.set_yticks(range(len(stages)), [s.name for s in stages])
        above.invert_yaxis()
        above.set_xlabel('step, ms')
        above.set_title('Stages')
        for y, layer in enumerate(layers):
            below.barh(
                y, 1e3 * layer.seconds, color=KEPT if layer.active else SKIPPED,
                hatch=None if layer.active else '////', edgecolor='white',
                linewidth=0)
        below.set_yticks(
            range(len(layers)), [x.name for x in layers], fontsize=7)
        below.set_ylim(len(layers) - .4, -.6)
        below.set_xlabel('what the layer adds to a step, ms')
        below.set_title('Attention layers')
        hatched = dict(hatch='////', edgecolor='white', linewidth=0)
        for axes, patches in ((above, [
                Patch(color=OUT, label='blocks'),
                Patch(color=KEPT, label='attention, all layers'),
                Patch(facecolor=KEPT, label='as pruned', **hatched)
        ]), (below, [
                Patch(color=KEPT, label='active'),
                Patch(facecolor=SKIPPED, label='skipped', **hatched)
        ])):
            axes.legend(handles=patches, loc='lower right',
                        bbox_to_anchor=(1., 1.), ncol=3, fontsize=8,
                        borderaxespad=.2)
    return Picture('cost', figure, _alt(cost))


def _alt(cost: Cost) -> str:
    said = [
        f'{s.name} {1e3 * s.seconds:.1f} ms without attention, '
        f'{1e3 * s.seconds_before:.1f} with all layers, '
        f'{1e3 * s.seconds_after:.1f} as pruned' for s in cost.stages
    ]
    most = max(cost.layers, key=lambda layer: layer.seconds)
    median = float(np.median([layer.seconds for layer in cost.layers]))
    return (f'{"; ".join(said)}. An attention layer adds {1e3 * median:.1f} ms '
            f'in the median, {most.name} most ({1e3 * most.seconds:.1f} ms).')


def cost_section(cost: Cost) -> Section:
    """Show parameters, multiply-accumulates and time."""
    giga = '{:.3g}'.format

    def milli(seconds: float) -> str:
        return f'{1e3 * seconds:.1f}'

    stages = [[
        s.name, f'{s.parameters / 1e6:.3f}',
        f'{s.attention_parameters / 1e6:.3f}', giga(s.macs / 1e9),
        giga(s.macs_before / 1e9), giga(s.macs_after / 1e9), milli(s.seconds),
        milli(s.seconds_before), milli(s.seconds_after)
    ] for s in cost.stages]
    layers = [[
        x.name, 'active' if x.active else 'skipped', f'{x.parameters:,}',
        f'{x.macs / 1e6:.2f}', milli(x.seconds)
    ] for x in cost.layers]
    text = [
        f'Conditions: {cost.conditions}. Multiply-accumulates are of one '
        'picture: convolutions, linear layers, matrix products, and the '
        'weighted sum of attention (n C H W for a layer that retrieves from n '
        'values); norms and activations are left out.',
        f'The backbone needs {giga(cost.macs_before / 1e9)} GMACs with all '
        f'attention layers and {giga(cost.macs_after / 1e9)} now. Of the '
        f'model\'s {cost.parameters / 1e6:.3f} M parameters, '
        f'{cost.unused_parameters / 1e6:.3f} M belong to skipped layers and '
        'are not used.'
    ]
    return Section('Cost', text, [
        Table(
            'Stages: blocks; what all attention layers add; what those left add', [
                'stage', 'blocks, M', 'attention, M', 'blocks, GMACs',
                '+ all', '+ left', 'blocks, ms', 'with all, ms',
                'with left, ms'
            ], stages, [list(StageCost._fields), *cost.stages]),
        Table('Attention layers',
              ['layer', '', 'parameters', 'MMACs', 'adds to a step, ms'],
              layers, [list(LayerCost._fields), *cost.layers])
    ], [cost_picture(cost)])
