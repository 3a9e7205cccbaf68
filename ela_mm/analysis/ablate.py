"""Measures the loss that skipping a layer adds, next to its redundancy."""
from copy import deepcopy
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from scipy.stats import spearmanr
from scipy.stats import t as student
from torch import Tensor, nn

from ..engine.sanity import check_finite
from ..engine.trial import Trial, loss_of, without
from ..errors import UsageError
from ..hosts.registration import host_of_model
from ..models.backbones.layer_attention_mixin import find_backbone
from ..pruning.criteria import Criterion
from ..pruning.kl import REDUNDANCY, check_redundancy, redundancy_parts
from ..pruning.stability import shares

MEASURES = ('kl', 'excess', 'conditional', 'own_share', 'position')
# Fewer layers may well be in perfect order by chance.
MIN_LAYERS = 5


class Redundancy(NamedTuple):
    """How redundant a layer looks by each measure, averaged over images.

    See :class:`~ela_mm.pruning.kl.Parts` for the first four.

    Attributes:
        kl (float): KL divergence of equation 11, nats.
        excess (float): KL divergence minus that of uniform weights, nats.
        conditional (float): First part of equation 11 alone, nats.
        own_share (float): Share of the weights on what is new.
        position (int): Position among the active layers of its stage, from 1;
            if attention is uniform, late layers look redundant.
        stability (float | None): Share of resampled sets of batches on which
            the criterion would skip the layer; None with fewer than 2 batches,
            or if the criterion measures on the network.
    """
    kl: float
    excess: float
    conditional: float
    own_share: float
    position: int
    stability: Optional[float] = None


class Cost(NamedTuple):
    """What a network loses without some layers, on the same batches.

    Attributes:
        skipped (Tuple[str, ...]): Names of the layers.
        added (np.ndarray): (batches, ), loss without the layers minus loss
            with them.
        loss (float): Mean of ``added``, weighted by the batches' images.
        margin (float | None): Half width of its 95% confidence interval
            (Student's t, paired over batches); None with a single batch.
        top1 (float | None): Accuracy without the layers minus accuracy with
            them, %; None if images do not have exactly one label.
    """
    skipped: Tuple[str, ...]
    added: np.ndarray
    loss: float
    margin: Optional[float]
    top1: Optional[float]


class Ablated(NamedTuple):
    """The ablation of a network.

    Attributes:
        images (int): Number of images.
        batches (int): Number of batches.
        loss (float): Loss with all active layers.
        top1 (float | None): Accuracy with all active layers, %.
        layers (Dict[str, Cost]): Costs of skipping each active layer, by name.
        decision (Cost | None): Cost of skipping together all layers that the
            criterion would skip; None if it skips none.
        criterion (dict): ``type`` and all parameters of the criterion.
        redundancy (Dict[str, Redundancy]): Redundancy of the layers with a
            predecessor, by name.
        ranked_by (str): Measure that the criterion ranked by, one of
            ``MEASURES``.
        skip (str): How layers were skipped, ``'layer'`` or ``'retrieval'``.
    """
    images: int
    batches: int
    loss: float
    top1: Optional[float]
    layers: Dict[str, Cost]
    decision: Optional[Cost]
    criterion: dict
    redundancy: Dict[str, Redundancy]
    ranked_by: str = 'kl'
    skip: str = 'layer'

    def rank_correlation(self, measure: str) -> Optional[float]:
        """Compute Spearman's correlation of a measure with the loss added.

        Args:
            measure (str): Name of the measure, one of ``MEASURES``.

        Returns:
            float | None: 1 if layers cost the less, the more redundant they
            look (the smaller their value); None with fewer than 5 layers, if
            all values are equal, or if skipping a layer gives no finite loss.
        """
        values = [getattr(x, measure) for x in self.redundancy.values()]
        costs = [self.layers[name].loss for name in self.redundancy]
        if len(values) < MIN_LAYERS or min(len(set(values)),
                                           len(set(costs))) < 2 or not (
                                               np.isfinite(costs).all()):
            return None
        return float(spearmanr(values, costs)[0])


class _Tally:
    """Losses and hits of one network, batch by batch."""

    def __init__(self, accuracy: bool) -> None:
        self.accuracy = accuracy
        self.losses: List[float] = []
        self.hits: List[Optional[int]] = []

    def add(self, model: nn.Module, batch: dict) -> None:
        self.losses.append(loss_of(model, batch))
        self.hits.append(_hits(model, batch) if self.accuracy else None)


def _hits(model: nn.Module, batch: dict) -> Optional[int]:
    """Count the images classified correctly; None if they have no label."""
    data = host_of_model(model).preprocess(model, deepcopy(batch))
    labels = [getattr(sample, 'gt_label', None)
              for sample in data.get('data_samples') or [None]]
    if any(label is None or label.numel() != 1 for label in labels):
        return None
    samples = model._run_forward(data, mode='predict')
    return sum(int(sample.pred_label.item() == label.item())
               for sample, label in zip(samples, labels))


class _Weights:
    """Measures of neighbours' attention weights, batch by batch."""

    def __init__(self) -> None:
        self.rows: Dict[str, List[List[float]]] = {}  # as in Parts

    def see(self, name: str, prev: Tensor, curr: Tensor) -> None:
        self.rows.setdefault(name, []).append(
            torch.stack(redundancy_parts(prev, curr)).tolist())


