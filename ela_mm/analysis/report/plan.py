"""Shows a training before it runs: its layers, and when things happen."""
import math
from typing import List, Optional, Sequence, Tuple

from ...plotting import KEPT, OUT, SKIPPED, WIDTH, Picture, new_figure, style
from ...pruning.windows import window_name
from ..plan import Plan, PlannedLayer, StepTime
from ..schedule import Schedule, Span
from .page import Section, Table

WIDTH_OF_LINE = 64  # characters
# More positions than this are described by the first two.
FEW = 6


def layers_section(layers: Sequence[PlannedLayer]) -> Section:
    """Show the attention layers of each stage, and which can be pruned.

    Args:
        layers (Sequence[PlannedLayer]): Layers, from
            :func:`ela_mm.analysis.plan.planned_layers`.

    Returns:
        Section: A table of stages.
    """
    active = [layer for layer in layers if layer.active]
    kinds = [(sum(x.prunable for x in active), 'prunable'),
             (sum(x.inert for x in active), 'inert'),
             (sum(x.first for x in active), 'the first of their stage, with '
              'none before them to repeat, which stay')]
    text = [f'{len(active)} of {len(layers)} attention layers active: ' +
            ', '.join(f'{count} {kind}' for count, kind in kinds if count) +
            '.' if active else f'None of {len(layers)} attention layers is '
            'active.']
    inert = [layer.name for layer in layers if layer.inert]
    if inert:
        text.append(f'Inert are {", ".join(inert)}: fresh, in frozen stages, '
                    'they add exactly 0 and cannot learn; training skips them '
                    f'before its first step, with {len(active) - len(inert)} '
                    'left.')
    rows = []
    for stage in dict.fromkeys(layer.stage for layer in layers):
        own = [layer for layer in layers if layer.stage == stage]
        rows.append([own[0].name.rsplit('.', 1)[0], str(len(own))] + [
            _indices(own, what)
            for what in ('frozen', 'inert', 'prunable', 'active')
        ])
    table = Table(
        'Layers by stage: how many, and which blocks, from 0',
        ['stage', 'number', 'frozen', 'inert', 'prunable', 'skipped already'],
        rows, [['layer', *PlannedLayer._fields[1:], 'prunable']] +
        [[*layer, layer.prunable] for layer in layers])
    return Section('Layers', text, [table])


def _indices(layers: Sequence[PlannedLayer], what: str) -> str:
    wanted = what != 'active'
    found = [layer.name.rsplit('.', 1)[1] for layer in layers
             if getattr(layer, what) is wanted]
    if len(found) == len(layers):
        return 'all'
    return ' '.join(found) or '-'


def plan_sections(plan: Plan) -> List[Section]:
    """Lay out a plan.

    Args:
        plan (ela_mm.analysis.plan.Plan): Plan, from
            :func:`ela_mm.analysis.plan.make_plan`.

    Returns:
        List[Section]: Layers; what happens when; step times; verdict.
    """
    sections = [layers_section(plan.layers)]
    if plan.schedule is not None:
        sections.append(
            schedule_section(plan.schedule, plan.criteria, rules=plan.rules))
    if plan.times:
        sections.append(_times_section(plan.times))
    sections.append(_verdict(plan))
    return sections


