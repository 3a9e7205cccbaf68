"""Reads the file of a study."""
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

# Ways to choose the layers to skip, and the value that ranks them; layers with
# the smallest values are skipped.
SELECTORS = dict(paper='kl', excess='excess', conditional='conditional',
                 position='position', random='random', ablation='added')
# Networks that are trained for comparison, without skipping.
REFERENCES = ('plain', 'MRLA-base')


class Pictures(NamedTuple):
    """Which images a study uses, and how they are augmented.

    Attributes:
        train (range): Indices of the training set to train on.
        held_out (range): Indices of the training set to measure on how much
            loss skipping a layer adds.
        test (range): Indices of the validation set for accuracies.
        size (int, optional): Side in pixels; None: that of the dataset.
        padding (int): Largest shift of random crops in pixels.
        flip (bool): Whether to mirror half of the images.
    """
    train: range
    held_out: range
    test: range
    size: Optional[int] = None
    padding: int = 0
    flip: bool = False


class Training(NamedTuple):
    """Training by SGD with momentum 0.9, weight decay 1e-4 and cosine decay.

    Attributes:
        epochs (int): Number of epochs.
        batch_size (int): Number of images in a batch; an incomplete last batch
            is left out.
        lr (float): Learning rate after the warm-up.
        warmup_epochs (float): Number of epochs of linear warm-up from 0.
        lr_mult (Dict[str, float], optional): Factors of the learning rate, by
            a part of the parameter's name; None: 1 for all.
        attention_scale (float, optional): Initial value of the learnable scale
            behind attention, with ``zero_init_attention``; None: 0.
    """
    epochs: int
    batch_size: int = 64
    lr: float = 0.1
    warmup_epochs: float = 1
    lr_mult: Optional[Dict[str, float]] = None
    attention_scale: Optional[float] = None


class Study(NamedTuple):
    """A study, as described by its file.

    Attributes:
        title (str): Title of the report.
        kind (str): Kind of study, ``'validity'`` or ``'starts'``.
        config (str): Path of the config with model and datasets.
        overrides (Dict[str, Any]): Values to set in the config, by dotted keys.
        depths (Dict[int, int]): Number of layers to skip, by depth.
        seeds (List[int]): Seeds, each of which is a network trained on batches
            of its own.
        pictures (Pictures): Images and augmentation.
        training (Training): Settings of the training.
        windows (Dict[str, int]): Measured epochs by name of the window, from 1.
        decision (str): Name of the window after which layers are skipped.
        starts (Dict[str, dict]): Settings that differ, by name of the start;
            for a study of starts.
        data_root (str, optional): Folder of the images; None: that of the
            config.
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
        """Hash of what decides results; seeds may be added later."""
        decisive = self._asdict()
        for name in ('title', 'seeds', 'data_root', 'config'):
            del decisive[name]
        cfg = _config(self.config)
        of_config = [cfg.model, cfg.data_preprocessor,
                     cfg.train_dataloader.dataset, cfg.val_dataloader.dataset]
        text = json.dumps([decisive, of_config], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def network_config(self, depth: int) -> Config:
        """Return the config of a network, with its depth and the overrides."""
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
    """Return whether a file describes a study, and not a grid of runs."""
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
        path (str): Path of a YAML file, such as
            ``configs/studies/validity.yaml``.
        root (str): Folder that a relative ``config`` is looked for in, if it is
            not found from the current folder.
        data_root (str, optional): Folder of the datasets. Defaults to None:
            that of the config.

    Returns:
        Study: The study.

    Raises:
        UsageError: If the file is malformed; it names the file and the error.
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
