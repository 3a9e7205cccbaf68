"""Loads batches of images, prepared as a config says."""
import itertools
import os.path as osp
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any, Callable, Iterator, Optional, Sequence, Tuple

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate, pseudo_collate
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..config_types import class_of, enter_scope, type_name
from ..errors import UsageError
from ..hosts.registration import host_of, host_of_model
from .data_config import (  # noqa: F401  some used to be in this module
    LOADERS,
    check_data,
    datasets_of,
    downloads,
    loads_pictures,
    pipeline_of,
    pipelines_of,
    plain_steps,
    prepare_config,
    shape_of_steps,
    walk,
    without_labels,
)
from .evenly_spaced import EvenlySpaced, in_order

# Options of a DataLoader that only matter with workers, which are not used.
_OF_WORKERS = ('persistent_workers', 'prefetch_factor', 'timeout',
               'multiprocessing_context', 'num_batch_per_epoch')


def loader_of(cfg: Config) -> str:
    """Choose the data loader whose images an analysis uses.

    Args:
        cfg (Config): Config with at least one of ``LOADERS``.

    Returns:
        str: Name of the loader: that for validation, or else for testing, or
        else (as in self-supervised training) for training.

    Raises:
        UsageError: If there is none.
    """
    name = next((n for n in LOADERS if cfg.get(n) is not None), None)
    if name is None:
        raise UsageError(f'the config has none of {", ".join(LOADERS)}: name '
                         'pictures on the command line')
    return name


def set_of(cfg: Config) -> str:
    """Return the name of the set that :func:`dataset_batches` reads."""
    name = loader_of(cfg).replace('_dataloader', '')
    words = dict(val='validation', train='training')
    return f'the {words.get(name, name)} set'


def sample_of(cfg: Config) -> str:
    """Say in words which images :func:`dataset_batches` loads."""
    how = 'evenly spaced in' if in_order(cfg[loader_of(cfg)]) else 'the first of'
    return f'{how} {set_of(cfg)}'


