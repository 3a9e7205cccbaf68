"""Shows compared runs as tables and pictures."""
import math
from typing import List, Optional

import numpy as np

from ...plotting import (
    COLOURS,
    DASHES,
    LINES,
    WIDTH,
    Picture,
    cell_colours,
    new_figure,
    printable,
    style,
)
from ...pruning.decision import Outcome
from ...pruning.windows import window_name
from ..compare import Compared, Fate
from ..history import Run
from .page import Section, Table

MOST_LINES = 16  # largest number of lines in one picture
MOST_COLUMNS = 8  # with more runs, tables summarise each layer


def compare_sections(found: Compared) -> List[Section]:
    """Lay out a comparison.

    Args:
        found (Compared): Comparison, from
            :func:`ela_mm.analysis.compare.compare_runs`.

    Returns:
        List[Section]: The runs with their curves; the layers; the decisions
        that differ.
    """
    sections = [_runs_section(found)]
    if found.layers:
        pruned = _with_layers(found)
        sections += [_layers_section(pruned), _differing_section(pruned)]
    return sections


def _with_layers(found: Compared) -> Compared:
    """Leave out runs without attention layers."""
    members = [i for i, fates in enumerate(found.fates) if fates]
    return found._replace(
        **{field: [getattr(found, field)[i] for i in members]
           for field in ('names', 'runs', 'parameters', 'fates')})


def summarize_comparison(found: Compared) -> List[str]:
    """Say in sentences what the runs agree on, and compare their metrics."""
    everywhere = [
        name for name in found.layers
        if all(not f[name].active for f in found.fates if name in f)
    ]
    nowhere = len(found.layers) - len(everywhere) - len(found.differing)
    lines = []
    if found.layers:
        lines.append(
            f'{len(everywhere)} of {len(found.layers)} attention layers are '
            f'skipped in all runs that have them, {len(found.differing)} in '
            f'some, {nowhere} in none.')
        sizes = sorted({len(fates) for fates in found.fates if fates})
        if len(sizes) > 1:
            lines[-1] += (f' The networks have {sizes[0]} to {sizes[-1]} layers; '
                          'layers of the same name count as one.')
    ends = [(run.metrics[-1][1], name) for name, run in
            zip(found.names, found.runs)
            if run.metrics and math.isfinite(run.metrics[-1][1])]
    metrics = {run.metric for run in found.runs if run.metrics}
    if len(ends) > 1 and len(metrics) == 1:
        (high, best), (low, least) = max(ends), min(ends)
        lines.append(f'{metrics.pop()} ends between {low:.4g} ({least}) and '
                     f'{high:.4g} ({best}). Runs of other seeds say how much '
                     'of that is chance.')
    lines += [f'{name} has diverged: its loss is not finite from {run.unit} '
              f'{run.diverged:g} on.' for name, run in
              zip(found.names, found.runs) if run.diverged is not None]
    return lines + found.notes


def _runs_section(found: Compared) -> Section:
    header = ['run', 'active', 'skipped, and when', 'metric', 'best', 'loss',
              'step, s', 'parameters']
    rows, csv = [], [[
        'run', 'active', 'layers', 'skipped', 'criterion', 'metric', 'last',
        'best', 'loss', 'first_step', 'last_step', 'parameters',
        'unused_parameters', 'work_dir'
    ]]
    for name, run, parameters in zip(found.names, found.runs,
                                     found.parameters):
        active, total = len(run.record['active']), len(run.record['layers'])
        values = [value for _, value in run.metrics]
        rows.append([
            name, f'{active} of {total}' if total else '-', _when(run),
            f'{run.metric.split("/")[-1]} {values[-1]:.4g}' if values else '-',
            f'{run.best[1]:.4g}' if run.best else '-',
            f'{run.losses[-1][1]:.4g}' if run.losses else '-',
            _times(run), '-' if parameters is None else
            f'{(parameters.total - parameters.unused) / 1e6:.3f} M' +
            (f' + {parameters.unused / 1e6:.3f} M skipped'
             if parameters.unused else '')
        ])
        csv.append([
            name, active, total, ' '.join(n for d in run.decisions
                                          for n in d.skipped),
            run.record['criterion']['type'], run.metric,
            values[-1] if values else None, run.best and run.best[1],
            run.losses[-1][1] if run.losses else None,
            *(run.step_times[i][1] if run.step_times else None
              for i in (0, -1)),
            *(parameters or (None, None)), run.work_dir
        ])
    text = ['Metric and loss are the last that were logged, best the highest '
            'metric. Step times are the medians of the first and the last '
            'epoch that was logged, data loading excluded, with whatever else '
            'the machine was doing: compare runs of one machine.']
    picture = _curves_picture(found)
    if picture is None:
        text.append(f'More than {MOST_LINES} runs, or none with a log: no '
                    'curves are drawn.')
    tables = [Table('Runs', header, rows, csv)]
    if found.settings:
        tables.append(Table(
            'Settings: overrides of the config, but for those that all share',
            ['variant', 'overrides'],
            [[name, '; '.join(lines) or 'none']
             for name, lines in found.settings.items()]))
    return Section('Runs', text, tables, [picture] if picture else [])


