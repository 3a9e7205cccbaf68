"""Measures how soon attention leaves uniform weights, by its start."""
import json
import os.path as osp
from typing import List, NamedTuple, Optional

import numpy as np
import torch

from ...engine.journal.record import write_whole
from ...pruning.trust import is_by_position
from .cells import RESULT, Measures, untrained
from .numbers import correlation
from .study import Study
from .training import NetworkRun, build_network, evaluate, load_pictures

# Number of batches to measure before the training.
FIRST_BATCHES = 5


class StartCell(NamedTuple):
    """One network with one start."""
    study: Study
    name: str
    depth: int
    seed: int
    out: str

    @property
    def folder(self) -> str:
        return osp.join(self.out, self.name.replace(' ', '_'),
                        f'depth_{self.depth}', f'seed_{self.seed}')

    @property
    def label(self) -> str:
        return f'{self.name}, ResNet-{self.depth}, seed {self.seed}'

    def result(self) -> Optional[dict]:
        """Read the result; None if it is not finished."""
        path = osp.join(self.folder, RESULT)
        if not osp.isfile(path):
            return None
        with open(path, encoding='utf-8') as file:
            return json.load(file)


def start_cells(study: Study, out: str) -> List[StartCell]:
    """List the networks of a study of starts, ordered by seed."""
    return [StartCell(study, name, depth, seed, out) for seed in study.seeds
            for depth in study.depths for name in study.starts]


def run_start(cell: StartCell) -> None:
    """Train a network with a start, and measure every epoch.

    A start has the settings of ``training`` and ``backbone`` that differ from
    those of the study.
    """
    torch.set_num_threads(1)
    study, own = cell.study, cell.study.starts[cell.name]
    cfg = study.network_config(cell.depth)
    cfg.model.backbone.update(own.get('backbone', {}))
    training = study.training._replace(**own.get('training', {}))
    train, _, test = load_pictures(cfg, study.pictures)
    network = build_network(cfg, training, cell.seed)
    run = NetworkRun(study, cell.folder, network, train, cell.seed, training)
    path = osp.join(cell.folder, 'epochs.json')
    epochs = []  # entry 0 is before training
    if run.go_on():
        with open(path, encoding='utf-8') as file:
            epochs = json.load(file)[:run.epoch + 1]
    else:
        epochs.append(_distance(run, untrained(run, FIRST_BATCHES)))
    while run.epoch < training.epochs:
        measures = Measures()
        run.train_epoch(measures.see)
        epochs.append(dict(_distance(run, measures),
                           **evaluate(run.network, test)))
        write_whole(json.dumps(epochs, indent=1), path)
        run.save()
    write_whole(json.dumps(dict(epochs=epochs), indent=1),
                osp.join(cell.folder, RESULT))


def _distance(run: NetworkRun, measures: Measures) -> dict:
    """Compute the median of |D - log(m / n)| / log(m / n), and similar."""
    layers = list(measures.by_layer().values())
    statistics = measures.statistics.reduce(list(measures.sums))
    kl = [x['kl'] for x in layers]
    positions = [x['position'] for x in layers]
    distances = [abs(x['excess']) / x['position'] for x in layers]
    return dict(distance=float(np.median(distances)),
                rank_by_position=correlation(kl, positions),
                largest_kl=float(np.max(kl)), kl=kl,  # NaN is the largest
                by_position=bool(is_by_position(statistics)))
