"""What a window's measurements decide: a type, and a pure function."""
import enum
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from .by_loss import Network
from .criteria import why_none
from .kl import REDUNDANCY
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
    """What becomes of a layer; the values are what the record says."""
    FIRST = 'kept (first of its stage)'
    NOT_MEASURED = 'kept (not measured)'
    KEPT = 'kept'
    UNSTABLE = 'kept (unstable)'
    SKIPPED = 'skipped'
    SKIPPED_BEFORE = 'skipped before'

    @property
    def stays(self) -> bool:
        """Whether the layer is active afterwards."""
        return self not in (Outcome.SKIPPED, Outcome.SKIPPED_BEFORE)


@dataclass
class LayerDecision:
    """One layer in a decision.

    Attributes:
        name (str): ``layer<stage>.<index>``.
        stage (int): From 1.
        index (int): Of its block within the stage, from 0.
        outcome (Outcome): What becomes of it.
        kl (float | None): Mean KL divergence in nats; None where it was not
            measured or not finite.
        kl_std (float | None): Standard deviation between iterations.
        bad_iterations (int): Those whose value was not finite.
        kl_iterations (List[float | None]): Of single steps, in order, the
            mean over the samples of all ranks.
        excess (float | None): ``kl`` less what uniform weights would have.
        conditional (float | None): Mean of the first part of equation 11;
            this and ``excess`` as in :class:`~ela_mm.pruning.kl.Parts`.
        conditional_std (float | None): Standard deviation between iterations.
        conditional_iterations (List[float | None]): As ``kl_iterations``.
        mapped (float | None): What the criterion compared with its threshold;
            None where the layer was out of reach.
        stability (float | None): Share of resampled windows that skip the
            layer; None without two steps that were recorded.
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
        """Whether the layer attended while the window was measured."""
        return self.outcome is not Outcome.SKIPPED_BEFORE

    @property
    def short(self) -> str:
        """``<stage>.<index>``, for pictures and tables."""
        return f'{self.stage}.{self.index}'

    def measured(self, redundancy: str) -> 'Measured':
        """What a measure says of the layer.

        Args:
            redundancy (str): A key of :data:`ela_mm.pruning.kl.REDUNDANCY`.

        Returns:
            Measured: Of None where it is not known.
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
    """A measure of a layer: mean, std, and of single steps; nats."""
    mean: Optional[float] = None
    std: Optional[float] = None
    iterations: Sequence[Optional[float]] = ()


@dataclass
class Decision:
    """The decision at the end of a window.

    Attributes:
        window (Window): First and last epoch or iteration, inclusive.
        epoch (int): When it was taken, from 1.
        iter (int): Iterations done by then.
        criterion (dict): ``type`` and every parameter of what decided.
        skip_mode (str): ``'layer'`` or ``'retrieval'``.
        layers (List[LayerDecision]): All of the network, in order.
        samples (int): That the statistics rest on, of all ranks.
        iterations (int): That they rest on, every rank's counted: on R ranks
            R times the steps.
        steps (int): Training steps that they rest on, each of all ranks;
            recorded one by one, or from 1,000 on every second, fourth, ...
        step_samples (List[int]): Samples of all ranks in the steps that are
            recorded one by one; empty where they are equal or unknown.
        note (str | None): Why nothing is skipped.
        by_position (bool): Whether the layers rank by their position, see
            :func:`ela_mm.pruning.trust.is_by_position`.
        saturated (bool): Whether most measured values are 0 or at their
            ceiling.
        as_drawn (bool): Whether most measured values are still those of the
            run's first step.
        redundancy (str): What the criterion has ranked by, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`.
        times (StepTimes): What the pruning gained, once it is timed.
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
        """Number of layers that remain."""
        return sum(x.outcome.stays for x in self.layers)

    @property
    def total(self) -> int:
        """Number of layers of the network."""
        return len(self.layers)

    def why_unmapped(self, layer: LayerDecision) -> Optional[str]:
        """Say why a measured layer was kept without a mapped value.

        Args:
            layer (LayerDecision): Of this decision.

        Returns:
            str | None: ``'out of reach'``; ``'not ranked'`` where no layer has
            a mapped value, such as a single one in reach, with nothing to rank
            it with; None of all other layers.
        """
        if layer.outcome is not Outcome.KEPT or layer.mapped is not None:
            return None
        return ('not ranked' if all(x.mapped is None for x in self.layers) else
                'out of reach')


class Moment(NamedTuple):
    """When a decision is taken, and on which window.

    Attributes:
        window (Window): That has ended.
        epoch (int): From 1.
        iter (int): Iterations done.
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
    """Decide which layers to skip.

    Args:
        layers (Sequence[AttentionLayerInfo]): All of the network, in order.
        measured (Dict[str, LayerKL]): Of the candidates, by name.
        criterion (Callable): From values of ``redundancy`` to a verdict and
            scores.
        config (Dict[str, Any]): The criterion's, for the record.
        moment (Moment): Of the decision.
        skip_mode (str): How layers are skipped. Defaults to ``'layer'``.
        diverged (str, optional): Name of a parameter of the network that is
            not finite.
        rules (Rules, optional): When not to trust the criterion. Defaults to
            the paper's: always trust it.
        redundancy (str): What the criterion ranks by, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`. Defaults to ``'paper'``.
        network (Network, optional): For a criterion that asks it.
        first (FirstKL, optional): Of the run's first step, if its attention
            was fresh then. Defaults to None: not known.

    Returns:
        Decision: It skips nothing, and says why, where the measurements
        cannot be trusted or the criterion cannot rank them.
    """
    rules = rules or Rules()
    asks = getattr(criterion, 'asks_network', False)
    # A verdict on the network does not rest on weights, nor on single steps.
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
    """Why nothing may be decided on what was measured, else None."""
    stages = [layer.stage for layer in layers if layer.active]
    if not measured and len(set(stages)) < len(stages):
        return 'no iteration was measured in this window'
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
    return (f'the {REDUNDANCY[redundancy]} is not known of this whole window, '
            'which began in an earlier version (redundancy='
            f'{redundancy!r})')


def _apply(
    criterion: Decider, measured: Dict[str, LayerKL], config: Dict[str, Any]
) -> Tuple[List[str], Dict[str, Optional[float]], Optional[str]]:
    """Names to skip, scores by name, and why nothing is skipped."""
    means = [kl.mean for kl in measured.values()]
    try:
        skip, scores = criterion(means)
    except ValueError as error:
        return [], {}, str(error)
    except Exception as error:  # a failing fit must not end a training
        return [], {}, f'{type(error).__name__}: {error}'
    skipped = [name for name, gone in zip(measured, skip) if gone]
    note = None if skipped else why_none(config, means, scores)
    return skipped, dict(zip(measured, map(_finite, scores))), note


def _firsts(layers: Sequence) -> Dict[int, str]:
    """The first active layer of every stage, which has no predecessor."""
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
