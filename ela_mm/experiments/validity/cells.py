"""Runs a study: measures networks, then prunes them by each measure."""
import json
import os.path as osp
from copy import deepcopy
from itertools import islice
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from ...analysis.ablate import ablate
from ...engine.journal.record import write_whole
from ...models.backbones.layer_attention_mixin import find_backbone
from ...pruning import KLStatistics
from ...pruning.ablations import fixed
from ...pruning.build import build_criterion
from ...pruning.kl import redundancy_parts, uniform_kl
from ...pruning.trust import noise_of
from .study import REFERENCES, SELECTORS, Study
from .training import (
    NetworkRun,
    PictureSet,
    augmented,
    build_network,
    evaluate,
    load_pictures,
)

BASE = 'MRLA-base'
RESULT = 'result.json'
WINDOW = 'window_{}.json'
# Measurements of the first training step.
START = 'start.json'
# Held-out images in a batch; intervals of costs rest on these batches.
BATCH = 100


class Measures:
    """Measurements of a window: KL as in :class:`ELAPruneHook`, and parts."""

    def __init__(self) -> None:
        self.statistics = KLStatistics()
        # Sums of the parts, weighted by samples.
        self.sums: Dict[str, np.ndarray] = {}
        self.samples: Dict[str, int] = {}
        self.positions: Dict[str, float] = {}

    def see(self, name: str, prev: Tensor, curr: Tensor) -> None:
        """Add one layer in one step, as an observer of the backbone."""
        self.statistics.update(name, prev, curr)
        parts = redundancy_parts(prev, curr)
        values = np.array([float(x) for x in parts]) * len(curr)
        self.sums[name] = self.sums.get(name, 0.) + values
        self.samples[name] = self.samples.get(name, 0) + len(curr)
        self.positions[name] = uniform_kl(prev.shape[-1], curr.shape[-1])
        self.fields = parts._fields

    def by_layer(self) -> Dict[str, Dict[str, float]]:
        """Return the means of the window, by layer and by measure.

        ``position`` is the KL divergence of uniform weights.
        """
        return {
            name: dict(zip(self.fields, (sums / self.samples[name]).tolist()),
                       position=self.positions[name])
            for name, sums in self.sums.items()
        }


@torch.no_grad()
def untrained(run: NetworkRun, batches: int) -> Measures:
    """Measure a network on its first batches, with its initial weights.

    Args:
        run (NetworkRun): Run before its first step; not changed.
        batches (int): Number of batches.

    Returns:
        Measures: Measurements of a copy in training mode.
    """
    measures = Measures()
    network = deepcopy(run.network).train()  # norms would keep statistics
    find_backbone(network).observe(measures.see)
    for batch in islice(augmented(run.pictures, run.study.pictures,
                                  run.training.batch_size, run.seed, 0),
                        batches):
        network._run_forward(network.data_preprocessor(batch, True),
                             mode='tensor')
    return measures


class NetworkCell(NamedTuple):
    """A network of a study: all runs with one depth and seed."""
    study: Study
    depth: int
    seed: int
    out: str

    @property
    def folder(self) -> str:
        return osp.join(self.out, f'depth_{self.depth}', f'seed_{self.seed}')

    @property
    def label(self) -> str:
        return f'ResNet-{self.depth}, seed {self.seed}'

    def result(self, run: str, name: str = RESULT) -> Optional[dict]:
        """Read a file of a run; None if it is not written yet."""
        path = osp.join(self.folder, run, name)
        if not osp.isfile(path):
            return None
        with open(path, encoding='utf-8') as file:
            return json.load(file)

    def window(self, name: str) -> Optional[dict]:
        """Read the measurements of a window of the run without pruning."""
        return self.result(BASE, WINDOW.format(name))

    def write(self, content: dict, run: str, name: str = RESULT) -> None:
        """Write a file of a run, completely or not at all."""
        write_whole(json.dumps(content, indent=1),
                    osp.join(self.folder, run, name))

    def is_measured(self) -> bool:
        """Return whether the run without pruning is finished."""
        return None not in (self.result(BASE), self.result(BASE, START))

    def is_finished(self) -> bool:
        """Return whether all runs are finished."""
        return all(self.result(run) is not None
                   for run in (*REFERENCES, *SELECTORS))

    def chosen(self, selector: str, window: str) -> Tuple[str, ...]:
        """Return the layers that a selector skips on a window, in order."""
        measured = self.window(window)
        return choose(measured['layers'], selector, self.study.depths[self.depth],
                      self.seed)


def choose(layers: Dict[str, dict], selector: str, number: int,
           seed: int) -> Tuple[str, ...]:
    """Choose the layers with the smallest values.

    Args:
        layers (Dict[str, dict]): Measurements by name, in the network's order.
        selector (str): How to choose, one of ``SELECTORS``.
        number (int): Number of layers to choose.
        seed (int): Seed of the random choice.

    Returns:
        Tuple[str, ...]: Names of the layers; among equal values later layers
        are chosen first.
    """
    names = list(layers)
    if selector == 'random':
        values = np.random.default_rng(seed).random(len(names))
    else:
        values = np.array([layers[x][SELECTORS[selector]] for x in names])
    gone = fixed(values[::-1], number)[::-1]
    return tuple(name for name, is_gone in zip(names, gone) if is_gone)