def _when(run: Run) -> str:
    parts = [
        f'{window_name(d.window, run.unit)}: '
        f'{", ".join(x.short for x in d.layers if x.name in d.skipped)}'
        for d in run.decisions if d.skipped
    ]
    parts += [f'by hand: {edit}' for edit in run.edits]
    return '; '.join(parts) or ('-' if not run.record['layers'] else 'none')


def _times(run: Run) -> str:
    if not run.step_times:
        return '-'
    first, last = run.step_times[0][1], run.step_times[-1][1]
    return f'{first:.3g} -> {last:.3g}' if len(run.step_times) > 1 else (
        f'{last:.3g}')


def _curves_picture(found: Compared) -> Optional[Picture]:
    panels = [
        (label, [points(run) for run in found.runs]) for label, points in (
            ('active layers', lambda run: run.active if run.record['layers']
             else []), ('loss', lambda run: run.losses),
            ('metric', lambda run: run.metrics),
            ('step, s', lambda run: run.step_times))
    ]
    panels = [(label, lines) for label, lines in panels if any(lines)]
    if not panels or len(found.runs) > MOST_LINES:
        return None
    with style():
        legend = .18 * len(found.runs) + .4
        figure = new_figure(WIDTH, 1.6 * len(panels) + legend)
        *axes, below = figure.subplots(
            len(panels) + 1,
            gridspec_kw=dict(height_ratios=[1.6] * len(panels) + [legend]))
        for ax, (label, lines) in zip(axes, panels):
            for i, points in enumerate(lines):
                if not points:
                    continue
                x, y = zip(*points)
                look = dict(color=LINES[i % len(LINES)],
                            linestyle=DASHES[i // len(LINES) % len(DASHES)])
                if label == 'active layers':
                    end = max([p[0] for p in found.runs[i].losses] + [x[-1]])
                    ax.step(x + (end, ), y + (y[-1], ), where='post', **look)
                else:
                    ax.plot(x, y, marker='.', **look)
            ax.set_title(label)
            if label in ('active layers', 'step, s'):
                ax.set_ylim(bottom=0)
        units = {run.unit for run in found.runs}
        axes[-1].set_xlabel(' or '.join(sorted(units)))
        below.axis('off')
        below.legend(
            [axes[0].plot([], [], color=LINES[i % len(LINES)],
                          linestyle=DASHES[i // len(LINES) % len(DASHES)])[0]
             for i in range(len(found.names))],
            [printable(name) for name in found.names],
            loc='upper left', fontsize=8)
    said = '; '.join(
        f'{name}: ' + ', '.join(
            f'{label} {lines[i][0][1]:.3g} to {lines[i][-1][1]:.3g}'
            for label, lines in panels if lines[i])
        for i, name in enumerate(found.names))
    return Picture('compare_curves', figure, f'Curves of the runs. {said}.')


def _layers_section(found: Compared) -> Section:
    if len(found.names) > MOST_COLUMNS:
        header = ['layer', 'skipped in', 'KL, median', 'from, to']
        rows = [_summed_up(name, found) for name in found.layers]
    else:
        header = ['layer', *found.names]
        rows = [[name, *(_cell(f.get(name)) for f in found.fates)]
                for name in found.layers]
    csv = [['layer', 'run', 'active', 'window', 'kl', 'mapped', 'mu',
            'stability', 'status']]
    for name in found.layers:
        for run_name, fates in zip(found.names, found.fates):
            if name in fates:
                csv.append([name, run_name, *_numbers(fates[name])])
    text = ['KL divergence in nats: where a layer was skipped, that of the '
            'window that decided it, else the last that was measured. Layers '
            'that were skipped are marked with their window. Values of runs '
            'whose earlier windows decided otherwise are between other '
            'neighbours.']
    return Section('Layers', text,
                   [Table('KL divergence and window', header, rows, csv)],
                   [_layers_picture(found)])


def _summed_up(name: str, found: Compared) -> List[str]:
    """Summarise a layer over many runs as a row of a table."""
    fates = [f[name] for f in found.fates if name in f]
    kl = [f.layer.kl for f in fates
          if f.layer is not None and f.layer.kl is not None]
    return [name, f'{sum(not f.active for f in fates)} of {len(fates)} runs',
            f'{np.median(kl):.3g}' if kl else '-',
            f'{min(kl):.3g} to {max(kl):.3g}' if kl else '-']


def _cell(fate: Optional[Fate]) -> str:
    if fate is None:
        return ''
    kl = '-' if fate.layer is None or fate.layer.kl is None else (
        f'{fate.layer.kl:.3g}')
    if fate.active:
        return kl
    if fate.decision is None or fate.layer.name not in fate.decision.skipped:
        return f'{kl} skipped outside of windows'
    first, last = fate.decision.window
    return f'{kl} skipped in {first}' + (f'-{last}' if last != first else '')


def _numbers(fate: Fate) -> list:
    layer, decision = fate.layer, fate.decision
    if layer is None:
        return [fate.active] + [None] * 6
    return [fate.active, '-'.join(map(str, decision.window)), layer.kl,
            layer.mapped, decision.criterion.get('mu'), layer.stability,
            layer.outcome.value]


def _layers_picture(found: Compared) -> Picture:
    """Draw a map of KL divergences, with crosses for skipped layers."""
    values = np.full((len(found.layers), len(found.runs)), np.nan)
    for j, fates in enumerate(found.fates):
        for i, name in enumerate(found.layers):
            layer = fates[name].layer if name in fates else None
            if layer is not None and layer.kl is not None:
                values[i, j] = np.log10(max(layer.kl, 1e-8))
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (0., 1.)
    with style():
        figure = new_figure(max(WIDTH, .5 * len(found.runs) + 1.5),
                            .19 * len(found.layers) + 2.)
        axes = figure.subplots()
        image = axes.imshow(values, cmap=COLOURS, vmin=low,
                            vmax=max(high, low + 1e-6), aspect='auto')
        colours = iter(cell_colours(np.nan_to_num(values, nan=high), low, high))
        for (i, j), _ in np.ndenumerate(values):
            colour, fate = next(colours), found.fates[j].get(found.layers[i])
            if fate is not None and not fate.active:
                axes.text(j, i, '×', ha='center', va='center', color=colour,
                          fontweight='bold')
        axes.set_yticks(range(len(found.layers)), found.layers, fontsize=7)
        axes.set_xticks(range(len(found.names)),
                        [printable(name) for name in found.names], fontsize=7,
                        rotation=45, ha='right', rotation_mode='anchor')
        axes.set_title('KL divergence; ×: skipped')
        figure.colorbar(image, ax=axes, label='log10 of nats', shrink=.6)
    said = '; '.join(
        f'{name} skipped ' + (', '.join(
            n for n, fate in fates.items() if not fate.active) or 'none')
        for name, fates in zip(found.names, found.fates))
    return Picture('compare_layers', figure,
                   f'Map of KL divergences by layer and run. {said}.')


def _differing_section(found: Compared) -> Section:
    differing = found.differing
    if not differing:
        return Section('Decisions that differ', [
            'None: all runs that have a layer did the same with it.'])
    if len(found.names) > MOST_COLUMNS:
        header = ['layer', 'run', 'decision']
        rows = [[name, run, _narrowly(f[name])] for name in differing
                for run, f in zip(found.names, found.fates) if name in f]
    else:
        header = ['layer', *found.names]
        rows = [[name, *(_narrowly(f.get(name)) for f in found.fates)]
                for name in differing]
    text = ['By how much: the distance of the mapped value to mu, and the '
            'share of resampled windows that skip the layer. A small distance, '
            'or a share far from 0% and 100%, is a decision that chance could '
            'have turned.']
    return Section('Decisions that differ', text,
                   [Table('By how much', header, rows)])


def _became(fate: Fate) -> str:
    """Say whether a layer was skipped, and why if its value says otherwise."""
    if not fate.active:
        return 'skipped'
    if fate.layer is not None and fate.layer.outcome is Outcome.SKIPPED:
        return 'restored by hand'
    if fate.layer is not None and fate.layer.outcome is Outcome.UNSTABLE:
        return fate.layer.outcome.value
    if (fate.margin or 0) > 0:  # uninformative='wait'
        return 'kept (ranking says nothing)'
    return 'kept'


def _narrowly(fate: Optional[Fate]) -> str:
    if fate is None:
        return ''
    parts = [_became(fate)]
    if fate.layer is None:
        parts.append('never measured')
    elif fate.margin is not None:
        side = 'below' if fate.margin > 0 else 'above'
        parts.append(f'{abs(fate.margin):.3g} {side} mu')
    elif fate.decision.why_unmapped(fate.layer):
        parts.append(fate.decision.why_unmapped(fate.layer))
    if fate.layer is not None and fate.layer.stability is not None:
        parts.append(f'{fate.layer.stability:.0%}')
    return ', '.join(parts)
