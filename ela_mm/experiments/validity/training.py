"""Trains small networks epoch by epoch, with resumption after each."""
import logging
import math
import os
import os.path as osp
import pickle
from contextlib import contextmanager
from functools import lru_cache
from typing import Iterator, NamedTuple, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ...apis.data import check_data, prepare_config
from ...config_types import enter_scope
from ...models.backbones.layer_attention_mixin import find_backbone
from ...models.backbones.stages import Observer
from .study import Pictures, Study, Training

# Name of a checkpoint in the folder of a run.
CHECKPOINT = 'epoch_{}.pth'


class PictureSet(NamedTuple):
    """Images in memory.

    Attributes:
        inputs (Tensor): (N, 3, H, W) uint8, the images.
        samples (list): N data samples, with a label each.
    """
    inputs: Tensor
    samples: list

    def batch(self, rows: Tensor, inputs: Optional[Tensor] = None) -> dict:
        """Make a batch, as a model's data_preprocessor takes it."""
        inputs = self.inputs[rows] if inputs is None else inputs
        return dict(inputs=inputs,
                    data_samples=[self.samples[i] for i in rows.tolist()])

    def batches(self, size: int = 200) -> Iterator[dict]:
        """Yield all images in batches, in a fixed order that mixes classes."""
        draw = torch.Generator().manual_seed(0)
        order = torch.randperm(len(self.samples), generator=draw)
        for rows in order.split(size):
            yield self.batch(rows)


def load_pictures(cfg: Config, spec: Pictures) -> Tuple[PictureSet, ...]:
    """Read the images of a study.

    Args:
        cfg (Config): Config of the datasets, whose validation pipeline is used.
        spec (Pictures): Images to read.

    Returns:
        tuple: The sets for training, held out, and for testing.

    Raises:
        UsageError: If the data is missing.
    """
    enter_scope(cfg)
    prepare_config(cfg)
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    steps = list(cfg.val_dataloader.dataset.pipeline)
    if spec.size is not None:
        steps.insert(-1, dict(type='Resize', scale=(spec.size, spec.size),
                              interpolation='area'))
    # Pickle, not JSON, since types in the config may be classes.
    train, val = (pickle.dumps(dict(cfg[name].dataset, pipeline=steps))
                  for name in ('train_dataloader', 'val_dataloader'))
    return tuple(_read(dataset, rows) for dataset, rows in (
        (train, spec.train), (train, spec.held_out), (val, spec.test)))


@lru_cache(maxsize=3)  # once in a process, for all networks
def _read(dataset: bytes, rows: range) -> PictureSet:
    built = DATASETS.build(dict(pickle.loads(dataset), indices=list(rows)))
    packed = [built[i] for i in range(len(built))]
    return PictureSet(torch.stack([x['inputs'] for x in packed]),
                      [x['data_samples'] for x in packed])


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the log, in which mmengine would list every weight."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def build_network(cfg: Config, training: Training, seed: int) -> nn.Module:
    """Build a network with initial weights, which depend on the seed alone."""
    enter_scope(cfg)
    torch.manual_seed(seed)
    network = MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    with _quiet():
        network.init_weights()
    if training.attention_scale is not None:
        for layer in find_backbone(network).attention_layers:
            nn.init.constant_(layer.module.scale.weight,
                              training.attention_scale)
    # A fifth faster on CPUs at these sizes.
    return network.to(memory_format=torch.channels_last)


def build_optimizer(network: nn.Module, training: Training) -> OptimWrapper:
    """Build the SGD optimizer, with the learning rates of ``lr_mult``."""
    optimizer = dict(type='SGD', lr=training.lr, momentum=.9,
                     weight_decay=1e-4)
    options = dict(type='OptimWrapper', optimizer=optimizer)
    if training.lr_mult:
        options['paramwise_cfg'] = dict(custom_keys={
            name: dict(lr_mult=factor)
            for name, factor in training.lr_mult.items()
        })
    with _quiet():
        return build_optim_wrapper(network, options)


def augmented(pictures: PictureSet, spec: Pictures, batch_size: int,
              seed: int, epoch: int) -> Iterator[dict]:
    """Yield the augmented batches of an epoch, by seed and epoch alone."""
    draw = torch.Generator().manual_seed(1000 * seed + epoch)
    order = torch.randperm(len(pictures.samples), generator=draw)
    height, width = pictures.inputs.shape[-2:]
    for rows in order.split(batch_size):
        if len(rows) < batch_size:
            return
        inputs = F.pad(pictures.inputs[rows], [spec.padding] * 4)
        tops, lefts = torch.randint(2 * spec.padding + 1,
                                    (2, batch_size), generator=draw).tolist()
        inputs = torch.stack([
            x[:, top:top + height, left:left + width]
            for x, top, left in zip(inputs, tops, lefts)
        ])
        mirrored = torch.rand(batch_size, generator=draw) < .5 * spec.flip
        inputs[mirrored] = inputs[mirrored].flip(-1)
        yield pictures.batch(rows, inputs)


