"""Writes the results of a study as Markdown tables and pictures."""
import os.path as osp
from typing import Dict, Iterable, List, Optional, Tuple

import numpy as np

from ...engine.journal.record import write_whole
from ...errors import UsageError
from ...plotting import KEPT, OUT, SKIPPED, WIDTH, Picture, new_figure, save, style
from .cells import NetworkCell
from .numbers import Interval, correlation, interval
from .starts import start_cells
from .study import SELECTORS, Study
from .summary import (
    LEAD,
    accuracies,
    chance,
    correlations,
    networks,
    paired_with,
    selected,
    told,
    with_position,
)

NAMES = dict(kl='KL, equation 11', excess='excess', conditional='conditional',
             own_share='own share', position='position alone',
             halves='split halves of that loss')
# Selectors that others are compared with, paired by seed.
_COMPARED = ('random', 'position', 'paper')
_COLOURS = (KEPT, SKIPPED, OUT)
_MARKERS = 'osD'


def show(value: Optional[Interval], digits: int = 2, sign: bool = False,
         spread: str = 'margin') -> str:
    """Format as ``mean [low, high]``, or with 'std' as ``mean ± std``."""
    if value is None:
        return '-'
    form = f'{"+" if sign else ""}.{digits}f'
    text = format(value.mean, form)
    if value.margin is None:
        return text
    if spread == 'std':
        return f'{text} ± {value.std:.{digits}f}'
    low, high = value.mean - value.margin, value.mean + value.margin
    return f'{text} [{low:{form}}, {high:{form}}]'


def _table(header: List[str], rows: List[List[str]]) -> List[str]:
    lines = [header, ['---'] * len(header), *rows]
    return [*(f'| {" | ".join(line)} |' for line in lines), '']


def write_report(study: Study, out: str) -> Tuple[str, List[str]]:
    """Write ``results.md`` and the pictures of what is finished.

    Args:
        study (Study): Study, from
            :func:`~ela_mm.experiments.validity.study.read_study`.
        out (str): Folder of its runs.

    Returns:
        tuple: The Markdown, and the paths of all files written.

    Raises:
        UsageError: If nothing is finished.
    """
    lines = [f'# {study.title}', '']
    pictures: List[Picture] = []
    if study.kind == 'starts':
        lines += _starts(study, out)
    else:
        groups = networks(study, out)
        if not groups:
            raise UsageError(f'nothing is finished below {out}: nothing to '
                             'tabulate')
        for depth, cells in groups.items():
            lines += _of_depth(study, depth, cells)
            pictures += _pictures(study, depth, cells)
    text = '\n'.join(lines)
    path = osp.join(out, 'results.md')
    write_whole(text, path)
    return text, [path, *(save(picture, out) for picture in pictures)]


def _of_depth(study: Study, depth: int, cells: List[NetworkCell]) -> List[str]:
    number = study.depths[depth]
    lines = [f'## ResNet-{depth}: {number} layers skipped', '',
             "Spearman's rank correlation with the loss that skipping adds, "
             'over all layers; mean over seeds [95% interval].', '']
    windows = [w for w in study.windows
               if any(cell.window(w) for cell in cells)]
    found = {w: correlations(cells, w) for w in windows}
    for title, field in (('all layers', 'over_all'),
                         ('within stages', 'within')):
        lines += _table([title, *windows], [
            [name, *(show(getattr(found[w][m], field), sign=True)
                         for w in windows)]
            for m, name in (*NAMES.items(), (LEAD, 'KL less position, paired'))
        ])
    lines += ['What the hook says of so many networks:', '']
    says = [told(cells, w) for w in windows]
    lines += _table(['', *windows], [
        [what, *(f'{getattr(x, field)} of {x.networks}' for x in says)]
        for what, field in (('layers rank by position', 'by_position'),
                            ('attention is as it was drawn', 'as_drawn'),
                            ('one of the two', 'either'))
    ])
    lines += ['Rank correlation of KL with position: ' + ', '.join(
        f'{w} {show(with_position(cells, w))}' for w in windows), '']
    sets = {w: selected(cells, w) for w in windows}
    if all(sets.values()):
        lines += ["Jaccard's index of the skipped sets, mean over pairs of "
                  'seeds.', '']
        rows = [[selector, *(f'{sets[w][selector].mean:.2f}' for w in windows)]
                for selector in SELECTORS]
        rows.append(['by chance', *(
            '{:.2f} [{:.2f}, {:.2f}]'.format(*chance(study, cells, w))
            for w in windows)])
        lines += _table(['selector', *windows], rows)
    lines += [f'Test accuracy in percent; layers go after epoch '
              f'{study.decision_epoch} of {study.training.epochs}. Differences '
              'are paired by seed.', '']
    rows = []
    for run, x in accuracies(cells).items():
        others = (paired_with(cells, run, other) if run in SELECTORS
                  and run != other else None for other in _COMPARED)
        rows.append([run, show(x.at_once, sign=True),
                     show(x.end, spread='std'), show(x.added, sign=True),
                     *(show(other, sign=True) for other in others),
                     str(len(x.seeds))])
    return lines + _table(['run', 'at once', 'at the end', 'to MRLA-base',
                           *(f'to {x}' for x in _COMPARED), 'seeds'], rows)


