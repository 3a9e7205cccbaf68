"""Shows what was measured and decided in each window, and the timeline."""
from typing import List, Optional

import numpy as np
from mmengine.registry import FUNCTIONS

from ...engine.journal.picture import decision_picture
from ...engine.journal.sentences import dashes_sentence
from ...plotting import (
    KEPT,
    SKIPPED,
    WIDTH,
    Picture,
    new_figure,
    printable,
    style,
)
from ...pruning.criteria import asks_network
from ...pruning.decision import Decision, LayerDecision
from ...pruning.doubt import doubt_of
from ...pruning.edit import MaskEdit
from ...pruning.kl import MEASURES
from ...pruning.windows import window_name
from ..cost import Cost
from ..history import Run
from .page import Section, Table


def summarize(run: Run, cost: Optional[Cost] = None) -> List[str]:
    """Say which layers were pruned, why, and what it cost or gained.

    Args:
        run (Run): Run, from :func:`ela_mm.analysis.history.read_run`.
        cost (ela_mm.analysis.cost.Cost, optional): Cost of its network.

    Returns:
        List[str]: Paragraphs of one or two sentences.
    """
    skipped = [name for d in run.decisions for name in d.skipped]
    total = len(run.record['layers'])
    if skipped:
        lines = [
            f'{len(skipped)} of {total} attention layers were pruned while '
            f'training ({", ".join(skipped)}); {len(run.record["active"])} are '
            'active.',
            _why(run),
        ]
        by_hand = sum(len(e.skipped) - len(e.restored) for e in run.edits)
        others = total - len(run.record['active']) - len(skipped) - by_hand
        if others > 0:
            lines[0] += (f' The other {others} were skipped before, since they '
                         'could not learn or the training started without '
                         'them.')
    elif run.decisions:
        lines = [
            'Nothing was pruned: ' + '; '.join(
                f'{_span(run, d)}: {d.note}' for d in run.decisions) + '.'
        ]
    else:
        lines = ['No window has ended yet: nothing has been decided.']
    lines += [_by_hand(run, edit) for edit in run.edits]
    lines += _gain(run)
    if cost is not None:
        blocks = sum(stage.seconds for stage in cost.stages)
        lines.append(
            'Measured side by side, a step of the backbone with all attention '
            f'layers takes {cost.seconds_before / blocks:.2f} times as long as '
            'one without attention; as pruned, it takes '
            f'{cost.seconds_after / blocks:.2f} times as long.')
    if run.metrics:
        at, value = run.metrics[-1]
        best_at, best = run.best or run.metrics[-1]
        lines.append(f'{run.metric} is {value:.4g} in {run.unit} {at:g}' + (
            f' (highest: {best:.4g} in {run.unit} {best_at:g}).'
            if best_at != at else '.'))
    if run.diverged is not None:
        lines.append('The training has diverged: its loss is not finite from '
                     f'{run.unit} {run.diverged:g} on.')
    return lines


def _why(run: Run) -> str:
    saying_nothing = [d for d in run.decisions
                      if d.skipped and doubt_of(d)]
    if all(_by_loss(d) for d in run.decisions if d.skipped):
        return ('They went because the network did best without them: on '
                'pictures held out of the training set, skipping them added '
                'least to the loss.')
    if not saying_nothing:
        return ('They went because their attention weights repeat those of '
                'the layer before more than other layers\' do: the criterion '
                f'({run.record["criterion"]["type"]}) found the '
                f'{MEASURES[run.decisions[0].redundancy]} between the two '
                'small beside the others\'.')
    spans = ', '.join(_span(run, d) for d in saying_nothing)
    if any(d.saturated for d in saying_nothing):
        return (f'In {spans} attention said nothing of what is redundant: it '
                'was saturated, or had not learned yet, and the layers went by '
                'rounding, random weights or position. Train with a warm-up, '
                'and measure later or longer.')
    if any(d.as_drawn for d in saying_nothing):
        return (f'In {spans} attention had not learned yet: the layers went by '
                'its random first weights, not because attention had learned to '
                'repeat. Measure later or longer, after the warm-up, or train '
                'attention at a higher rate.')
    return (f'In {spans} the layers ranked by their position in the stage, as '
            'uniform attention ranks them, not because attention had learned '
            'to repeat. Measure later or longer, or after the warm-up.')


