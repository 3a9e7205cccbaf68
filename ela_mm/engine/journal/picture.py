"""Draws the redundancy of a window and its decision."""
from typing import Any, Dict, List, Optional

import numpy as np
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from scipy.stats import beta as beta_distribution

from ...plotting import KEPT, MARKERS, OUT, SKIPPED, WIDTH, Picture, new_figure, style
from ...pruning.decision import Decision, LayerDecision, Measured, Outcome
from ...pruning.kl import MEASURES
from ...pruning.windows import window_name

# Smaller KL divergences are drawn at this value, as the axis is logarithmic.
SMALLEST = 1e-4


def decision_picture(decision: Decision, unit: str = 'epoch') -> Picture:
    """Draw one decision: the KL divergence of every layer, and its outcome.

    The upper panel shows the KL divergence of each layer, or the measure that
    ranks them instead, with the standard deviation between iterations. The
    lower panel shows the scores and the threshold of the criterion; for EBQM
    the curve of the Beta distribution and mu.

    Args:
        decision (Decision): Decision just taken, or read from a record.
        unit (str): What windows count, ``'epoch'`` or ``'iteration'``.
            Defaults to ``'epoch'``.

    Returns:
        Picture: The picture, named ``window_<first>_<last>``.
    """
    layers = decision.layers
    measured = {
        layer.name: layer.measured(decision.redundancy) for layer in layers
    }
    ranked = [x for x in layers if measured[x.name].mean is not None]
    mapped = [layer for layer in ranked if layer.mapped is not None]
    draws_map = bool(mapped) and _number(decision.criterion, 'mu') is not None
    heights = [.19 * len(layers) + .9, 3.] if draws_map else [
        .19 * len(layers) + .9]
    with style():
        figure = new_figure(WIDTH, sum(heights) + .5)
        axes = np.ravel(
            figure.subplots(
                len(heights), 1, gridspec_kw=dict(height_ratios=heights)))
        _kl_panel(axes[0], decision, measured)
        if draws_map:
            _map_panel(axes[1], ranked, measured, decision.criterion)
        first, last = decision.window
        span = window_name(decision.window, unit)
        figure.suptitle(
            f'{span.capitalize()}: {len(decision.skipped)} of '
            f'{decision.active + len(decision.skipped)} active layers '
            'skipped',
            fontsize=10)
    return Picture(f'window_{first}_{last}', figure, _alt(decision, span))


def _is_skipped(layer: LayerDecision) -> bool:
    return layer.outcome is Outcome.SKIPPED


def _kl_panel(axes, decision: Decision,
              measured: Dict[str, Measured]) -> None:
    layers = decision.layers
    values = [x.mean for x in measured.values() if x.mean is not None]
    # An excess may be negative, so it has no logarithm.
    logarithmic = decision.redundancy != 'excess'
    floor = SMALLEST if logarithmic else -np.inf
    for y, layer in enumerate(layers):
        mean, std, _ = measured[layer.name]
        if mean is None:
            axes.text(
                .01, y, layer.outcome.value, va='center', fontsize=7, color=OUT,
                transform=axes.get_yaxis_transform())
            continue
        skipped = _is_skipped(layer)
        colour = SKIPPED if skipped else KEPT
        x, std = max(mean, floor), max(std or 0., 0.)
        axes.hlines(y, .1 * SMALLEST if logarithmic else 0, x, color=colour,
                    linewidth=1, linestyle=':' if skipped else '-')
        axes.errorbar(
            x, y, xerr=[[min(std, x - floor)], [std]], color=colour,
            capsize=2, linewidth=.8, marker=MARKERS['skipped' if skipped else 'kept'],
            markersize=6)
    for label, colour in (('kept', KEPT), ('skipped', SKIPPED)):
        axes.plot([], [], color=colour, marker=MARKERS[label], linestyle='',
                  label=label)
    if len(values) > 1:
        _thresholds(axes, values, decision.criterion, floor)
    if logarithmic:
        _logarithmic(axes, values)
    else:
        axes.axvline(0, color=OUT, linewidth=.8)
    axes.set_yticks(
        range(len(layers)), [layer.name for layer in layers], fontsize=7)
    axes.set_ylim(len(layers) - .4, -.6)
    axes.set_xlabel(f'{MEASURES[decision.redundancy]}, nats\n'
                    '(bars: standard deviation between iterations)')
    axes.set_title('Redundancy')
    _legend(axes)