def _starts(study: Study, out: str) -> List[str]:
    found: Dict[Tuple[int, str], list] = {}
    for cell in start_cells(study, out):
        result = cell.result()
        if result is not None:
            found.setdefault((cell.depth, cell.name), []).append(
                result['epochs'])
    if not found:
        raise UsageError(f'no finished run below {out}: nothing to tabulate')
    epochs = range(study.training.epochs + 1)
    distances, ranks, changes, ends = [], [], [], []
    for (depth, name), runs in found.items():
        head = [name, str(depth)]
        distances.append(head + [
            _mean((run[e]['distance'] for run in runs), 3) for e in epochs])
        ranks.append(head + [
            _mean((run[e]['rank_by_position'] for run in runs), 2)
            for e in epochs])
        changes.append(head + [
            _mean((correlation(run[e]['kl'], run[0]['kl']) for run in runs), 2)
            for e in epochs])
        flagged = sum(run[e]['by_position'] for run in runs
                      for e in epochs[1:])
        ends.append(head + [
            f'{flagged} of {len(runs) * study.training.epochs}',
            f'{np.max([x["largest_kl"] for run in runs for x in run]):.1f}',
            *(_mean((run[e]['top1'] for run in runs), 1)
              for e in epochs[1:]), str(len(runs))])
    header = ['start', 'depth', *(f'epoch {e}' for e in epochs)]
    return ['Distance from uniform weights: |D - log(m / n)| / log(m / n), the '
            'median of the layers, mean over seeds; epoch 0 is before the '
            'training.', '', *_table(header, distances),
            'Rank correlation of KL with that of uniform weights, which follows '
            'position.', '', *_table(header, ranks),
            'Rank correlation of KL with that before the training.', '',
            *_table(header, changes), 'Top-1 accuracy in percent.', '',
            *_table(['start', 'depth', 'windows by position', 'largest KL',
                         *header[3:], 'seeds'], ends)]


def _mean(values: Iterable[Optional[float]], digits: int) -> str:
    found = interval(list(values))
    return '-' if found is None else f'{found.mean:.{digits}f}'


def _pictures(study: Study, depth: int, cells: List[NetworkCell]) -> List[Picture]:
    windows = [w for w in study.windows
               if any(cell.window(w) for cell in cells)]
    pictures = [_correlation_picture(depth, cells, windows)]
    if len(cells) > 1:
        pictures.append(_overlap_picture(study, depth, cells, windows))
    if any(run in SELECTORS for run in accuracies(cells)):
        pictures.append(_accuracy_picture(depth, cells))
    return pictures


def _correlation_picture(depth: int, cells: List[NetworkCell],
                         windows: List[str]) -> Picture:
    with style():
        figure = new_figure(WIDTH + 1, 3.2)
        axes = figure.subplots()
        axes.axvline(0, color=OUT, linewidth=.8)
        for w, window in enumerate(windows):
            found = correlations(cells, window)
            for row, measure in enumerate(NAMES):
                value = found[measure].over_all
                if value is not None:
                    _point(axes, value, row + .22 * (w - 1), w,
                           window if row == 0 else None)
        _name_rows(axes, list(NAMES.values()))
        axes.set_xlim(-1.05, 1.05)
        axes.set_xticks([-1, -.5, 0, .5, 1])
        axes.set_xlabel("Spearman's rank correlation with the loss added")
        axes.set_title(f'ResNet-{depth}: who knows what skipping costs')
        _legend(axes)
    return Picture(f'validity_correlation_{depth}', figure,
                   'Rank correlations of measures with the loss that skipping '
                   'a layer adds, with 95% intervals over seeds.')


def _point(axes, value: Interval, y: float, style_: int,
           label: Optional[str]) -> None:
    axes.errorbar(value.mean, y, xerr=value.margin, capsize=2, linewidth=1,
                  marker=_MARKERS[style_ % 3], markersize=5, linestyle='none',
                  color=_COLOURS[style_ % 3], label=label)


def _legend(axes) -> None:
    """Place the legend to the right, where it hides no point."""
    axes.legend(loc='center left', bbox_to_anchor=(1.02, .5), borderaxespad=0,
                title='window')


def _name_rows(axes, names: List[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()


def _overlap_picture(study: Study, depth: int, cells: List[NetworkCell],
                     windows: List[str]) -> Picture:
    with style():
        figure = new_figure(WIDTH + 1, 3.2)
        axes = figure.subplots()
        expected, low, high = chance(study, cells, windows[0])
        axes.axvspan(low, high, color=OUT, alpha=.2, linewidth=0,
                     label='by chance')
        axes.axvline(expected, color=OUT, linewidth=.8)
        for w, window in enumerate(windows):
            for row, (_, x) in enumerate(selected(cells, window).items()):
                axes.plot(x.mean, row + .22 * (w - 1), _MARKERS[w % 3],
                          markersize=5, color=_COLOURS[w % 3],
                          label=window if row == 0 else None)
        _name_rows(axes, list(SELECTORS))
        axes.set_xlim(-.03, 1.05)
        axes.set_xlabel("Jaccard's index between seeds, mean over pairs")
        axes.set_title(f'ResNet-{depth}: do other seeds skip the same layers?')
        _legend(axes)
    return Picture(f'validity_overlap_{depth}', figure,
                   'Overlap of the skipped sets between seeds, beside that of '
                   'random sets.')


def _accuracy_picture(depth: int, cells: List[NetworkCell]) -> Picture:
    found = accuracies(cells)
    rows = [run for run, x in found.items() if x.added is not None]
    with style():
        figure = new_figure(WIDTH + 1, 3.2)
        axes = figure.subplots()
        axes.axvline(0, color=OUT, linewidth=.8)
        for row, run in enumerate(rows):
            _point(axes, found[run].added, row, 0, None)
        _name_rows(axes, rows)
        axes.set_xlabel('test accuracy at the end, points to MRLA-base')
        axes.set_title(f'ResNet-{depth}: what pruning costs in the end')
    return Picture(f'validity_accuracy_{depth}', figure,
                   'Test accuracy after pruning less that without, with 95% '
                   'intervals over seeds.')
