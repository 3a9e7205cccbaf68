"""Shows the loss that skipping a layer adds, against its redundancy."""
import math
from typing import Optional

from ...plotting import KEPT, OUT, SKIPPED, WIDTH, Picture, new_figure, style
from ..ablate import MEASURES, Ablated, Cost
from ..cost import Cost as Times
from .page import Section, Table

_NAMES = dict(
    kl='KL, equation 11', excess='excess over uniform weights',
    conditional='conditional part', own_share='own share',
    position='position in the stage')


def ablation_picture(found: Ablated) -> Picture:
    """Draw the loss that skipping a layer adds over how redundant it looks.

    Args:
        found (Ablated): Ablation, from :func:`ela_mm.analysis.ablate.ablate`.

    Returns:
        Picture: The picture, named ``ablation``.
    """
    gone = found.decision.skipped if found.decision else ()
    with style():
        figure = new_figure(WIDTH + 1, 3.8)
        axes = figure.subplots()
        axes.axhline(0, color=OUT, linewidth=.8)
        for name, x in found.redundancy.items():
            cost = found.layers[name]
            skipped = name in gone
            measure = getattr(x, found.ranked_by)
            axes.errorbar(
                measure, cost.loss, yerr=cost.margin, capsize=2, linewidth=.8,
                marker='X' if skipped else 'o',
                color=SKIPPED if skipped else KEPT)
            axes.annotate(name, (measure, cost.loss), fontsize=7,
                          xytext=(4, 4), textcoords='offset points')
        axes.set_xlabel(
            f'how redundant it looks: {_NAMES[found.ranked_by]}, nats')
        axes.set_ylabel('what it costs: loss added')
        axes.set_title(f'Skipping one layer, {found.images} pictures')
    return Picture('ablation', figure, _alt(found))


def _alt(found: Ablated) -> str:
    order = sorted((name for name, cost in found.layers.items()
                    if math.isfinite(cost.loss)),
                   key=lambda name: found.layers[name].loss)
    return ('Loss added by skipping a layer over its '
            f'{_NAMES[found.ranked_by]}. Cheapest to skip: '
            f'{", ".join(order[:3])}; dearest: {", ".join(order[:-4:-1])}.')


def ablation_section(found: Ablated, source: str,
                     times: Optional[Times] = None) -> Section:
    """Show what each layer gains and costs, and which measure predicts it.

    Args:
        found (Ablated): Ablation, from :func:`ela_mm.analysis.ablate.ablate`.
        source (str): Words for where the images are from.
        times (Times, optional): Cost of the network, from
            :func:`ela_mm.analysis.cost.measure_cost`. Defaults to None: not
            measured.

    Returns:
        Section: Tables and a picture.
    """
    text = [
        f'Loss in eval mode on {found.images} pictures ({source}), '
        f'{found.loss:.4g} with all active layers' +
        ('' if found.top1 is None else f', top-1 {found.top1:.2f}%') +
        '; then with each layer skipped in turn, on the same ' +
        ('batch' if found.batches == 1 else f'{found.batches} batches') +
        ', so that the differences are paired. '
        'Intervals are 95%, over batches. A difference whose interval holds 0 '
        'is none that these pictures show.',
        _of_decision(found)
    ]
    if found.skip == 'retrieval':
        text.append("As in the run (skip='retrieval'), later layers still see "
                    'a skipped one.')
    if found.batches == 1:
        text.append('There is one batch alone: no interval, and no stability. '
                    'Take more pictures, or smaller batches.')
    milli = {}
    if times is not None:
        milli = {x.name: 1e3 * x.seconds for x in times.layers}
        text.append('Milliseconds are what a layer adds to a step '
                    f'({times.conditions}).')
    rows = []
    for name, cost in found.layers.items():
        x = found.redundancy.get(name)
        rows.append([
            name, _difference(cost), _number(cost.top1, '+.2f'),
            *(_number(x and getattr(x, m), '.4g') for m in MEASURES[:-1]),
            _number(x and x.stability, '.0%'),
            _number(milli.get(name), '.1f')
        ])
    layers = Table(
        'Layers, one skipped at a time',
        ['layer', 'loss added', 'top-1 added', 'KL', 'excess', 'conditional',
         'own share', 'stability', 'ms'], rows,
        [['layer', 'loss_added', 'margin', 'top1_added', *MEASURES,
          'stability', 'ms']] + [[
              name, cost.loss, cost.margin, cost.top1,
              *(found.redundancy.get(name) or [None] * 6), milli.get(name)
          ] for name, cost in found.layers.items()])
    known = {m: found.rank_correlation(m) for m in MEASURES}
    ranks = Table(
        'Rank correlation with the loss added', ['measure', "Spearman's rho"],
        [[_NAMES[m], _number(rho, '.2f')] for m, rho in known.items()],
        [['measure', 'rho']] + [[m, rho] for m, rho in known.items()])
    if None in known.values():
        text.append('A correlation needs 5 layers whose values differ and are '
                    'finite.')
    else:
        text.append('Rank correlations: 1 where the layers that look most '
                    'redundant cost least to skip, 0 where the measure says '
                    f'nothing of it. They rest on {len(found.redundancy)} '
                    'layers of one network.')
    return Section('What skipping costs', text, [layers, ranks],
                   [ablation_picture(found)])


def _of_decision(found: Ablated) -> str:
    criterion = dict(found.criterion)
    kind = criterion.pop('type')
    if found.decision is None:
        return f'If a window ended with these weights, {kind} would skip no layer.'
    on = '' if found.ranked_by == 'kl' else f', by the {_NAMES[found.ranked_by]},'
    return (f'If a window ended with these weights, {kind}{on} would skip '
            f'{", ".join(found.decision.skipped)}: '
            f'together, {_difference(found.decision)} loss' +
            ('' if found.decision.top1 is None else
             f', {found.decision.top1:+.2f} points of top-1') + '.')


def _difference(cost: Cost) -> str:
    margin = '' if cost.margin is None else f' ± {cost.margin:.2g}'
    return f'{cost.loss:+.4g}{margin}'


def _number(value: Optional[float], form: str) -> str:
    return '-' if value is None else format(value, form)