def _logarithmic(axes, values: List[float]) -> None:
    """Make the x-axis logarithmic, with readable ticks."""
    values = [max(value, SMALLEST) for value in values] or [1.]
    low, high = .3 * min(values), 2 * max(values)
    axes.set_xscale('log')
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if high < 100 * low else (1, )))
    axes.xaxis.set_major_formatter(FormatStrFormatter('%g'))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _number(criterion: Dict[str, Any], key: str) -> Optional[float]:
    """Return a parameter in [0, 1]; None if a user's criterion lacks such."""
    value = criterion.get(key)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and 0 <= value <= 1 else None


def _thresholds(axes, kl: List[float], criterion: Dict[str, Any],
                floor: float) -> None:
    gamma = _number(criterion, 'gamma')
    if gamma is not None:
        axes.axvline(
            max(float(np.quantile(kl, gamma)), floor), color='black',
            linestyle='--', linewidth=1, label=f'quantile γ = {gamma:g}')
    if criterion['type'] == 'threshold':
        axes.axvline(
            max(criterion['t'], floor), color='black', linewidth=1,
            label=f't = {criterion["t"]:g}')


def _map_panel(axes, ranked: List[LayerDecision],
               measured: Dict[str, Measured],
               criterion: Dict[str, Any]) -> None:
    kl = np.array([measured[layer.name].mean for layer in ranked])
    mapped = np.array([
        np.nan if layer.mapped is None else layer.mapped
        for layer in ranked
    ])
    reached = ~np.isnan(mapped)
    low, high = kl[reached].min(), kl[reached].max()
    name = criterion['type']
    if name == 'EBQM':
        x = np.linspace(0, 1, 200)
        axes.plot(
            low + x * (high - low),
            beta_distribution.cdf(x, criterion['alpha'], criterion['beta']),
            color='black', linewidth=1,
            label=f'Beta({criterion["alpha"]:g}, {criterion["beta"]:g})')
    mu = criterion['mu']
    axes.axhline(mu, color=SKIPPED, linestyle='--', linewidth=1,
                 label=f'μ = {mu:g}')
    axes.axhspan(-.06, mu, facecolor='none', edgecolor='#bbbbbb',
                 hatch='///', linewidth=0)
    for i in np.flatnonzero(reached):
        skipped = _is_skipped(ranked[i])
        axes.plot(
            kl[i], mapped[i], color=SKIPPED if skipped else KEPT,
            marker=MARKERS['skipped' if skipped else 'kept'], markersize=7)
    _name_points(axes, kl[reached], mapped[reached],
                 [ranked[i].short for i in np.flatnonzero(reached)])
    out = [ranked[i].name for i in np.flatnonzero(~reached)]
    axes.set_ylim(-.06, 1.12)
    margin = .06 * (high - low)
    axes.set_xlim(low - margin, high + 3 * margin)
    axes.set_xlabel('the same, up to the quantile')
    axes.set_ylabel(f'{name} maps to')
    axes.set_title('Decision')
    if out:
        axes.text(
            .99, .02, f'out of reach, kept: {len(out)}', ha='right', fontsize=8,
            transform=axes.transAxes, color=OUT,
            bbox=dict(facecolor='white', edgecolor='none', pad=1))
    _legend(axes)


def _name_points(axes, x: np.ndarray, y: np.ndarray,
                 names: List[str]) -> None:
    """Write names above points, higher up where points are crowded."""
    span = np.ptp(x) or 1.
    taken = []
    for i in np.argsort(x, kind='stable'):
        height = 0
        while any(abs(x[i] - at) < .05 * span and height == level
                  for at, level in taken):
            height += 1
        taken.append((x[i], height))
        axes.annotate(
            names[i], (x[i], y[i]),
            xytext=(0, 8 + 9 * height), textcoords='offset points',
            ha='center', fontsize=7,
            bbox=dict(facecolor='white', edgecolor='none', pad=.3))


def _legend(axes) -> None:
    """Place the legend beside the title, where it hides nothing."""
    axes.legend(
        loc='lower right', bbox_to_anchor=(1., 1.), ncol=4, fontsize=8,
        borderaxespad=0.2, handletextpad=.4, columnspacing=1.2)


def _alt(decision: Decision, span: str) -> str:
    means = [(x, x.measured(decision.redundancy).mean) for x in decision.layers]
    values = [f'{layer.name} {mean:.3g} ({layer.outcome.value})'
              for layer, mean in means if mean is not None]
    if not values:
        return f'{span.capitalize()}: no KL divergence was measured.'
    return (f'{MEASURES[decision.redundancy]} in nats of {span}: {", ".join(values)}. '
            f'Skipped: {", ".join(decision.skipped) or "none"}.')


__all__ = ['decision_picture']