def schedule_section(schedule: Schedule,
                     criteria: Sequence[str] = (),
                     line: bool = True,
                     rules: Sequence[str] = ()) -> Section:
    """Show when things happen, in words, in characters and as a picture.

    Args:
        schedule (Schedule): Timeline, from
            :func:`ela_mm.analysis.schedule.read_schedule`.
        criteria (Sequence[str]): Criteria, in words.
        line (bool): Whether to draw it in characters as well, for terminals.
            Defaults to True.
        rules (Sequence[str]): When a criterion is not followed, in words.

    Returns:
        Section: Text, tables and a picture.
    """
    clock = schedule.clock
    unit = 'epochs' if clock.by_epoch else 'iterations'
    text = [f'{clock.length} {unit}' + (
        f' of {clock.per_epoch} iterations' if clock.per_epoch else '') +
        ', on one process.']
    text += [f'Criterion: {words}.' for words in criteria]
    text += [f'{words[0].upper()}{words[1:]}.' for words in rules]
    if not schedule.windows:
        text.append('There is no ELAPruneHook: nothing will be pruned.')
    rows = [[track, what] for track, what in _tracks(schedule)]
    tables = [Table('What happens when', ['', 'when'], rows)]
    if line:
        tables.append(
            Table('On a line', ['', f'0 to {clock.words(clock.end)}'],
                  list(map(list, lines_of(schedule)))))
    return Section('Schedule', text, tables, [schedule_picture(schedule)])


def _tracks(schedule: Schedule) -> List[Tuple[str, str]]:
    clock = schedule.clock
    tracks = [(w.label, _range(w, schedule)) for w in schedule.windows]
    if schedule.warm_up is not None:
        tracks.append((schedule.warm_up.label, _range(schedule.warm_up,
                                                      schedule)))
    for name, positions in (('learning rate drops', schedule.lr_steps),
                            ('validation', schedule.validations),
                            ('checkpoint', schedule.checkpoints)):
        if positions:
            tracks.append((name, _positions(positions, schedule)))
    tracks += [('learning rate', words) for words in schedule.lr_others]
    if schedule.earliest_stop is not None:
        tracks.append(('early stopping',
                       f'{clock.words(schedule.earliest_stop)} at the '
                       'earliest'))
    return tracks


def _range(span: Span, schedule: Schedule) -> str:
    clock = schedule.clock
    if not clock.in_iterations:
        return _epochs(span.begin, span.end)
    text = (f'iterations {int(span.begin) + 1} to {int(span.end)} '
            f'({int(span.end - span.begin)})')
    if clock.per_epoch:
        bounds = span.begin / clock.per_epoch, span.end / clock.per_epoch
        text += ', ' + ('' if all(map(float.is_integer, bounds)) else
                        'within ') + _epochs(*bounds)
    return text


def _epochs(begin: float, end: float) -> str:
    return window_name((math.floor(begin) + 1, math.ceil(end)), 'epoch')


def _positions(positions: Sequence[float], schedule: Schedule) -> str:
    if len(positions) <= FEW:
        return 'after ' + ', '.join(map(schedule.clock.words, positions))
    return (f'{len(positions)} times, first after '
            f'{schedule.clock.words(positions[0])}, then '
            f'{schedule.clock.words(positions[1])}, ...')


def lines_of(schedule: Schedule) -> List[Tuple[str, str]]:
    """Draw a schedule in characters.

    Args:
        schedule (Schedule): Timeline of a training.

    Returns:
        List[Tuple[str, str]]: Name and line of each track: ``#`` in a window,
        ``~`` in the warm-up, ``|`` at an event, ``!`` where the run may have
        ended already.
    """
    end = schedule.clock.end or 1

    def cell(position: float) -> int:
        return min(WIDTH_OF_LINE - 1, int(position / end * WIDTH_OF_LINE))

    def line(marks: Sequence[Tuple[float, float]], sign: str) -> str:
        cells = ['.'] * WIDTH_OF_LINE
        for first, last in marks:
            # An end belongs to the cell before it.
            last = max(cell(first), cell(max(last - 1e-9, 0.)))
            cells[cell(first):last + 1] = sign * (last + 1 - cell(first))
        return ''.join(cells)

    def events(positions: Sequence[float]) -> List[Tuple[float, float]]:
        return [(max(p - 1e-6 * end, 0.), p) for p in positions]

    lines = []
    if schedule.windows:
        lines.append(('windows', line([(w.begin, w.end)
                                       for w in schedule.windows], '#')))
    if schedule.warm_up is not None:
        lines.append(('warm-up', line([schedule.warm_up[1:]], '~')))
    for name, positions in (('learning rate drops', schedule.lr_steps),
                            ('validation', schedule.validations),
                            ('checkpoint', schedule.checkpoints)):
        if positions:
            lines.append((name, line(events(positions), '|')))
    if schedule.earliest_stop is not None:
        lines.append(('may have stopped',
                      line([(schedule.earliest_stop, end)], '!')))
    return lines


