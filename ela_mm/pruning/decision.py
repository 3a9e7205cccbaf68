"""The decision on a window: its types, and the pure function that takes it."""
import enum
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from .by_loss import Network
from .criteria import why_none
from .kl import MEASURES
from .stability import Decider
from .statistics import LayerKL
from .step_times import StepTimes
from .trust import (
    FirstKL,
    Rules,
    in_short,
    is_as_drawn,
    is_by_position,
    is_saturated,
    stability_of,
    step_samples_of,
    why_unstable,
)
from .windows import Window


class Outcome(enum.Enum):
    """What a decision does with a layer; records store the values."""
    FIRST = 'kept (first of its stage)'
    NOT_MEASURED = 'kept (not measured)'
    KEPT = 'kept'
    UNSTABLE = 'kept (unstable)'
    SKIPPED = 'skipped'
    SKIPPED_BEFORE = 'skipped before'

    @property
    def stays(self) -> bool:
        """Whether the layer is active after the decision."""
        return self not in (Outcome.SKIPPED, Outcome.SKIPPED_BEFORE)


@dataclass
class LayerDecision:
    """One layer in a decision. All divergences are in nats.

    Attributes:
        name (str): Name of the layer, ``layer<stage>.<index>``.
        stage (int): Number of its stage, from 1.
        index (int): Index of its block within the stage, from 0.
        outcome (Outcome): What the decision does with it.
        kl (float | None): Mean KL divergence; None if it was not measured or
            is not finite.
        kl_std (float | None): Standard deviation between iterations.
        bad_iterations (int): Number of iterations whose value was not finite.
        kl_iterations (List[float | None]): KL divergence of single steps in
            order, each averaged over the samples of all ranks.
        excess (float | None): ``kl`` minus the KL divergence of uniform
            weights, see :class:`~ela_mm.pruning.kl.Parts`.
        conditional (float | None): Mean of the first part of equation 11, see
            :class:`~ela_mm.pruning.kl.Parts`.
        conditional_std (float | None): Standard deviation between iterations.
        conditional_iterations (List[float | None]): First part of equation 11
            in single steps, as ``kl_iterations``.
        mapped (float | None): Score that the criterion compared with its
            threshold; None if the layer was out of reach.
        stability (float | None): Share of resampled windows that skip the
            layer; None if fewer than two steps were recorded.
    """
    name: str
    stage: int
    index: int
    outcome: Outcome
    kl: Optional[float] = None
    kl_std: Optional[float] = None
    bad_iterations: int = 0
    kl_iterations: List[Optional[float]] = field(default_factory=list)
    excess: Optional[float] = None
    conditional: Optional[float] = None
    conditional_std: Optional[float] = None
    conditional_iterations: List[Optional[float]] = field(
        default_factory=list)
    mapped: Optional[float] = None
    stability: Optional[float] = None

    @property
    def was_active(self) -> bool:
        """Whether the layer was active while the window was measured."""
        return self.outcome is not Outcome.SKIPPED_BEFORE

    @property
    def short(self) -> str:
        """Short name for pictures and tables, ``<stage>.<index>``."""
        return f'{self.stage}.{self.index}'

    def measured(self, redundancy: str) -> 'Measured':
        """Return the values of one measure of redundancy.

        Args:
            redundancy (str): Name of the measure, a key of
                :data:`ela_mm.pruning.kl.REDUNDANCY`.

        Returns:
            Measured: The values; None and empty where they are unknown.
        """
        if redundancy == 'conditional':
            return Measured(self.conditional, self.conditional_std,
                            self.conditional_iterations)
        if redundancy == 'paper':
            return Measured(self.kl, self.kl_std, self.kl_iterations)
        if self.excess is None or self.kl is None:
            return Measured()
        uniform = self.kl - self.excess
        return Measured(self.excess, self.kl_std, [
            None if kl is None else kl - uniform for kl in self.kl_iterations
        ])


class Measured(NamedTuple):
    """One measure of a layer: mean, std and values of single steps, in nats."""
    mean: Optional[float] = None
    std: Optional[float] = None
    iterations: Sequence[Optional[float]] = ()