def dataset_batches(cfg: Config,
                    images: int,
                    batch_size: Optional[int] = None) -> Iterator[dict]:
    """Load batches of images that are evenly spaced in the validation set.

    They come in the order of the set. A loader that shuffles, has a special
    sampler, or is already built, is used as it is, from its first batch on.

    Args:
        cfg (Config): Config, see :func:`loader_of` for the set.
        images (int): Number of images, rounded up to whole batches; all if the
            set has fewer.
        batch_size (int, optional): Number of images in a batch. Defaults to
            None: that of the loader, or ``images`` if that is smaller.

    Yields:
        dict: A batch, as the model's data_preprocessor takes it.

    Raises:
        UsageError: If there is no loader, or if its data is missing.
    """
    name = loader_of(cfg)
    prepare_config(cfg)
    check_data(cfg, name, evaluators=False)
    enter_scope(cfg)
    loader = cfg[name]
    if not isinstance(loader, DataLoader):
        if name == 'train_dataloader':
            loader = _not_augmented(cfg)
        if batch_size is None and (loader.get('batch_size') or 0) > images:
            loader = dict(loader, batch_size=images)
        if in_order(loader):
            size = batch_size or loader.get('batch_size') or 1
            loader = dict(loader, sampler=dict(
                type=EvenlySpaced, images=-(-images // size) * size))
        loader = Runner.build_dataloader(
            _without_workers(loader, batch_size), seed=0)
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
    yield from itertools.islice(loader, -(-images // size))


def _not_augmented(cfg: Config) -> dict:
    """Return the training loader with its images resized, but not augmented.

    If wrappers mix images, or the size is unknown, the loader is not changed.
    """
    cfg = deepcopy(cfg)
    shape = shape_of_steps(cfg)
    pipelines = list(pipelines_of(cfg, 'train_dataloader'))
    if shape is not None and len(pipelines) == len(
            list(datasets_of(cfg, 'train_dataloader'))):
        for steps in pipelines:
            steps[:] = plain_steps(steps, shape)
    return cfg.train_dataloader


def _without_workers(options: dict, batch_size: Optional[int]) -> dict:
    """Return a loader without workers, which take long to start."""
    options = {key: value for key, value in deepcopy(options).items()
               if key not in _OF_WORKERS}
    # A small set may have no complete batch.
    options.update(num_workers=0, drop_last=False)
    if batch_size or options.get('batch_sampler') is not None:
        options.pop('drop_last')
    if batch_size:
        options.pop('batch_sampler', None)  # it has a batch size of its own
        options['batch_size'] = batch_size
    collate = options.get('collate_fn')
    if collate is not None and type_name(collate) == 'default_collate':
        options['collate_fn'] = _stack_or_list
    return options


def _stack_or_list(samples: Sequence[dict]) -> dict:
    """Stack images, or return lists if they have different sizes."""
    pictures = [sample.get('inputs') for sample in samples]
    if len({getattr(picture, 'shape', None) for picture in pictures}) > 1:
        return pseudo_collate(samples)
    return default_collate(samples)


def annotated_batches(cfg: Config,
                      images: int,
                      batch_size: Optional[int] = None) -> Iterator[dict]:
    """Load batches of the validation set, with labels that fit the images.

    For evaluation, MMDetection's test pipelines load annotations after they
    have resized the image, in original coordinates. Here they are loaded right
    after the image, so that a loss can be computed.

    Args:
        cfg (Config): Config, as in :func:`dataset_batches`.
        images (int): Number of images, as in :func:`dataset_batches`.
        batch_size (int, optional): Number of images in a batch, as in
            :func:`dataset_batches`.

    Yields:
        dict: A batch, as the model's data_preprocessor takes it.

    Raises:
        UsageError: As in :func:`dataset_batches`.
    """
    cfg = deepcopy(cfg)
    for steps in pipelines_of(cfg, loader_of(cfg)):
        _labels_first(steps)
    yield from dataset_batches(cfg, images, batch_size)


def _labels_first(steps: list) -> None:
    """Move the loading of annotations behind that of images, in place."""
    for step in steps:
        if isinstance(step, Mapping) and isinstance(
                step.get('transforms'), list):
            _labels_first(step['transforms'])
    labels = [x for x in steps if 'Annotation' in type_name(x)]
    others = [x for x in steps if x not in labels]
    loads = [i for i, x in enumerate(others) if loads_pictures(x)]
    if labels and loads:
        steps[:] = [*others[:loads[-1] + 1], *labels, *others[loads[-1] + 1:]]


def file_batches(cfg: Config, paths: Sequence[str]) -> Iterator[dict]:
    """Load image files as batches of one, prepared like images of the test set.

    Args:
        cfg (Config): Config with a pipeline in ``test_dataloader``,
            ``val_dataloader`` or, as a last resort, ``train_dataloader``.
        paths (Sequence[str]): Files that the pipeline can read; if it reads no
            files, as that of CIFAR, files that OpenCV can read.

    Yields:
        dict: A batch, as the model's data_preprocessor takes it.

    Raises:
        UsageError: If a file is missing or is no image, or if the config has no
            pipeline.
    """
    steps, collate = _preparation(cfg)
    prepare = Compose(steps)
    loads = any(map(loads_pictures, walk(steps)))
    # Pipelines of videos take lists of frames.
    frames = any(type_name(x) == 'TransformBroadcaster' for x in walk(steps))
    for number, path in enumerate(paths):
        path = osp.expanduser(path)
        if not osp.isfile(path):
            raise UsageError(f'picture {path!r} does not exist')
        sample = dict(img_path=path, img_id=number, instances=[])
        if not loads:
            sample.update(_as_array(cfg, path))
        for step in walk(steps):
            if type_name(step) == 'LoadProposals':  # propose the whole image
                height, width = _read(path).shape[:2]
                sample['proposals'] = dict(
                    bboxes=np.array([[0, 0, width, height]], np.float32),
                    scores=np.ones(1, np.float32))
            elif type_name(step) == 'ApplyToList':
                key = step['scatter_key']
                sample[key] = [sample[key]]
            elif type_name(step) == 'PackReIDInputs':  # requires a label
                sample['gt_label'] = 0
        if frames:
            sample.update(frame_id=0, video_length=1)
            sample = {key: [value] for key, value in sample.items()}
        try:
            batch = collate([prepare(sample)])
        except Exception as error:
            _read(path)  # raises a clearer error if it is no image
            raise UsageError(
                f"{path!r} does not pass the config's pipeline "
                f'({", ".join(map(type_name, steps))}): '
                f'{type(error).__name__}: {error}') from error
        yield batch


def _as_array(cfg: Config, path: str) -> dict:
    """Read an image in the form of datasets of arrays: RGB and of one size."""
    channels = (cfg.model.get('backbone') or {}).get('in_channels', 3)
    if channels not in (1, 3):
        raise UsageError(
            f"the network takes {channels} channels and the config's pipeline "
            'loads no file: expected one that loads such pictures')
    height, width = picture_shape(cfg)
    picture = mmcv.imresize(_read(path), (width, height))
    picture = mmcv.bgr2gray(picture) if channels == 1 else picture[..., ::-1]
    return dict(img=picture, img_shape=(height, width),
                ori_shape=(height, width))


def _read(path: str) -> np.ndarray:
    """Read an image as (H, W, 3) uint8, BGR."""
    try:
        picture = mmcv.imread(path)
    except cv2.error:  # an empty file
        picture = None
    if picture is None:
        raise UsageError(f'{path!r} is no picture that OpenCV can read')
    return picture


def picture_shape(cfg: Config) -> Tuple[int, int]:
    """Find the height and width of the images that a network works on.

    They are those of resizing or cropping in the pipelines, or else of the
    first validation image, if it is there.

    Args:
        cfg (Config): Config of the network.

    Returns:
        tuple: Height and width in pixels; if unknown, the usual size for the
        host, (224, 224) for example, or (32, 32) for networks for CIFAR.
    """
    shape = shape_of_steps(cfg)
    if shape is not None:
        return shape
    try:
        if not downloads(cfg, loader_of(cfg)):
            batch = next(dataset_batches(cfg, 1))
            return tuple(_first_tensor(batch['inputs']).shape[-2:])
    except Exception:  # an error is reported when the data is needed
        pass
    backbone = cfg.model.get('backbone', {})
    return host_of(cfg, backbone.get('type')).picture_shape(backbone)


def _first_tensor(inputs: Any) -> Tensor:
    while not isinstance(inputs, Tensor):
        inputs = next(iter(
            inputs.values() if isinstance(inputs, Mapping) else inputs))
    return inputs


def _preparation(cfg: Config) -> Tuple[list, Callable]:
    """Return the pipeline for one image, and the function that batches it."""
    name = next((name for name in (
        'test_dataloader', 'val_dataloader', 'train_dataloader')
        if pipeline_of(cfg, name)), None)
    if name is None:
        raise UsageError('the config has no test_dataloader with a pipeline, '
                         'which says how pictures are prepared')
    enter_scope(cfg)
    # Files given on a command line have no labels.
    steps = without_labels(deepcopy(pipeline_of(cfg, name)))
    if name == 'train_dataloader' and any(map(loads_pictures, steps)):
        steps = plain_steps(steps, picture_shape(cfg))
    return steps, _collation(cfg[name].get('collate_fn'))


def _collation(config: Any) -> Callable:
    """Return the function of a loader's ``collate_fn``, as Runner does."""
    if config is None:
        return pseudo_collate
    if not isinstance(config, Mapping):
        return config
    function = class_of(config, FUNCTIONS)
    if function is None:
        raise UsageError(f'collate_fn.type={config.get("type")!r}: expected a '
                         "registered function such as 'default_collate'")
    return partial(function, **{
        key: value for key, value in config.items() if key != 'type'})


@torch.no_grad()
def network_inputs(model: nn.Module, batch: dict) -> Tensor:
    """Preprocess a batch as input for the backbone.

    Args:
        model (nn.Module): Model of any host.
        batch (dict): Batch from :func:`dataset_batches` or
            :func:`file_batches`.

    Returns:
        Tensor: (B, C, H, W), normalised images on the model's device. Views of
        an image and frames of a video count as images.

    Raises:
        UsageError: If images have different shapes after preprocessing.
    """
    host = host_of_model(model)
    return as_pictures(pictures_in(host.preprocess(model, batch)))


def pictures_in(data: dict) -> Any:
    """Return the images in a data_preprocessor's output, also next to text."""
    return data['inputs' if 'inputs' in data else 'images']


def as_pictures(inputs: Any) -> Tensor:
    """Join the inputs that a data_preprocessor returns into one tensor.

    Args:
        inputs (Any): A tensor, several tensors, or a dict with one such entry.

    Returns:
        Tensor: (B, C, H, W), see :func:`network_inputs`.

    Raises:
        UsageError: If images have different shapes.
    """
    if isinstance(inputs, Mapping):
        (inputs, ) = inputs.values()
    if isinstance(inputs, Tensor):
        return inputs.flatten(0, -4)
    pictures = [x[None] if x.dim() == 3 else x.flatten(0, -4) for x in inputs]
    shapes = sorted({tuple(x.shape[1:]) for x in pictures})
    if len(shapes) > 1:
        raise UsageError(
            f'pictures of {", ".join(map(str, shapes))} in a batch: expected '
            'one shape; take a batch size of 1')
    return torch.cat(pictures)