class Work:
    """The runs of a cell.

    Args:
        cell (NetworkCell): Network of a study.
        sets (Sequence[PictureSet]): Images from
            :func:`~ela_mm.experiments.validity.training.load_pictures`.
    """

    def __init__(self, cell: NetworkCell, sets: Sequence[PictureSet]) -> None:
        self.cell = cell
        self.train, self.held_out, self.test = sets

    def _new_run(self, name: str, **overrides) -> NetworkRun:
        cell, study = self.cell, self.cell.study
        cfg = study.network_config(cell.depth)
        cfg.model.backbone.update(overrides)
        network = build_network(cfg, study.training, cell.seed)
        return NetworkRun(study, osp.join(cell.folder, name), network,
                          self.train, cell.seed)

    def measure(self) -> None:
        """Train without pruning, and measure every window."""
        cell, study = self.cell, self.cell.study
        run = self._new_run(BASE)
        if cell.result(BASE, START) is None:
            cell.write(untrained(run, 1).by_layer(), BASE, START)
        run.go_on()
        windows = {epoch: name for name, epoch in study.windows.items()}
        while run.epoch < study.training.epochs:
            name = windows.get(run.epoch + 1)
            if name is None:
                run.train_epoch()
            else:
                measures = Measures()
                run.train_epoch(measures.see)
                cell.write(self._window(run, measures), BASE,
                           WINDOW.format(name))
            if run.epoch == study.decision_epoch:
                cell.write(evaluate(run.network, self.test), BASE,
                           'at_decision.json')
            run.save(keep=(study.decision_epoch, ))
        cell.write(evaluate(run.network, self.test), BASE)

    def _window(self, run: NetworkRun, measures: Measures) -> dict:
        number = self.cell.study.depths[self.cell.depth]
        # A copy, since skipping freezes parameters.
        network = deepcopy(run.network)
        found = ablate(network, self.held_out.batches(BATCH),
                       build_criterion(dict(type='fixed', n=number)),
                       accuracy=False)
        layers = measures.by_layer()
        infos = find_backbone(network).attention_layers
        for info in infos:
            if info.name in layers:
                cost = found.layers[info.name]
                layers[info.name].update(
                    stage=info.stage, added=cost.loss, margin=cost.margin,
                    batches=cost.added.tolist())
        measured = measures.statistics.reduce(list(layers))
        for name, kl in measured.items():
            layers[name]['std'] = kl.std
            layers[name]['noise'] = noise_of(kl.std, kl.series)
        return dict(
            epoch=run.epoch, loss=found.loss, layers=layers,
            first={x.name: found.layers[x.name].loss for x in infos
                   if x.name not in layers})

    def prune(self, selector: str) -> None:
        """Skip what a selector chooses at the decision, and train on."""
        cell, study = self.cell, self.cell.study
        names = cell.chosen(selector, study.decision)
        result = self._same(selector, names)
        if result is None:
            run = self._new_run(selector)
            before = cell.result(selector, 'pruned.json')
            if before is None or not run.go_on():
                run.go_on(osp.join(cell.folder, BASE), study.decision_epoch)
                find_backbone(run.network).skip_layers(names)
                before = evaluate(run.network, self.test)
                cell.write(before, selector, 'pruned.json')
            self._to_the_end(run)
            result = dict(evaluate(run.network, self.test), pruned=before,
                          skipped=list(names))
        cell.write(result, selector)

    def _same(self, selector: str, names: Tuple[str, ...]) -> Optional[dict]:
        """Find the result of another selector that chose the same layers.

        Batches are seeded, so the two runs are equal bit for bit.
        """
        for other in SELECTORS:
            result = self.cell.result(other)
            if other != selector and result and (
                    tuple(result['skipped']) == names):
                return dict(result, same_as=result.get('same_as', other))
        return None

    def train_plain(self) -> None:
        """Train the network without layer attention on the same batches."""
        run = self._new_run('plain', attention=None,
                            zero_init_attention=False)
        run.go_on()
        self._to_the_end(run)
        self.cell.write(evaluate(run.network, self.test), 'plain')

    @staticmethod
    def _to_the_end(run: NetworkRun) -> None:
        while run.epoch < run.training.epochs:
            run.train_epoch()
            run.save()


def run_cell(cell: NetworkCell, everything: bool,
             sets: Optional[Sequence[PictureSet]] = None) -> None:
    """Run what a cell has not finished.

    Args:
        cell (NetworkCell): Network of a study.
        everything (bool): Whether to prune as well as to measure.
        sets (Sequence[PictureSet], optional): Images. Defaults to None: they
            are read.
    """
    torch.set_num_threads(1)  # sums must not depend on the number of cores
    if sets is None:
        sets = load_pictures(cell.study.network_config(cell.depth),
                             cell.study.pictures)
    work = Work(cell, sets)
    if not cell.is_measured():
        work.measure()
    if not everything:
        return
    if cell.result('plain') is None:
        work.train_plain()
    for selector in SELECTORS:
        if cell.result(selector) is None:
            work.prune(selector)


def cells_of(study: Study, out: str) -> List[NetworkCell]:
    """List the networks of a study, ordered by seed."""
    return [NetworkCell(study, depth, seed, out)
            for seed in study.seeds for depth in study.depths]
