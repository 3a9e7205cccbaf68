"""Reads from a config what it says of data: datasets, pipelines, files, sizes.

Datasets may be within wrappers (repeated, balanced, concatenated, mixed, split
into folds), and steps of a pipeline within other steps. Nothing is built here.
"""
import inspect
import math
import os
import os.path as osp
import re
from collections.abc import Mapping
from typing import Any, Iterator, List, Optional, Tuple

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..config_types import class_of, datasets_within, enter_scope, type_name
from ..errors import UsageError
from ..hosts.registration import host_of
from .data_folders import folders_of, is_remote, prefixes_of

# Loaders in the order in which analyses look for images.
LOADERS = ('val_dataloader', 'test_dataloader', 'train_dataloader')


# --- datasets ----------------------------------------------------------------


def datasets_of(cfg: Config, loader: str) -> Iterator[Tuple[str, dict]]:
    """Find the datasets of a loader, without their wrappers.

    Args:
        cfg (Config): The whole config.
        loader (str): Name of the loader, such as ``'test_dataloader'``.

    Yields:
        Tuple[str, dict]: Path in the config and config of each dataset. Loaders
        and datasets that are built already are left out.
    """
    options = cfg.get(loader)
    if isinstance(options, Mapping):
        yield from datasets_within(options.get('dataset'), f'{loader}.dataset')


def pipelines_of(cfg: Config, loader: str) -> Iterator[list]:
    """Find the pipelines of a loader, those of datasets before wrappers.

    Args:
        cfg (Config): The whole config.
        loader (str): Name of the loader, such as ``'test_dataloader'``.

    Yields:
        list: A pipeline in the config, which may be changed in place.
    """
    for _, dataset in datasets_of(cfg, loader):
        if isinstance(dataset.get('pipeline'), list):
            yield dataset['pipeline']
    node = (cfg.get(loader) or {})
    wrappers = []
    while isinstance(node, Mapping):
        node = node.get('dataset')
        if isinstance(node, Mapping) and 'dataset' in node:
            wrappers.append(node)
    for wrapper in reversed(wrappers):
        if isinstance(wrapper.get('pipeline'), list):
            yield wrapper['pipeline']


def pipeline_of(cfg: Config, loader: str) -> List[dict]:
    """Find the steps that prepare the images of a loader.

    Args:
        cfg (Config): The whole config.
        loader (str): Name of the loader, such as ``'test_dataloader'``.

    Returns:
        List[dict]: Pipeline of the first dataset that has one, as in the
        config; empty without such a loader.
    """
    return next((steps for steps in pipelines_of(cfg, loader) if steps), [])


# --- steps -------------------------------------------------------------------


def walk(steps: Any) -> Iterator[dict]:
    """Yield every step and the steps within it, in order."""
    if isinstance(steps, Mapping):
        if 'type' in steps:
            yield steps
        steps = list(steps.values())
    if isinstance(steps, (list, tuple)):
        for step in steps:
            yield from walk(step)


def loads_pictures(step: Any) -> bool:
    """Return whether a step reads an image file."""
    return re.match(r'Load(?!.*(Annotation|Proposal))',
                    type_name(step)) is not None


def without_labels(steps: Any) -> Any:
    """Remove the loading of annotations from a pipeline, at any depth.

    Args:
        steps (Any): Pipeline; not changed.

    Returns:
        Any: The pipeline without these steps.
    """
    if isinstance(steps, Mapping):
        return type(steps)(
            (key, without_labels(value)) for key, value in steps.items())
    if isinstance(steps, (list, tuple)):
        return type(steps)(
            without_labels(step) for step in steps
            if not re.match('Load.*Annotation', type_name(step)))
    return steps


def plain_steps(steps: list, shape: Tuple[int, int]) -> list:
    """Remove augmentation from a training pipeline.

    Args:
        steps (list): Pipeline; not changed.
        shape (Tuple[int, int]): Height and width to resize images to.

    Returns:
        list: A pipeline that loads, resizes and packs; the pipeline itself if
        it does not begin by loading and end by packing.
    """
    loading = [x for x in steps if type_name(x).startswith('Load')]
    if not loading or not type_name(steps[-1]).startswith('Pack'):
        return steps
    height, width = shape
    return [*loading, dict(type='Resize', scale=(width, height)), steps[-1]]


def shape_of_steps(cfg: Config) -> Optional[Tuple[int, int]]:
    """Find the height and width that the pipelines of a config produce.

    Args:
        cfg (Config): The whole config, in which the pipeline for training comes
            first.

    Returns:
        tuple | None: Size in pixels of the last crop or resize that has one,
        the last of several sizes; None if there is none.
    """
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        steps = [x for steps in pipelines_of(cfg, loader) for x in walk(steps)]
        for step in reversed(steps):
            shape = _shape_of_step(step)
            if shape is not None:
                return shape
    return None


def _shape_of_step(step: dict) -> Optional[Tuple[int, int]]:
    kind = type_name(step)
    if 'Crop' in kind and 'crop_size' in step:
        if str(step.get('crop_type', '')).startswith('relative'):
            return None
        return _pair(step['crop_size'])
    if 'Resize' in kind:
        for key in ('scale', 'scales', 'size'):
            pair = _pair(step.get(key))
            if pair is not None:
                # Crops have (height, width), as has ``size`` of torchvision;
                # Resize has (width, height).
                return pair if key == 'size' else pair[::-1]
    return None


def _pair(size: Any) -> Optional[Tuple[int, int]]:
    """Return a size as two numbers of pixels; None if it is not one."""
    if isinstance(size, (list, tuple)) and size and isinstance(
            size[0], (list, tuple)):
        size = size[-1]  # the last of several sizes
    if isinstance(size, (int, float)):
        size = size, size
    if not isinstance(size, (list, tuple)) or not size:
        return None
    pair = (*size, *size)[:2]
    if not all(isinstance(x, (int, float)) and math.isfinite(x) and x >= 1
               for x in pair):
        return None
    return int(pair[0]), int(pair[1])


