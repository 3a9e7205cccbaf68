"""Batches of pictures, as a config prepares them."""
import inspect
import itertools
import os.path as osp
from copy import deepcopy
from typing import Iterator, List, Optional, Sequence, Tuple

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import UsageError
from ..hosts.registration import host_of


def dataset_batches(cfg: Config,
                    images: int,
                    batch_size: Optional[int] = None) -> Iterator[dict]:
    """Batches of the config's validation set, in its order.

    Args:
        cfg (Config): With a ``val_dataloader`` or a ``test_dataloader``.
        images (int): So many at least, unless the set has fewer.
        batch_size (int, optional): Pictures a batch. Defaults to None: the
            loader's.

    Yields:
        dict: What the model's data_preprocessor takes.

    Raises:
        UsageError: If there is no such loader, or its data is missing.
    """
    name = next((n for n in ('val_dataloader', 'test_dataloader')
                 if cfg.get(n) is not None), None)
    if name is None:
        raise UsageError('the config has neither a val_dataloader nor a '
                         'test_dataloader: name pictures on the command line')
    check_data(cfg, name)
    options = deepcopy(prepare_config(cfg)[name])
    # Read here: starting workers takes longer than a few batches.
    options.update(num_workers=0, persistent_workers=False)
    options.pop('prefetch_factor', None)
    if batch_size:
        options.pop('batch_sampler', None)  # which brings a size of its own
        options['batch_size'] = batch_size
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    loader = Runner.build_dataloader(options, seed=0)
    number = -(-images // loader.batch_size) if loader.batch_size else images
    yield from itertools.islice(loader, number)


def annotated_batches(cfg: Config,
                      images: int,
                      batch_size: Optional[int] = None) -> Iterator[dict]:
    """Batches of the validation set whose labels fit the pictures.

    MMDetection's test pipelines load annotations after they have resized the
    picture, in its original coordinates, for evaluation. Here they are loaded
    right after the picture, so that a loss can be computed on them.

    Args:
        cfg (Config): As for :func:`dataset_batches`, as are the others.
        images (int): So many at least, unless the set has fewer.
        batch_size (int, optional): Pictures a batch.

    Yields:
        dict: What the model's data_preprocessor takes.

    Raises:
        UsageError: As :func:`dataset_batches`.
    """
    cfg = deepcopy(cfg)
    for name in ('val_dataloader', 'test_dataloader'):
        steps = pipeline_of(cfg, name)
        labels = [x for x in steps if 'Annotation' in str(x['type'])]
        others = [x for x in steps if x not in labels]
        loads = [i for i, x in enumerate(others)
                 if 'LoadImage' in str(x['type'])]
        if labels and loads:
            steps[:] = [*others[:loads[-1] + 1], *labels,
                        *others[loads[-1] + 1:]]
    yield from dataset_batches(cfg, images, batch_size)


def file_batches(cfg: Config, paths: Sequence[str]) -> Iterator[dict]:
    """Batches of one picture each, prepared as the config's test pictures.

    Args:
        cfg (Config): With a ``test_dataloader`` or a ``val_dataloader``.
        paths (Sequence[str]): Files that mmcv can read.

    Yields:
        dict: What the model's data_preprocessor takes.

    Raises:
        UsageError: If a file is missing or no picture, or the config has no
            pipeline.
    """
    steps = _pipeline(cfg)
    loads = any('LoadImage' in str(step['type']) for step in steps)
    prepare = Compose(steps)
    for number, path in enumerate(paths):
        picture = _read(path)
        sample = dict(img_path=path, img_id=number)
        if not loads:  # CIFAR's are arrays, RGB and of one size
            height, width = picture_shape(cfg)
            picture = mmcv.imresize(picture[..., ::-1], (width, height))
            sample.update(
                img=picture,
                img_shape=(height, width),
                ori_shape=(height, width))
        yield pseudo_collate([prepare(sample)])


def _read(path: str) -> np.ndarray:
    """(H, W, 3) uint8, BGR."""
    if not osp.isfile(path):
        raise UsageError(f'picture {path!r} does not exist')
    try:
        picture = mmcv.imread(path)
    except cv2.error:  # an empty file
        picture = None
    if picture is None:
        raise UsageError(f'{path!r} is no picture that OpenCV can read')
    return picture


def picture_shape(cfg: Config) -> Tuple[int, int]:
    """Height and width of the pictures that a network works on.

    Args:
        cfg (Config): What resizes or crops in its pipelines decides; where
            nothing does, the first validation picture, if its data is there.

    Returns:
        tuple: In pixels; where nothing is found (224, 224), and (32, 32) for
        networks of CIFAR's kind.
    """
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for step in reversed(pipeline_of(cfg, name)):
            # Crops say (height, width), Resize says (width, height).
            if 'Crop' in str(step['type']) and 'crop_size' in step:
                return _pair(step['crop_size'])
            if 'Resize' in str(step['type']) and 'scale' in step:
                return _pair(step['scale'])[::-1]
    try:
        if not _downloads(cfg):
            batch = next(dataset_batches(cfg, 1))
            return tuple(batch['inputs'][0].shape[-2:])
    except (UsageError, StopIteration):
        pass
    backbone = cfg.model.get('backbone', {})
    return host_of(cfg, backbone.get('type')).picture_shape(backbone)


def _pair(size) -> Tuple[int, int]:
    if isinstance(size, (list, tuple)) and isinstance(size[0], (list, tuple)):
        size = size[-1]  # of several, the last
    first, second = (size, size) if isinstance(size, int) else size[:2]
    return int(first), int(second)


def _downloads(cfg: Config) -> bool:
    """Whether building the validation set might download it."""
    dataset = (cfg.get('val_dataloader') or {}).get('dataset') or {}
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with DATASETS.switch_scope_and_registry(None) as registry:
        cls = registry.get(str(dataset.get('type')))
    return cls is not None and 'download' in inspect.signature(cls).parameters


def pipeline_of(cfg: Config, loader: str) -> List[dict]:
    """The steps that prepare a loader's pictures.

    Args:
        cfg (Config): Of a detector or a classifier.
        loader (str): Such as ``'test_dataloader'``.

    Returns:
        List[dict]: As the config has them; empty without such a loader.
    """
    dataset = (cfg.get(loader) or {}).get('dataset') or {}
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']  # within a wrapper
    return dataset.get('pipeline') or []


def _pipeline(cfg: Config) -> List[dict]:
    steps = pipeline_of(cfg, 'test_dataloader') or pipeline_of(
        cfg, 'val_dataloader')
    if not steps:
        raise UsageError('the config has no test_dataloader with a pipeline, '
                         'which says how pictures are prepared')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    # Nothing is known of a picture but itself.
    return [
        step for step in deepcopy(steps)
        if 'Annotation' not in str(step['type'])
    ]


@torch.no_grad()
def network_inputs(model: nn.Module, batch: dict) -> Tensor:
    """What a batch looks like to the backbone.

    Args:
        model (nn.Module): A detector or a classifier.
        batch (dict): From :func:`dataset_batches` or :func:`file_batches`.

    Returns:
        Tensor: (B, 3, H, W), normalised, on the model's device.
    """
    return model.data_preprocessor(batch, False)['inputs']


def prepare_config(cfg: Config) -> Config:
    """Set the defaults that the host's configs expect of its own tools.

    Call it last: what the config or the user has set stays.

    Args:
        cfg (Config): Changed in place, if its host has such defaults:
            mmpretrain's dataloaders have.

    Returns:
        Config: The same.
    """
    host_of(cfg).prepare_config(cfg)
    return cfg


def _datasets(dataset: dict, path: str) -> Iterator[Tuple[str, dict]]:
    """The innermost datasets of a config, with their place in it."""
    if 'dataset' in dataset:
        yield from _datasets(dataset['dataset'], f'{path}.dataset')
    elif isinstance(dataset.get('datasets'), list):
        for i, member in enumerate(dataset['datasets']):
            yield from _datasets(member, f'{path}.datasets.{i}')
    else:
        yield path, dataset


def check_data(cfg: Config, *loaders: str) -> None:
    """Check that the data of some loaders is there, before models are built.

    Args:
        cfg (Config): The whole config.
        loaders (str): Names such as ``train_dataloader``.

    Raises:
        UsageError: Naming the first missing file or folder and its option.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    for loader in loaders:
        if cfg.get(loader) is None:
            continue
        for path, dataset in _datasets(cfg[loader]['dataset'],
                                       f'{loader}.dataset'):
            if dataset.get('backend_args') or _brings_its_data(dataset):
                continue  # on other storage, or made when it is built
            root = dataset.get('data_root') or ''
            wanted = [('data_root', root)]
            if dataset.get('ann_file'):
                wanted.append(('ann_file', osp.join(root,
                                                    dataset['ann_file'])))
            for option, place in wanted:
                if place and '://' not in place and not osp.exists(place):
                    raise UsageError(
                        f'{place!r} does not exist ({path}.{option}): put the '
                        'data there, or point to it with --cfg-options '
                        f'{path}.data_root=FOLDER')
        _check_evaluator(cfg, loader.replace('dataloader', 'evaluator'))


def _check_evaluator(cfg: Config, name: str) -> None:
    """CocoMetric has an annotation file of its own."""
    evaluators = cfg.get(name) or []
    if isinstance(evaluators, dict):
        evaluators = [evaluators]
    loader = cfg[name.replace('evaluator', 'dataloader')]
    for _, dataset in _datasets(loader['dataset'], ''):
        if dataset.get('backend_args') or _brings_its_data(dataset):
            return
    for evaluator in evaluators:
        place = evaluator.get('ann_file')
        if place and '://' not in place and not osp.exists(place):
            raise UsageError(
                f'{place!r} does not exist ({name}.ann_file): point to the '
                f'annotations with --cfg-options {name}.ann_file=FILE')


def _brings_its_data(dataset: dict) -> bool:
    """Whether a dataset makes or downloads what it does not find."""
    cls = dataset.get('type')
    if isinstance(cls, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            cls = registry.get(cls)
    if cls is None:  # building it will say so
        return True
    downloads = 'download' in inspect.signature(cls).parameters
    return getattr(cls, 'MAKES_ITS_DATA', False) or (
        downloads and dataset.get('download', True))