def schedule_picture(schedule: Schedule) -> Picture:
    """Draw a schedule as a picture, with a track for each kind of event.

    Args:
        schedule (Schedule): Timeline of a training.

    Returns:
        Picture: The picture, named ``plan``.
    """
    tracks: List[Tuple[str, List[Span], Sequence[float], str]] = []
    if schedule.windows:
        tracks.append(('windows', schedule.windows, (), SKIPPED))
    if schedule.warm_up is not None:
        tracks.append(('warm-up', [schedule.warm_up], (), OUT))
    for name, positions in (('lr drops', schedule.lr_steps),
                            ('validation', schedule.validations),
                            ('checkpoint', schedule.checkpoints)):
        if positions:
            tracks.append((name, [], positions, KEPT))
    if schedule.earliest_stop is not None:
        tracks.append(('may have\nstopped', [
            Span('', schedule.earliest_stop, schedule.clock.end)
        ], (), OUT))
    clock = schedule.clock
    scale = clock.per_epoch or 1  # the axis shows epochs, if there are any
    with style():
        figure = new_figure(WIDTH, .38 * max(len(tracks), 1) + .9)
        axes = figure.subplots()
        for y, (_, spans, positions, colour) in enumerate(tracks):
            for span in spans:
                axes.barh(y, (span.end - span.begin) / scale,
                          left=span.begin / scale, height=.6, color=colour,
                          hatch='///' if colour == OUT else None,
                          edgecolor='white', linewidth=0)
            if len(positions):
                axes.plot([p / scale for p in positions], [y] * len(positions),
                          '|', color=colour, markersize=9)
        axes.set_yticks(range(len(tracks)), [name for name, *_ in tracks])
        axes.set_ylim(len(tracks) - .4, -.6)
        axes.set_xlim(0, (clock.end or 1) / scale)
        axes.set_xlabel('epoch' if clock.by_epoch else 'iteration')
        axes.set_title('What happens when')
    said = '; '.join(f'{name}: {what}' for name, what in _tracks(schedule))
    return Picture('plan', figure, f'A training on a line. {said}.')


def _times_section(times: Sequence[StepTime]) -> Section:
    rounds = len(times[0].seconds)
    rows = [[x.label, str(x.layers), f'{x.median:.3g}',
             f'{min(x.seconds):.3g} to {max(x.seconds):.3g}',
             f'{x.ratio:.2f}'] for x in times]
    text = ['Whole training steps on the first batch, timed in turns, '
            f'{rounds} round{"s" * (rounds > 1)}, on this machine. Compare the '
            'ratios: each is the median over the rounds.']
    spread = max(max(x.seconds) - min(x.seconds) for x in times)
    doubt = ('One round says little' if rounds == 1 else
             'Some differ by less than one variant does between rounds' if any(
                 abs(x.median - times[0].median) < spread for x in times[1:])
             else None)
    if doubt:
        text.append(f'{doubt}: take more (tools/analyze.py plan CONFIG '
                    '--rounds 10), on an idle machine.')
    return Section('Expected step', text, [
        Table('Step times', ['attention', 'active', 'median, s', 'from, to',
                             'to all layers'], rows)])


def _verdict(plan: Plan) -> Section:
    text = [f'REFUSED: {reason}' for reason in plan.refused]
    warnings: Optional[List[str]] = plan.schedule and plan.schedule.warnings
    text += [f'WARNING: {reason}.' for reason in warnings or []]
    text += [f'Note: {reason}.' for reason in plan.notes]
    return Section('Verdict', text or ['Nothing speaks against it.'])
