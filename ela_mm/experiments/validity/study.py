"""What a study runs: its file, its seeds, and who measures what."""
import hashlib
import json
import os.path as osp
from copy import deepcopy
from functools import lru_cache
from typing import Any, Dict, List, NamedTuple, Optional

import yaml
from mmengine.config import Config

from ...apis.loading import config_from_file
from ...errors import UsageError
from ..grid import apply_overrides

# Ways to choose the layers that go, and the value that ranks them: the
# smallest go first.
SELECTORS = dict(paper='kl', excess='excess', conditional='conditional',
                 position='position', random='random', ablation='added')
# Networks that are trained beside, with nothing skipped.
REFERENCES = ('plain', 'MRLA-base')


class Pictures(NamedTuple):
    """Which pictures, and how they are augmented.

    Attributes:
        train (range): Of the config's train set: what is trained on.
        held_out (range): Of the train set: where the loss is measured that
            skipping a layer adds.
        test (range): Of the config's validation set, for accuracies.
        size (int, optional): Side in pixels; None: as the dataset has them.
        padding (int): Pixels by which random crops shift.
        flip (bool): Whether half of the pictures are mirrored.
    """
    train: range
    held_out: range
    test: range
    size: Optional[int] = None
    padding: int = 0
    flip: bool = False


class Training(NamedTuple):
    """SGD, momentum 0.9, weight decay 1e-4; warm-up, then cosine to 0.

    Attributes:
        epochs (int): In all.
        batch_size (int): An epoch's last, incomplete batch is left out.
        lr (float): After the warm-up.
        warmup_epochs (float): Linear, from 0.
        lr_mult (Dict[str, float], optional): Part of a parameter's name to
            what multiplies its ``lr``; None: nothing does.
        attention_scale (float, optional): What the learnable scale behind
            attention starts at, with ``zero_init_attention``; None: 0.
    """
    epochs: int
    batch_size: int = 64
    lr: float = 0.1
    warmup_epochs: float = 1
    lr_mult: Optional[Dict[str, float]] = None
    attention_scale: Optional[float] = None


class Study(NamedTuple):
    """A study as its file has it.

    Attributes:
        title (str): Of the tables.
        kind (str): ``'validity'`` or ``'starts'``.
        config (str): Path of the config: model and datasets.
        overrides (Dict[str, Any]): Of the config, by dotted keys.
        depths (Dict[int, int]): Depth to the number of layers that go.
        seeds (List[int]): Each a network, trained on batches of its own.
        pictures (Pictures): Which, and how augmented.
        training (Training): How.
        windows (Dict[str, int]): Name to the epoch that is measured, from 1.
        decision (str): The window after which layers go.
        starts (Dict[str, dict]): Of a study of starts, name to what differs.
        data_root (str, optional): Folder of the pictures; None: the config's.
    """
    title: str
    kind: str
    config: str
    overrides: Dict[str, Any]
    depths: Dict[int, int]
    seeds: List[int]
    pictures: Pictures
    training: Training
    windows: Dict[str, int]
    decision: str
    starts: Dict[str, dict]
    data_root: Optional[str] = None

    @property
    def decision_epoch(self) -> int:
        return self.windows[self.decision]

    @property
    def fingerprint(self) -> str:
        """Of all that decides the results; seeds may be added later."""
        decisive = self._asdict()
        for name in ('title', 'seeds', 'data_root', 'config'):
            del decisive[name]
        cfg = _config(self.config)
        of_config = [cfg.model, cfg.data_preprocessor,
                     cfg.train_dataloader.dataset, cfg.val_dataloader.dataset]
        text = json.dumps([decisive, of_config], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def network_config(self, depth: int) -> Config:
        """The config of a network of some depth, with the overrides."""
        cfg = deepcopy(_config(self.config))
        cfg.model.backbone.depth = depth
        apply_overrides(cfg, self.overrides)
        if self.data_root is not None:
            for name in ('train_dataloader', 'val_dataloader'):
                cfg[name].dataset.data_root = self.data_root
        return cfg


@lru_cache(maxsize=None)
def _config(path: str) -> Config:
    return config_from_file(path)


def is_study(path: str) -> bool:
    """Whether a file describes a study, and not a grid of runs."""
    if not path.endswith('.yaml') or not osp.isfile(path):
        return False
    with open(path, encoding='utf-8') as file:
        try:
            content = yaml.safe_load(file)
        except yaml.YAMLError:
            return False
    return isinstance(content, dict) and 'study' in content


def read_study(path: str, root: str, data_root: Optional[str] = None) -> Study:
    """Read and check the file of a study.

    Args:
        path (str): YAML, such as ``configs/studies/validity.yaml``.
        root (str): What a relative ``config`` is relative to, if it is not
            found from the current folder.
        data_root (str, optional): Of the config's datasets. Defaults to None:
            as the config has it.

    Returns:
        Study: What the file says.

    Raises:
        UsageError: Naming the file and what is wrong with it.
    """
    with open(path, encoding='utf-8') as file:
        content = yaml.safe_load(file)
    kind = content.pop('study', None)
    if kind not in ('validity', 'starts'):
        raise UsageError(f"{path}: study is {kind!r}, expected 'validity' or "
                         "'starts'")
    try:
        pictures = dict(content.pop('pictures'))
        ranges = {name: range(*pictures.pop(name))
                  for name in ('train', 'held_out', 'test')}
        study = Study(
            kind=kind, pictures=Pictures(**ranges, **pictures),
            training=Training(**content.pop('training')), data_root=data_root,
            **{'title': kind, 'overrides': {}, 'starts': {}, **content})
    except (KeyError, TypeError) as error:
        raise UsageError(f'{path}: {type(error).__name__}: {error}') from None
    _check(study, path)
    config = study.config
    if not osp.isfile(config):
        config = osp.join(root, config)
    return study._replace(config=config)


def _check(study: Study, path: str) -> None:
    numbers = study.depths.items() if isinstance(study.depths, dict) else [()]
    if not all(pair and all(type(x) is int for x in pair) for pair in numbers):
        raise UsageError(f'{path}: depths is {study.depths!r}, expected '
                         'depth: number of layers to skip, such as {56: 6}')
    epochs = study.training.epochs
    for name, epoch in study.windows.items():
        if not 1 <= epoch <= epochs:
            raise UsageError(f'{path}: window {name!r} is epoch {epoch}, '
                             f'expected 1 to {epochs}')
    if study.decision not in study.windows:
        raise UsageError(
            f'{path}: decision is {study.decision!r}, expected one of the '
            f'windows {", ".join(study.windows)}')
    pictures = study.pictures
    shared = set(pictures.train) & set(pictures.held_out)
    if shared:
        raise UsageError(f'{path}: {len(shared)} pictures are both train and '
                         'held_out, expected none')
    if len(pictures.train) < study.training.batch_size:
        raise UsageError(
            f'{path}: {len(pictures.train)} pictures make no batch of '
            f'{study.training.batch_size}: expected more, or smaller batches')