def _by_hand(run: Run, edit: MaskEdit) -> str:
    return (f'The run went on from a checkpoint of {run.unit} '
            f'{run.place(edit)} that was edited by hand: {edit}.')


def _gain(run: Run) -> List[str]:
    pruned = [d for d in run.decisions if d.skipped]
    lines = [
        f'After {_span(run, d)} a step took {d.times.in_turns()}.'
        for d in pruned if d.times.ratio
    ]
    said = [f'{_span(run, d)}: {d.times.medians()}' for d in pruned
            if d.times.are_enough]
    if said:
        lines.append(
            'The median training step, before and after each pruning: '
            f'{"; ".join(said)}. It was timed during the training, on a '
            'machine that may have had other work; the first of each pair '
            'includes measuring.')
    return lines


def _span(run: Run, decision: Decision) -> str:
    return window_name(decision.window, run.unit)


def timeline_section(run: Run) -> Section:
    """Show active layers, step time and metric over the training."""
    each = 'epoch' if run.unit == 'epoch' else 'stretch of iterations'
    text = ['Above, how many attention layers were active; then, as far as they '
            f'are known, the median step of each {each} and the metric. Step '
            'times include whatever else the machine was doing' +
            ('; half of the steps lie in the band.' if run.step_quartiles else
             ', and are smoothed as MMEngine logs them.' if run.step_times else
             '.')]
    if not run.metrics:
        text.append('No metrics are known: the run was not validated, or its '
                    'work dir has no scalars.json (LocalVisBackend writes it).')
    return Section('Over the training', text, pictures=[timeline_picture(run)])


def window_section(run: Run, decision: Decision) -> Section:
    """Show what was measured in a window, and what was decided."""
    criterion = dict(decision.criterion)
    name = criterion.pop('type')
    parameters = ', '.join(f'{k} = {v}' for k, v in criterion.items())
    before = decision.total - decision.active - len(decision.skipped)
    text = [
        f'{decision.samples} samples were measured in {_span(run, decision)}. '
        f'A small KL divergence (in nats) says that a layer\'s attention '
        'weights repeat those of the active layer before. '
        f'The criterion {name} ({parameters}) ' +
        ('asked the network, without each layer, what it loses (mapped: the '
         'loss added) and ' if _by_loss(decision) else
         '' if decision.redundancy == 'paper' else
         f'ranked by the {MEASURES[decision.redundancy]} and ') +
        (f'skipped {len(decision.skipped)} ({", ".join(decision.skipped)}); '
         f'{decision.active} of {decision.total} layers are active' +
         (f', {before} were skipped before.' if before else '.')
         if decision.skipped else
         f'skipped nothing: {decision.note}.')
    ]
    doubt = doubt_of(decision)
    if doubt:
        text.append(f'{doubt[0].upper()}{doubt[1:]}.')
    dashes = dashes_sentence(decision)
    if dashes:
        text.append(f'{dashes[0].upper()}{dashes[1:]}.')
    if any(layer.excess is not None for layer in decision.layers):
        text.append(
            'Excess is the KL divergence less log(m / n), what uniform weights '
            'would have; conditional is its part on the layers that both see, '
            'whatever the later one gives to itself. A layer whose '
            'predecessor sees itself alone has 0 there in any case.')
    if name == 'EBQM':
        text.append(
            'Layers whose KL divergence lies above the quantile gamma are out '
            'of reach. The others are stretched to 0 to 1, mapped by the '
            'distribution function of Beta(alpha, beta), and skipped where '
            'the result is below mu.')
    number = '{:.4g}'.format
    rows = [[
        layer.name,
        *('-' if value is None else number(value) for value in _numbers(layer)),
        '-' if layer.stability is None else f'{layer.stability:.0%}',
        _fate(layer, decision)
    ] for layer in decision.layers]
    table = Table(
        'Layers; std is between iterations, stability the share of resampled '
        'windows that skip the layer',
        ['layer', 'KL', 'std', 'excess', 'conditional', 'mapped', 'stability',
         'decision'], rows,
        [['layer', 'kl', 'kl_std', 'excess', 'conditional', 'mapped',
          'stability', 'decision']] + [[
              layer.name, *_numbers(layer), layer.stability,
              layer.outcome.value
          ] for layer in decision.layers])
    return Section(f'Window: {_span(run, decision)}', text, [table],
                   [decision_picture(decision, run.unit)])


