"""Shows what other criteria and parameters would skip, and how stably."""
import json
from typing import Optional, Sequence

import numpy as np
from matplotlib.patches import Rectangle

from ...plotting import (
    COLOURS,
    KEPT,
    SKIPPED,
    WIDTH,
    Picture,
    cell_colours,
    new_figure,
    style,
)
from ...pruning.kl import MEASURES
from ..whatif import (
    CRITERION_ALONE,
    GAMMAS,
    MUS,
    SHAPES,
    Proposal,
    Stability,
    counts,
)
from ..window import Window
from .page import Section, Table


def counts_picture(window: Window) -> Picture:
    """Draw EBQM's number of skipped layers over gamma and mu.

    Args:
        window (Window): The window.

    Returns:
        Picture: A map for each (alpha, beta), with the run's own setting in a
        frame.
    """
    own = window.criterion or {}
    shapes = list(SHAPES)
    if own.get('type') == 'EBQM' and (own['alpha'], own['beta']) not in shapes:
        shapes.append((own['alpha'], own['beta']))
    gammas, mus = sorted({*GAMMAS, *_of(own, 'gamma')}), sorted(
        {*MUS, *_of(own, 'mu')})
    said, tops = [], []
    with style():
        figure = new_figure(WIDTH, 2.6 * len(shapes) + .4)
        axes = np.ravel(figure.subplots(len(shapes), 1))
        for ax, (alpha, beta) in zip(axes, shapes):
            grid = counts(window, alpha, beta, gammas, mus)
            _grid(ax, grid, gammas, mus, len(window.names))
            ax.set_title(f'Beta({alpha:g}, {beta:g})')
            i, j = np.unravel_index(grid.argmax(), grid.shape)
            tops.append((int(grid.max()), f'gamma {gammas[i]:g}, alpha '
                         f'{alpha:g}, beta {beta:g}, mu {mus[j]:g}'))
            said.append(f'with alpha {alpha:g} and beta {beta:g} EBQM skips '
                        f'{grid.min()} to {grid.max()} layers')
            if own.get('type') == 'EBQM' and (alpha, beta) == (own['alpha'],
                                                               own['beta']):
                _frame(ax, gammas.index(own['gamma']), mus.index(own['mu']))
                if window.as_decided:
                    at = gammas.index(own['gamma']), mus.index(own['mu'])
                    said.append(f'this run (framed) skips {grid[at]}' + (
                        '' if grid[at] == len(window.skipped) else
                        ' by its criterion alone'))
        most, where = max(tops)
        said.append(f'most, {most}, with {where}')
        figure.suptitle(
            f'{window.label.capitalize()}: how many of {len(window.names)} '
            'EBQM would skip',
            fontsize=10)
    return Picture(f'whatif_{window.label.replace(" ", "_")}', figure,
                   f'{window.label.capitalize()}: {"; ".join(said)}.')


def _of(own: dict, key: str) -> list:
    return [own[key]] if own.get('type') == 'EBQM' else []


def _grid(axes, grid: np.ndarray, gammas: list, mus: list, most: int) -> None:
    axes.imshow(grid, cmap=COLOURS, vmin=0, vmax=most, aspect='auto',
                origin='lower')
    colours = iter(cell_colours(grid, 0, most))
    for (i, j), number in np.ndenumerate(grid):
        axes.text(j, i, str(number), ha='center', va='center',
                  color=next(colours), fontsize=8)
    axes.set_xticks(range(len(mus)), [f'{mu:g}' for mu in mus])
    axes.set_yticks(range(len(gammas)), [f'{g:g}' for g in gammas])
    axes.set_xlabel('μ')
    axes.set_ylabel('γ')


def _frame(axes, row: int, column: int) -> None:
    axes.add_patch(
        Rectangle((column - .5, row - .5), 1, 1, fill=False, linewidth=2.5,
                  edgecolor='white'))
    axes.add_patch(
        Rectangle((column - .5, row - .5), 1, 1, fill=False, linewidth=1.2,
                  edgecolor='black'))


