"""What each analysis says: text, tables and pictures, for screen and page."""
import json
import math
from typing import Any, Dict, List, Optional, Sequence

from ..analysis.attention import Measured
from ..analysis.cost import Cost, LayerCost, StageCost
from ..analysis.features import Features
from ..analysis.history import Run
from ..analysis.whatif import Outcome, Window
from ..pruning.windows import window_name
from .attention import attention_pictures
from .cost import cost_picture
from .decisions import decision_picture, timeline_picture
from .features import features_picture
from .page import Section, Table
from .whatif import counts_picture, stability_picture


def summarize(run: Run, cost: Optional[Cost] = None) -> List[str]:
    """Which layers went, why, and what it cost or gained, in sentences.

    Args:
        run (Run): From :func:`ela_mm.analysis.history.read_run`.
        cost (Cost, optional): Of its network.

    Returns:
        List[str]: One sentence or two each.
    """
    skipped = [name for d in run.decisions for name in d['skipped']]
    total = len(run.record['layers'])
    if skipped:
        lines = [
            f'{len(skipped)} of {total} attention layers were pruned while '
            f'training ({", ".join(skipped)}); {len(run.record["active"])} are '
            'active.',
            'They went because their attention weights repeat those of the '
            'layer before more than other layers\' do: the criterion '
            f'({run.record["criterion"]["type"]}) found the KL divergence '
            'between the two small beside the others\'.'
        ]
        if len(run.record['active']) + len(skipped) < total:
            lines[0] += (' The others were skipped before, since they could '
                         'not learn or the training started without them.')
    elif run.decisions:
        lines = [
            'Nothing was pruned: ' + '; '.join(
                f'{_span(run, d)}: {d["note"]}' for d in run.decisions) + '.'
        ]
    else:
        lines = ['No window has ended yet: nothing has been decided.']
    lines += _gain(run)
    if cost is not None:
        blocks = sum(stage.seconds for stage in cost.stages)
        lines.append(
            'Measured side by side, the backbone\'s step takes '
            f'{cost.seconds_before / blocks:.2f} times that of the same '
            'network without attention with all layers, and '
            f'{cost.seconds_after / blocks:.2f} times as pruned.')
    if run.metrics:
        at, value = run.metrics[-1]
        best_at, best = max(run.metrics, key=lambda point: point[1])
        lines.append(f'{run.metric} is {value:.4g} in {run.unit} {at:g}' + (
            f' (highest: {best:.4g} in {run.unit} {best_at:g}).'
            if best_at != at else '.'))
    return lines


def _gain(run: Run) -> List[str]:
    timed = [
        d for d in run.decisions
        if d['skipped'] and d['step_time_before'] and d['step_time_after']
    ]
    said = [
        f'{d["step_time_before"]:.3g} s to {d["step_time_after"]:.3g} s after '
        f'{_span(run, d)}' for d in timed
    ]
    if not said:
        return []
    return [
        'The median training step went from ' + ', from '.join(said) +
        ' (timed during the training, on a machine that may have had other '
        'work; the first of each pair includes measuring).'
    ]


def _span(run: Run, decision: Dict[str, Any]) -> str:
    return window_name(decision['window'], run.unit)


def timeline_section(run: Run) -> Section:
    """Price and gain over the training."""
    text = ['Above, how many attention layers were active; then, as far as the '
            "training's log has them, the median step of each epoch and the "
            'metric. Step times include whatever else the machine was doing.']
    if not run.step_times:
        text.append('The work dir has no scalars.json (LocalVisBackend writes '
                    'it): step times and metrics are not known.')
    return Section('Over the training', text, pictures=[timeline_picture(run)])