@dataclass
class Decision:
    """The decision at the end of a window.

    Attributes:
        window (Window): First and last epoch or iteration, inclusive.
        epoch (int): Epoch at whose end it was taken, from 1.
        iter (int): Number of iterations done by then.
        criterion (dict): ``type`` and all parameters of the criterion.
        skip_mode (str): How layers are skipped, ``'layer'`` or
            ``'retrieval'``.
        layers (List[LayerDecision]): All attention layers of the network, in
            order.
        samples (int): Number of samples behind the statistics, on all ranks.
        iterations (int): Number of iterations behind them, summed over ranks:
            with R ranks R times ``steps``.
        steps (int): Number of training steps behind them. Up to 1,000 are
            recorded one by one, then every second, every fourth, and so on.
        step_samples (List[int]): Samples of all ranks in each recorded step;
            empty if they are equal or unknown.
        note (str | None): Reason why nothing is skipped; None otherwise.
        by_position (bool): Whether layers rank by their position, see
            :func:`ela_mm.pruning.trust.is_by_position`.
        saturated (bool): Whether most values are 0 or at their ceiling, see
            :func:`ela_mm.pruning.trust.is_saturated`.
        as_drawn (bool): Whether most values are still those of the first step
            of the run, see :func:`ela_mm.pruning.trust.is_as_drawn`.
        redundancy (str): Measure that the criterion ranked by, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`.
        times (StepTimes): Step times before and after, once they are known.
    """
    window: Window
    epoch: int
    iter: int
    criterion: Dict[str, Any]
    skip_mode: str
    layers: List[LayerDecision]
    samples: Optional[int] = None
    iterations: Optional[int] = None
    steps: Optional[int] = None
    step_samples: List[int] = field(default_factory=list)
    note: Optional[str] = None
    by_position: bool = False
    saturated: bool = False
    as_drawn: bool = False
    redundancy: str = 'paper'
    times: StepTimes = field(default_factory=StepTimes)

    @property
    def skipped(self) -> List[str]:
        """Names of the layers that this decision skips."""
        return [x.name for x in self.layers if x.outcome is Outcome.SKIPPED]

    @property
    def active(self) -> int:
        """Number of layers that stay active."""
        return sum(x.outcome.stays for x in self.layers)

    @property
    def total(self) -> int:
        """Number of attention layers of the network."""
        return len(self.layers)

    def why_unmapped(self, layer: LayerDecision) -> Optional[str]:
        """Say why a measured layer was kept without a mapped value.

        Args:
            layer (LayerDecision): A layer of this decision.

        Returns:
            str | None: ``'out of reach'``; ``'not ranked'`` if no layer has a
            mapped value, for instance because only one is in reach; None for
            layers of another outcome or with a mapped value.
        """
        if layer.outcome is not Outcome.KEPT or layer.mapped is not None:
            return None
        return ('not ranked' if all(x.mapped is None for x in self.layers) else
                'out of reach')


class Moment(NamedTuple):
    """When a decision is taken, and on which window.

    Attributes:
        window (Window): The window that has ended.
        epoch (int): Current epoch, from 1.
        iter (int): Number of iterations done.
    """
    window: Window
    epoch: int
    iter: int


def decide(layers: Sequence,
           measured: Dict[str, LayerKL],
           criterion: Decider,
           config: Dict[str, Any],
           moment: Moment,
           skip_mode: str = 'layer',
           diverged: Optional[str] = None,
           rules: Optional[Rules] = None,
           redundancy: str = 'paper',
           network: Optional[Network] = None,
           first: Optional[FirstKL] = None) -> Decision:
    """Decide which layers to skip at the end of a window.

    Args:
        layers (Sequence[AttentionLayerInfo]): All attention layers of the
            network, in order.
        measured (Dict[str, LayerKL]): Measurements of the candidates, by name.
        criterion (Callable): Maps (L, ) values of ``redundancy`` to a pair:
            (L, ) bool, True = skip, and (L, ) scores.
        config (Dict[str, Any]): Config of the criterion, for the record.
        moment (Moment): When the decision is taken, and on which window.
        skip_mode (str): How layers are skipped. Defaults to ``'layer'``.
        diverged (str, optional): Name of a parameter of the network that is
            not finite. Defaults to None: there is none.
        rules (Rules, optional): When not to trust the criterion. Defaults to
            None: ``Rules()``, which always follows it and warns.
        redundancy (str): Measure that the criterion ranks by, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`. Defaults to ``'paper'``.
        network (Network, optional): Network for a criterion that measures on
            it. Defaults to None.
        first (FirstKL, optional): KL divergences of the first step of the run,
            if attention was fresh then. Defaults to None: unknown.

    Returns:
        Decision: The decision. It skips nothing, and its note says why, if the
        measurements cannot be trusted or the criterion cannot rank them.
    """
    rules = rules or Rules()
    asks = getattr(criterion, 'asks_network', False)
    # Doubts and stability concern KL divergences. A criterion that measures on
    # the network does not use them.
    doubts = {} if asks else dict(
        by_position=is_by_position(measured, redundancy),
        saturated=is_saturated(measured),
        as_drawn=is_as_drawn(measured, first or {}))
    decider = partial(criterion, network=network) if asks else criterion
    ranked = measured if asks else {
        name: kl.by(redundancy) for name, kl in measured.items()
    }
    note = (_why_not(layers, measured, diverged, 1 if asks else 2)
            or _why_unknown(ranked, redundancy))
    skipped, scores, stability, unstable = [], {}, {}, []
    if note is None:
        skipped, scores, note = _apply(decider, ranked, config)
        stability = {} if asks else stability_of(criterion, ranked)
    if skipped and rules.uninformative == 'wait' and any(doubts.values()):
        skipped, note = [], f"{in_short(**doubts)} (uninformative='wait')"
    if skipped and rules.min_stability:
        unstable = [name for name in skipped
                    if stability.get(name, 0.) < rules.min_stability]
        skipped = [name for name in skipped if name not in unstable]
        if not skipped:
            note = why_unstable(unstable, stability, rules)
    firsts = _firsts(layers)
    return Decision(
        *moment,
        criterion=config,
        skip_mode=skip_mode,
        layers=[
            LayerDecision(
                layer.name,
                layer.stage,
                layer.index,
                Outcome.UNSTABLE if layer.name in unstable else _outcome(
                    layer, firsts, measured, skipped),
                stability=stability.get(layer.name),
                mapped=scores.get(layer.name),
                **_numbers(measured.get(layer.name))) for layer in layers
        ],
        samples=max((kl.samples for kl in measured.values()), default=0),
        iterations=max((kl.iterations for kl in measured.values()), default=0),
        steps=max((kl.steps or kl.iterations for kl in measured.values()),
                  default=0),
        step_samples=step_samples_of(measured),
        note=note,
        redundancy=redundancy,
        **doubts)


