"""Summarises a study over the networks that are finished."""
from collections import Counter
from typing import Dict, List, NamedTuple, Optional

from ...pruning import LayerKL
from ...pruning.trust import is_as_drawn, is_by_position
from .cells import BASE, START, NetworkCell, cells_of
from .numbers import (
    Interval,
    chance_overlap,
    chance_range,
    correlation,
    correlation_within,
    interval,
    overlaps,
)
from .study import SELECTORS, Study

# Measures that are compared with the loss that skipping adds.
MEASURES = ('kl', 'excess', 'conditional', 'own_share', 'position')
# That loss on every second batch, compared with that on the others: how well
# these images determine it.
HALVES = 'halves'
# Correlation of KL minus that of position alone, in the same network.
LEAD = 'lead'


class Correlation(NamedTuple):
    """Rank correlation of one measure in one window, at one depth.

    Attributes:
        over_all (Interval | None): Spearman's correlation over all layers, with
            one value for each seed.
        within (Interval | None): Its mean within stages.
    """
    over_all: Optional[Interval]
    within: Optional[Interval]


class Overlap(NamedTuple):
    """Overlap of the sets that a selector chooses, at one depth.

    Attributes:
        mean (float): Mean of Jaccard's index over pairs of seeds.
        pairs (List[float]): Jaccard's index of each pair.
        layers (Dict[str, int]): Number of seeds that skip each layer.
        seeds (int): Number of sets.
    """
    mean: float
    pairs: List[float]
    layers: Dict[str, int]
    seeds: int


class Accuracy(NamedTuple):
    """Test accuracies of one selector at one depth, %.

    Attributes:
        at_once (Interval | None): Accuracy right after pruning minus that
            before.
        end (Interval): Accuracy at the end of the training.
        added (Interval | None): Accuracy at the end minus that without pruning,
            paired by seed.
        seeds (List[int]): Seeds that are finished.
    """
    at_once: Optional[Interval]
    end: Interval
    added: Optional[Interval]
    seeds: List[int]


def correlations(cells: List[NetworkCell], window: str) -> Dict[str, Correlation]:
    """Correlate the measures with the loss that skipping adds."""
    names = (*MEASURES, HALVES)
    over_all: Dict[str, list] = {name: [] for name in names}
    within: Dict[str, list] = {name: [] for name in names}
    for measured in filter(None, (cell.window(window) for cell in cells)):
        layers = list(measured['layers'].values())
        costs = [x['added'] for x in layers]
        stages = [x['stage'] for x in layers]
        rows = [(m, [x[m] for x in layers], costs) for m in MEASURES]
        if all(len(x.get('batches', ())) > 1 for x in layers):
            rows.append((HALVES,
                         [sum(x['batches'][::2]) for x in layers],
                         [sum(x['batches'][1::2]) for x in layers]))
        for name, values, others in rows:
            over_all[name].append(correlation(values, others))
            within[name].append(correlation_within(stages, values, others))
    for found in (over_all, within):
        found[LEAD] = [
            None if None in pair else pair[0] - pair[1]
            for pair in zip(found['kl'], found['position'])
        ]
    return {name: Correlation(interval(over_all[name]),
                              interval(within[name])) for name in over_all}


def selected(cells: List[NetworkCell], window: str) -> Dict[str, Overlap]:
    """Compute how alike the layers are that different seeds would skip."""
    cells = [cell for cell in cells if cell.window(window) is not None]
    found = {}
    for selector in SELECTORS:
        sets = [cell.chosen(selector, window) for cell in cells]
        pairs = overlaps(sets)
        counts = Counter(name for own in sets for name in own)
        if pairs:
            found[selector] = Overlap(sum(pairs) / len(pairs), pairs,
                                      dict(counts.most_common()), len(sets))
    return found


def accuracies(cells: List[NetworkCell]) -> Dict[str, Accuracy]:
    """Collect the accuracies of all selectors, and of unpruned networks."""
    found = {}
    for run in ('plain', BASE, *SELECTORS):
        done = [cell for cell in cells if cell.result(run)]
        if not done:
            continue
        ends = [cell.result(run)['top1'] for cell in done]
        paired = [cell for cell in done if cell.result(BASE)]
        added = at_once = None
        if run != BASE:
            added = interval([cell.result(run)['top1'] -
                              cell.result(BASE)['top1'] for cell in paired])
        if run in SELECTORS:
            at_once = interval([
                cell.result(run)['pruned']['top1'] -
                cell.result(BASE, 'at_decision.json')['top1']
                for cell in paired
            ])
        found[run] = Accuracy(at_once, interval(ends), added,
                              [cell.seed for cell in done])
    return found


def paired_with(cells: List[NetworkCell], one: str,
                other: str) -> Optional[Interval]:
    """Compute the difference in accuracy of two selectors, paired by seed."""
    return interval([
        cell.result(one)['top1'] - cell.result(other)['top1'] for cell in cells
        if cell.result(one) and cell.result(other)
    ])


class Told(NamedTuple):
    """What the hook would warn of in a window, for networks of one depth.

    Attributes:
        by_position (int): Number of networks whose layers rank by position.
        as_drawn (int): Number of networks whose attention is as it was drawn.
        either (int): Number of networks with at least one of the two.
        networks (int): Number of all networks.
    """
    by_position: int
    as_drawn: int
    either: int
    networks: int


def told(cells: List[NetworkCell], window: str) -> Told:
    """Count the warnings of the hook in a window."""
    pairs = []
    for cell in cells:
        content, start = cell.window(window), cell.result(BASE, START) or {}
        if content is not None:
            measured = {
                # std is an upper bound of the noise, if that is not recorded.
                name: LayerKL(x['kl'], x.get('noise', x['std']), 0, 0, 0, [],
                              uniform=x['position'])
                for name, x in content['layers'].items()
            }
            first = {name: (x['kl'], x['position'])
                     for name, x in start.items()}
            pairs.append((is_by_position(measured),
                          is_as_drawn(measured, first)))
    return Told(sum(a for a, _ in pairs), sum(b for _, b in pairs),
                sum(map(any, pairs)), len(pairs))


def with_position(cells: List[NetworkCell], window: str,
                  measure: str = 'kl') -> Optional[Interval]:
    """Compute a measure's rank correlation with the KL of uniform weights."""
    return interval([
        correlation([x[measure] for x in measured['layers'].values()],
                    [x['position'] for x in measured['layers'].values()])
        for measured in filter(None, (cell.window(window) for cell in cells))
    ])


def chance(study: Study, cells: List[NetworkCell], window: str) -> tuple:
    """Return expected overlap of random sets, and a 95% range for its mean."""
    known = [x for x in (cell.window(window) for cell in cells) if x]
    layers, number = len(known[0]['layers']), study.depths[cells[0].depth]
    return (chance_overlap(layers, number),
            *chance_range(layers, number, len(known)))


def networks(study: Study, out: str) -> Dict[int, List[NetworkCell]]:
    """List the networks of a study that have begun, by depth."""
    found: Dict[int, List[NetworkCell]] = {}
    for cell in cells_of(study, out):
        if any(cell.window(window) for window in study.windows):
            found.setdefault(cell.depth, []).append(cell)
    return found