def _by_loss(decision: Decision) -> bool:
    """Return whether a (registered) criterion measured on the network."""
    name = decision.criterion['type']
    # A registry would take a dot for a scope, and refuses an empty name.
    function = (None if '.' in name or not name else FUNCTIONS.get(name))
    return function is not None and asks_network(function)


def _numbers(layer: LayerDecision) -> tuple:
    return (layer.kl, layer.kl_std, layer.excess, layer.conditional,
            layer.mapped)


def _fate(layer: LayerDecision, decision: Decision) -> str:
    why = decision.why_unmapped(layer)
    return layer.outcome.value + (f' ({why})' if why else '')


def timeline_picture(run: Run) -> Picture:
    """Draw active layers, step time and metric over the training.

    Args:
        run (Run): Run, from :func:`ela_mm.analysis.history.read_run`.

    Returns:
        Picture: The picture, named ``timeline``; panels without data are left
        out.
    """
    end = max([x for x, _ in run.step_times + run.metrics] +
              [x for x, _ in run.active] + [1])
    panels = [('active layers', run.active)]
    if run.step_times:
        panels.append(('step, s', run.step_times))
    if run.metrics:
        panels.append((run.metric.split('/')[-1], run.metrics))
    with style():
        figure = new_figure(WIDTH, 1.3 * len(panels) + .8)
        axes = np.ravel(figure.subplots(len(panels), 1, sharex=True))
        for ax, (label, points) in zip(axes, panels):
            x, y = zip(*points)
            if label == 'active layers':
                ax.step(x + (end, ), y + (y[-1], ), where='post', color=KEPT)
                ax.set_ylim(0, 1.1 * max(y))
            else:
                ax.plot(x, y, color=KEPT, marker='.')
                if label == 'step, s':
                    highest = [third for *_, third in run.step_quartiles]
                    if highest:
                        ax.fill_between(*zip(*run.step_quartiles), color=KEPT,
                                        alpha=.2, linewidth=0)
                    ax.set_ylim(0, 1.15 * max([*y, *highest]))
            ax.set_title(printable(label))
            for decision in run.decisions:
                if decision.skipped:
                    ax.axvline(decision.window[1], color=SKIPPED,
                               linestyle='--', linewidth=1)
        for decision in run.decisions:
            if decision.skipped:
                axes[0].annotate(
                    f'−{len(decision.skipped)}',
                    (decision.window[1], decision.active),
                    xytext=(4, 2), textcoords='offset points', fontsize=8,
                    color=SKIPPED)
        axes[-1].set_xlabel(f'{run.unit} (dashed: a pruning)')
    return Picture('timeline', figure, _timeline_alt(run))


def _timeline_alt(run: Run) -> str:
    said = ['Active attention layers: ' + ', '.join(
        f'{count} from {run.unit} {x:g}' for x, count in run.active)]
    for label, points in (('step time in seconds', run.step_times),
                          (run.metric, run.metrics)):
        if points:
            (x, first), (last_x, last) = points[0], points[-1]
            said.append(f'{label}: {first:.3g} in {run.unit} {x:g}, '
                        f'{last:.3g} in {run.unit} {last_x:g}')
    return '. '.join(said) + '.'