def _why_not(layers: Sequence, measured: Dict[str, LayerKL],
             diverged: Optional[str], least: int) -> Optional[str]:
    """Say why the measurements allow no decision; None if they do."""
    stages = [layer.stage for layer in layers if layer.active]
    if not measured and len(set(stages)) < len(stages):
        return ('no iteration was measured in this window: it had none, or '
                'the backbone was in evaluation mode in all of them')
    bad = [(name, kl) for name, kl in measured.items() if kl.bad_iterations]
    if bad:
        return 'KL divergences are not finite: ' + ', '.join(
            f'{name} in {kl.bad_iterations} of {kl.iterations} iterations'
            for name, kl in bad)
    if diverged is not None:
        return f'the training has diverged: {diverged} is not finite'
    if len(measured) < least:
        return (f'{len(measured)} layers were measured; ranking needs at '
                f'least {least}')
    return None


def _why_unknown(ranked: Dict[str, LayerKL],
                 redundancy: str) -> Optional[str]:
    means = [kl.mean for kl in ranked.values()]
    if redundancy == 'conditional' and means and not any(means):
        return ('no stage has a third layer, and the conditional part of a '
                "second one is 0: nothing to rank (redundancy='conditional')")
    if all(map(math.isfinite, means)):
        return None
    return (f'the {MEASURES[redundancy]} was not recorded from the start of '
            'this window, which an earlier version of this package began '
            f'(redundancy={redundancy!r})')


def _apply(
    criterion: Decider, measured: Dict[str, LayerKL], config: Dict[str, Any]
) -> Tuple[List[str], Dict[str, Optional[float]], Optional[str]]:
    """Return names to skip, scores by name, and why nothing is skipped."""
    means = [kl.mean for kl in measured.values()]
    try:
        skip, scores = criterion(means)
    except ValueError as error:
        return [], {}, str(error)
    except Exception as error:  # a failed fit must not end a training
        return [], {}, f'{type(error).__name__}: {error}'
    skipped = [name for name, gone in zip(measured, skip) if gone]
    note = None if skipped else why_none(config, means, scores)
    return skipped, dict(zip(measured, map(_finite, scores))), note


def _firsts(layers: Sequence) -> Dict[int, str]:
    """Find each stage's first active layer, which has no predecessor."""
    firsts: Dict[int, str] = {}
    for layer in layers:
        if layer.active:
            firsts.setdefault(layer.stage, layer.name)
    return firsts


def _outcome(layer, firsts: Dict[int, str], measured: Dict[str, LayerKL],
             skipped: List[str]) -> Outcome:
    if not layer.active:
        return Outcome.SKIPPED_BEFORE
    if layer.name in skipped:
        return Outcome.SKIPPED
    if layer.name in measured:
        return Outcome.KEPT
    return (Outcome.FIRST if firsts[layer.stage] == layer.name else
            Outcome.NOT_MEASURED)


def _numbers(kl: Optional[LayerKL]) -> Dict[str, Any]:
    if kl is None:
        return {}
    return dict(
        kl=_finite(kl.mean),
        kl_std=_finite(kl.std),
        bad_iterations=kl.bad_iterations,
        kl_iterations=_rounded(kl.series),
        excess=_finite(kl.excess),
        conditional=_finite(kl.conditional),
        conditional_std=_finite(kl.conditional_std),
        conditional_iterations=_rounded(kl.conditional_series))


def _rounded(series: Sequence[float]) -> List[Optional[float]]:
    return [_finite(float(f'{value:.6g}')) for value in series]


def _finite(value: float) -> Optional[float]:
    return float(value) if math.isfinite(value) else None