def stability_picture(window: Window,
                      stability: Optional[Stability]) -> Optional[Picture]:
    """Draw how often each layer is skipped when the window is resampled.

    Args:
        window (Window): The window.
        stability (Stability | None): Stability of its decision.

    Returns:
        Picture | None: The picture; None without ``stability``.
    """
    if stability is None:
        return None
    shares = [stability.skipped[name] for name in window.names]
    with style():
        figure = new_figure(WIDTH, .19 * len(shares) + 1.1)
        axes = figure.subplots()
        for y, share in enumerate(shares):
            sure = share in (0., 1.)
            axes.barh(y, max(share, .004), color=SKIPPED if share >= .5 else KEPT,
                      hatch=None if sure else '////', edgecolor='white',
                      linewidth=0)
            axes.text(share + .01, y, f'{share:.0%}', va='center', fontsize=7)
        axes.set_yticks(range(len(shares)), window.names, fontsize=7)
        axes.set_ylim(len(shares) - .4, -.6)
        axes.set_xlim(0, 1.1)
        axes.set_xlabel('share of resampled windows that skip the layer')
        axes.set_title(f'{window.label.capitalize()}: {stability.same:.0%} '
                       'decide exactly as the window itself')
    said = ', '.join(f'{n} {s:.0%}' for n, s in zip(window.names, shares))
    return Picture(
        f'stability_{window.label.replace(" ", "_")}', figure,
        f'Share of resampled windows that skip each layer: {said}.')


def whatif_section(window: Window, outcomes: Sequence[Proposal],
                   conditions: Optional[str] = None) -> Section:
    """Show what other criteria would have done with the same measurements.

    Args:
        window (Window): The window.
        outcomes (Sequence[Proposal]): Proposals, from
            :func:`ela_mm.analysis.whatif.compare`.
        conditions (str, optional): Conditions under which the costs of layers
            were measured, in words.

    Returns:
        Section: A table, the map of counts, and the stability.
    """
    text = [
        f'From the {MEASURES[window.redundancy]} of {len(window.names)} '
        f'candidates measured in {window.label}; nothing was trained again. '
        'Where layers had been skipped before, other criteria would have met '
        'other candidates.'
    ]
    own = outcomes[0]
    certain = own.stability
    if own.note and window.criterion:
        text.append(f'"{own.label}" cannot be decided anew: {own.note}. The '
                    'others can, from the weights that were measured.')
    elif own.label == CRITERION_ALONE and window.as_decided:
        kept = window.note or ('too few resampled windows skip the others '
                               '(min_stability)')
        names = ', '.join(window.short.get(x, x) for x in window.skipped)
        text.append(f'"{own.label}" is the criterion alone. The run skipped '
                    f'{names or "nothing"}: {kept}.')
    if certain is not None:
        text.append(
            'How sure is that? Blocks of the recorded steps were drawn '
            'at random to make up windows that might as well have been '
            f'measured: {certain.same:.0%} of them skip exactly what '
            f'"{own.label}" skips. ' +
            (f'Only {len(window.series)} of {window.steps} steps are recorded '
             'one by one, so the decision is steadier than that.'
             if len(window.series) < (window.steps or 0) else ''))
    elif window.series is None:
        text.append('Single steps were not recorded (by an earlier '
                    'version of ela_mm, or there was but one), so nothing is '
                    'known of how stable the decision is.')
    if any(o.step_time is not None for o in outcomes):
        before = ('that before the decision, which included measuring'
                  if window.criterion else 'that of the backbone as it is')
        text.append(
            f'The expected step is {before} ({window.step_time:.3g} s), less '
            f'what the skipped layers add to it, measured here '
            f'({conditions}). ' +
            (f'For this run it can be checked: {window.step_time_after:.3g} s '
             'were timed afterwards.'
             if window.step_time_after and window.as_decided else ''))
    rows = [[
        o.label,
        '-' if o.note and not o.skipped else str(len(o.skipped)), o.note or ', '.join(
            window.short.get(name, name) for name in o.skipped),
        '-' if o.stability is None else f'{o.stability.same:.0%}',
        '-' if o.step_time is None else f'{o.step_time:.3g}', ', '.join(
            f'{k}={v:g}' if isinstance(v, (int, float)) else f'{k}={v}'
            for k, v in o.config.items() if k != 'type' and v is not None)
    ] for o in outcomes]
    table = Table(
        f'Criteria, {window.label} (tables are the paper\'s)',
        ['criterion', 'skips', 'layers', 'stable', 'step, s', 'parameters'],
        rows, [[
            'criterion', 'config', 'skipped', 'stable', 'step_time', 'note'
        ]] + [[
            o.label,
            json.dumps(o.config), ' '.join(o.skipped),
            o.stability and o.stability.same, o.step_time, o.note
        ] for o in outcomes])
    pictures = [counts_picture(window)] if len(window.names) > 1 else []
    stable = stability_picture(window, certain)
    if stable is not None:
        pictures.append(stable)
    return Section(f'What if: {window.label}', text, [table], pictures)