def window_section(run: Run, decision: Dict[str, Any]) -> Section:
    """One window: what was measured, and what was decided on it."""
    criterion = dict(decision['criterion'])
    name = criterion.pop('type')
    parameters = ', '.join(f'{k} = {v}' for k, v in criterion.items())
    text = [
        f'{decision["samples"]} samples were measured in {_span(run, decision)}. '
        f'A small KL divergence (in nats) says that a layer\'s attention '
        'weights repeat those of the active layer before. '
        f'The criterion {name} ({parameters}) ' +
        (f'skipped {", ".join(decision["skipped"])}; {decision["active"]} of '
         f'{decision["total"]} layers remain.' if decision['skipped'] else
         f'skipped nothing: {decision["note"]}.')
    ]
    if name == 'EBQM':
        text.append(
            'Layers whose KL divergence lies above the quantile gamma are out '
            'of reach. The others are stretched to 0 to 1, mapped by the '
            'distribution function of Beta(alpha, beta), and skipped where '
            'the result is below mu.')
    number = '{:.4g}'.format
    rows = [[
        layer['name'],
        *('-' if layer[key] is None else number(layer[key])
          for key in ('kl', 'kl_std', 'mapped')), _fate(layer, criterion)
    ] for layer in decision['layers']]
    table = Table(
        'Layers; std is between iterations',
        ['layer', 'KL', 'std', 'mapped', 'decision'], rows,
        [['layer', 'kl', 'kl_std', 'mapped', 'decision']] + [[
            layer['name'], layer['kl'], layer['kl_std'], layer['mapped'],
            layer['status']
        ] for layer in decision['layers']])
    return Section(f'Window: {_span(run, decision)}', text, [table],
                   [decision_picture(decision, run.unit)])


def _fate(layer: Dict[str, Any], criterion: Dict[str, Any]) -> str:
    out = (
        layer['status'] == 'kept' and layer['mapped'] is None
        and 'gamma' in criterion)
    return 'kept (out of reach)' if out else layer['status']


def whatif_section(window: Window, outcomes: Sequence[Outcome],
                   conditions: Optional[str] = None) -> Section:
    """What other criteria would have done with the same measurements.

    Args:
        window (Window): Measured.
        outcomes (Sequence[Outcome]): From
            :func:`ela_mm.analysis.whatif.compare`.
        conditions (str, optional): Of the layers' costs.

    Returns:
        Section: A table, the map of counts, and the stability.
    """
    text = [
        f'From the KL divergences of {len(window.names)} candidates measured '
        f'in {window.label}; nothing was trained again. Where layers had been '
        'skipped before, other criteria would have met other candidates.'
    ]
    own = outcomes[0]
    certain = own.stability
    if certain is not None:
        text.append(
            'How sure is that? Blocks of the recorded iterations were drawn '
            'at random to make up windows that might as well have been '
            f'measured: {certain.same:.0%} of them skip exactly what '
            f'"{own.label}" skips. ' +
            (f'Only {len(window.series)} of {window.iterations} iterations '
             'are recorded one by one, so the decision is steadier than that.'
             if len(window.series) < (window.iterations or 0) else ''))
    elif window.series is None:
        text.append('Single iterations were not recorded (by an earlier '
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
             'were timed afterwards.' if window.step_time_after else ''))
    rows = [[
        o.label, '-' if o.note else str(len(o.skipped)), o.note or ', '.join(
            name.replace('layer', '') for name in o.skipped),
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


def attention_section(measured: Measured, source: str) -> Section:
    """Whom every layer attends to.

    Args:
        measured (Measured): From :func:`ela_mm.analysis.attention.measure`.
        source (str): What the pictures are, in words.

    Returns:
        Section: A heat map per stage.
    """
    rows = [[
        row.name,
        ', '.join(f'{s.split(".")[1]}: {m:.2f} ± {d:.2f}'
                  for s, m, d in zip(row.sources, row.mean, row.spread)),
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
                      row.sources, row.mean, row.spread)])
        ],
        attention_pictures(measured))


def cost_section(cost: Cost) -> Section:
    """Parameters, multiply-accumulates and time."""
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


def features_section(features: Features, image: str) -> Section:
    """Where consecutive layers look.

    Args:
        features (Features): From :func:`ela_mm.analysis.features.look`.
        image (str): Name of the picture.

    Returns:
        Section: One picture.
    """
    text = [
        f'Score-CAM of {features.target} in {image}: what raises that score '
        'in the features that leave each layer. Where a layer is skipped, '
        'these are its block\'s own. A KL divergence near 0 says that a layer '
        f'retrieves what the one before did; {-math.log(1e-8):.1f} is the '
        'highest that is measured.'
    ]
    if features.whole:
        text.append(
            'Below, the same network with every skipped layer put back, as it '
            'was when it was skipped; the rest has learnt without it since.')
    return Section('Features', text, pictures=[features_picture(features)])