def lr_factor(step: int, steps: int, training: Training) -> float:
    """Return the factor of the learning rate in a step, counted from 0."""
    total = steps * training.epochs
    warmup = steps * training.warmup_epochs
    if step < warmup:
        return (step + 1) / warmup
    return .5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


class NetworkRun:
    """A network in training, and its folder.

    Args:
        study (Study): Study that it belongs to.
        folder (str): Folder of its checkpoints.
        network (nn.Module): Network with initial weights.
        pictures (PictureSet): Images to train on.
        seed (int): Seed of the batches.
        training (Training, optional): Settings of the training. Defaults to
            None: those of the study.
    """

    def __init__(self, study: Study, folder: str, network: nn.Module,
                 pictures: PictureSet, seed: int,
                 training: Optional[Training] = None) -> None:
        self.study = study
        self.folder = folder
        self.network = network
        self.pictures = pictures
        self.seed = seed
        self.training = training or study.training
        self.optimizer = build_optimizer(network, self.training)
        self.epoch = 0  # number of finished epochs

    def train_epoch(self, observer: Optional[Observer] = None) -> None:
        """Train one epoch; an observer is given the attention weights."""
        training = self.training
        steps = len(self.pictures.samples) // training.batch_size
        self.network.train()
        if observer is not None:
            find_backbone(self.network).observe(observer)
        groups = self.optimizer.optimizer.param_groups
        torch.manual_seed(1000 * self.seed + self.epoch)
        for i, batch in enumerate(
                augmented(self.pictures, self.study.pictures,
                          training.batch_size, self.seed, self.epoch)):
            factor = lr_factor(self.epoch * steps + i, steps, training)
            for group in groups:
                group.setdefault('initial_lr', group['lr'])
                group['lr'] = group['initial_lr'] * factor
            self.network.train_step(batch, self.optimizer)
        if observer is not None:
            find_backbone(self.network).observe(None)
        self.epoch += 1

    def save(self, keep: Tuple[int, ...] = ()) -> None:
        """Save a checkpoint atomically, and remove others but some epochs'."""
        os.makedirs(self.folder, exist_ok=True)
        path = osp.join(self.folder, CHECKPOINT.format(self.epoch))
        torch.save(dict(network=self.network.state_dict(),
                        optimizer=self.optimizer.state_dict()), path + '.tmp')
        os.replace(path + '.tmp', path)
        for epoch in range(self.epoch):
            old = osp.join(self.folder, CHECKPOINT.format(epoch))
            if epoch not in keep and osp.isfile(old):
                os.remove(old)

    def go_on(self, folder: Optional[str] = None,
              epoch: Optional[int] = None) -> bool:
        """Continue from a checkpoint, by default the last of its own folder.

        Args:
            folder (str, optional): Folder of the checkpoint.
            epoch (int, optional): Epoch of the checkpoint. Defaults to None:
                the last.

        Returns:
            bool: Whether there was a checkpoint.
        """
        folder = self.folder if folder is None else folder
        epochs = range(self.training.epochs, 0, -1) if epoch is None else [epoch]
        for number in epochs:
            path = osp.join(folder, CHECKPOINT.format(number))
            if osp.isfile(path):
                state = torch.load(path, map_location='cpu', weights_only=True)
                self.network.load_state_dict(state['network'])
                self.optimizer.load_state_dict(state['optimizer'])
                self.epoch = number
                return True
        return False


@torch.no_grad()
def evaluate(network: nn.Module, pictures: PictureSet) -> dict:
    """Compute mean cross entropy, and top-1 accuracy in percent."""
    network.eval()
    loss, hits = 0., 0
    for batch in pictures.batches():
        data = network.data_preprocessor(batch, False)
        logits = network._run_forward(data, mode='tensor')  # (B, classes)
        labels = torch.cat([x.gt_label for x in data['data_samples']])
        loss += float(F.cross_entropy(logits, labels, reduction='sum'))
        hits += int((logits.argmax(1) == labels).sum())
    return dict(loss=loss / len(pictures.samples),
                top1=100 * hits / len(pictures.samples))