@torch.no_grad()
def ablate(model: nn.Module, batches: Iterable[dict], criterion: Criterion,
           accuracy: bool = True, redundancy: str = 'paper',
           skip: str = 'layer') -> Ablated:
    """Skip each active layer in turn, and measure the loss.

    Args:
        model (nn.Module): Model of any host with one ELA backbone; it is set
            to eval mode, and its mask is restored.
        batches (Iterable[dict]): Batches with annotations, see
            :func:`ela_mm.apis.data.annotated_batches`.
        criterion (Criterion): Criterion whose decision is tried as a whole.
        accuracy (bool): Whether to measure accuracy as well, in a second pass
            over each batch. Defaults to True.
        redundancy (str): Measure that the criterion ranks by, a key of
            :data:`ela_mm.pruning.kl.REDUNDANCY`. Defaults to ``'paper'``.
        skip (str): How layers are skipped, see ``skip_layers`` of the
            backbone. Defaults to ``'layer'``.

    Returns:
        Ablated: The ablation, on the same batches for every layer.

    Raises:
        UsageError: If there are no images, no active layers, or no loss, or if
            weights or the loss with all active layers are not finite.
    """
    ranked_by = REDUNDANCY[check_redundancy(redundancy)]
    check_finite(model)
    backbone = find_backbone(model)
    model.eval()
    active = [x for x in backbone.attention_layers if x.active]
    if not active:
        raise UsageError(
            f'all {len(backbone.attention_layers)} attention layers are '
            'skipped already: there is none to leave out; take a checkpoint '
            'of before the last pruning')
    whole, weights = _Tally(accuracy), _Weights()
    single = {layer.name: _Tally(accuracy) for layer in active}
    kept: List[dict] = []
    counts: List[int] = []
    for batch in batches:
        backbone.observe(weights.see)
        try:
            _observed(weights, whole, model, batch)
        finally:
            backbone.observe(None)
        for name, tally in single.items():
            with without(model, [name], skip):
                tally.add(model, batch)
        kept.append(batch)
        counts.append(len(batch['inputs']))
    if not kept:
        raise UsageError('no picture to look at: the dataset is empty, or its '
                         'batch_sampler drops a batch that is not full')
    loss = _mean(whole.losses, counts)
    if not np.isfinite(loss):
        raise UsageError(f'the loss with all active layers is {loss}: expected '
                         'a finite one, to see what skipping adds to it')
    looks = _redundancy(active, weights, np.array(counts), criterion, ranked_by)
    skipped = _decision(looks, criterion, ranked_by,
                        Trial(model, kept, counts, list(looks), skip))
    together = _Tally(accuracy)
    if skipped:
        with without(model, skipped, skip):
            for batch in kept:
                together.add(model, batch)
    return Ablated(
        sum(counts), len(counts), loss,
        _percent(whole, counts),
        {name: _cost([name], tally, whole, counts)
         for name, tally in single.items()},
        _cost(skipped, together, whole, counts) if skipped else None,
        criterion.config, looks, ranked_by, skip)


def _observed(weights: _Weights, whole: _Tally, model: nn.Module,
              batch: dict) -> None:
    before = {name: len(rows) for name, rows in weights.rows.items()}
    whole.add(model, batch)
    for name, rows in weights.rows.items():
        # The second pass over the batch, for accuracy, shows the same again.
        del rows[before.get(name, 0) + 1:]


def _redundancy(active: list, weights: _Weights, counts: np.ndarray,
                criterion: Criterion,
                ranked_by: str) -> Dict[str, Redundancy]:
    found: Dict[str, Redundancy] = {}
    positions: Dict[int, int] = {}
    for layer in active:
        positions[layer.stage] = positions.get(layer.stage, 0) + 1
        if layer.name not in weights.rows:
            continue
        found[layer.name] = Redundancy(
            *np.average(weights.rows[layer.name], 0, counts).tolist(),
            positions[layer.stage])
    # A criterion that measures on the network cannot be resampled.
    if len(counts) > 1 and len(found) > 1 and not criterion.asks_network:
        column = Redundancy._fields.index(ranked_by)
        series = np.array([[row[column] for row in weights.rows[name]]
                           for name in found]).T
        share = shares(criterion, np.array([x[column] for x in found.values()]),
                       series, counts)
        found = {
            name: x._replace(stability=float(s))
            for (name, x), s in zip(found.items(), share.skipped)
        }
    return found


def _decision(redundancy: Dict[str, Redundancy], criterion: Criterion,
              ranked_by: str, network: Trial) -> List[str]:
    if len(redundancy) < 2:
        return []
    try:
        skip, _ = criterion([getattr(x, ranked_by) for x in redundancy.values()],
                            network)
    except Exception:  # a failed fit; the hook would skip nothing either
        return []
    return [name for name, gone in zip(redundancy, skip) if gone]


def _mean(values: Sequence[float], counts: Sequence[int]) -> float:
    return float(np.average(values, weights=counts))


def _percent(tally: _Tally, counts: Sequence[int]) -> Optional[float]:
    if None in tally.hits:
        return None
    return 100 * sum(tally.hits) / sum(counts)


def _cost(names: Sequence[str], tally: _Tally, whole: _Tally,
          counts: Sequence[int]) -> Cost:
    added = np.array(tally.losses) - np.array(whole.losses)
    margin = None
    if len(added) > 1:
        margin = float(
            student.ppf(.975, len(added) - 1) * added.std(ddof=1) /
            len(added)**.5)
    with_them = _percent(whole, counts)
    return Cost(
        tuple(names), added, _mean(added, counts), margin,
        None if with_them is None else _percent(tally, counts) - with_them)