# --- files -------------------------------------------------------------------


def prepare_config(cfg: Config) -> Config:
    """Set defaults that the host's own tools would set.

    It has to be called last, since it keeps what the config or the user has
    set. ``~`` at the beginning of paths of loaders and evaluators is replaced
    by the home folder, which hosts do not do.

    Args:
        cfg (Config): Config, changed in place. Of the hosts, mmpretrain has
            such defaults, for data loaders.

    Returns:
        Config: The same config.
    """
    for name in list(cfg):
        if name.endswith(('_dataloader', '_evaluator')):
            _expand_home(cfg[name])
    host_of(cfg).prepare_config(cfg)
    return cfg


def _expand_home(node: Any) -> None:
    """Expand every text that begins as a path in a home folder, in place."""
    if isinstance(node, Mapping):
        places = list(node.items())
    elif isinstance(node, list):
        places = list(enumerate(node))
    else:
        return
    for place, value in places:
        if isinstance(value, tuple):
            node[place] = value = list(value) if any(
                isinstance(x, str) and x.startswith('~') for x in value
            ) else value
        if isinstance(value, str) and re.match(r'~[^/]*/', value):
            node[place] = osp.expanduser(value)
        else:
            _expand_home(value)


def downloads(cfg: Config, loader: str) -> bool:
    """Return whether building a loader's datasets may download something."""
    enter_scope(cfg)
    return any('download' in _arguments(class_of(dataset, DATASETS))
               for _, dataset in datasets_of(cfg, loader))


def _arguments(cls: Any) -> List[str]:
    try:
        return list(inspect.signature(cls).parameters)
    except (TypeError, ValueError):  # None, or one without a signature
        return []


def _brings_its_data(dataset: dict) -> bool:
    """Return whether a dataset makes or downloads data that is missing."""
    if is_remote(dataset):
        return True
    cls = class_of(dataset, DATASETS)
    if cls is None:  # building it will raise an error
        return True
    return getattr(cls, 'MAKES_ITS_DATA', False) or (
        'download' in _arguments(cls) and dataset.get('download', True))


def check_data(cfg: Config, *loaders: str, evaluators: bool = True) -> None:
    """Check that the data of some loaders exists, before models are built.

    Args:
        cfg (Config): The whole config.
        loaders (str): Names of loaders, such as ``train_dataloader``.
        evaluators (bool): Whether to check the files of their evaluators too.
            Defaults to True.

    Raises:
        UsageError: If something is missing; it names the first missing file or
            folder, and its option.
    """
    enter_scope(cfg)
    for loader in loaders:
        if cfg.get(loader) is None:
            continue  # then nothing is evaluated either
        local = True
        for path, dataset in datasets_of(cfg, loader):
            if _brings_its_data(dataset):
                local = False
                continue
            _check_dataset(dataset, path)
        if local and evaluators:
            _check_evaluator(cfg, loader.replace('dataloader', 'evaluator'))


def _check_dataset(dataset: dict, path: str) -> None:
    """Check root, annotations and folders of one dataset."""
    root = dataset.get('data_root') or ''
    annotations = _texts(dataset.get('ann_file'))
    prefixes = list(prefixes_of(dataset).values())
    # The root is not needed if all other paths are absolute.
    if not (annotations and prefixes and all(
            osp.isabs(osp.expanduser(x)) or '://' in x
            for x in (*annotations, *prefixes))):
        for place in _texts(root):
            _check_place(place, 'data_root', 'data_root', path)
    if isinstance(root, (list, tuple)):
        return
    annotations = [osp.join(root, osp.expanduser(x)) for x in annotations]
    for place in annotations:
        _check_place(place, 'ann_file', 'data_root', path)
    steps = list(walk(dataset.get('pipeline') or []))
    for option, place in folders_of(dataset, annotations, steps):
        _check_place(place, option, option, path)


def _check_place(place: str, option: str, other: str, path: str) -> None:
    """Raise a UsageError if a path does not exist.

    Args:
        place (str): Path to check.
        option (str): Option of the dataset that has the path.
        other (str): Option by which the user can change it.
        path (str): Path of the dataset in the config.
    """
    if _missing(place):
        raise UsageError(
            f'{place!r} does not exist ({path}.{option}): put the data there, '
            f'or point to it with --cfg-options {path}.{other}=FOLDER')


def _texts(value: Any) -> List[str]:
    """Return the paths in an option that takes one or several."""
    several = value if isinstance(value, (list, tuple)) else [value]
    return [str(x) for x in several if isinstance(x, (str, os.PathLike))
            and str(x)]


def _missing(place: str) -> bool:
    return '://' not in place and not osp.exists(osp.expanduser(place))


def _check_evaluator(cfg: Config, name: str) -> None:
    """Check the annotations of metrics, which MMDetection's have."""
    evaluators = cfg.get(name) or []
    if isinstance(evaluators, Mapping):  # for several datasets, or one metric
        metrics = evaluators.get('metrics')
        evaluators = metrics or [evaluators]
    for evaluator in (
            evaluators if isinstance(evaluators, (list, tuple)) else []):
        if not isinstance(evaluator, Mapping):
            continue  # a metric that is built already
        for option in ('ann_file', 'seg_prefix'):  # the latter: panoptic maps
            for place in _texts(evaluator.get(option)):
                if _missing(place):
                    raise UsageError(
                        f'{place!r} does not exist ({name}.{option}): point to '
                        f'it with --cfg-options {name}.{option}=PATH')
