"""What a config says of its data: datasets, pipelines, files, sizes.

Datasets stand within wrappers (repeated, balanced, concatenated, mixed, split
into folds), steps of a pipeline within steps. Nothing is built here.
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

# Loaders in the order in which an analysis looks for its pictures.
LOADERS = ('val_dataloader', 'test_dataloader', 'train_dataloader')


# --- datasets ----------------------------------------------------------------


def datasets_of(cfg: Config, loader: str) -> Iterator[Tuple[str, dict]]:
    """The datasets of a loader, without their wrappers.

    Args:
        cfg (Config): The whole config.
        loader (str): Such as ``'test_dataloader'``.

    Yields:
        Tuple[str, dict]: Place in the config, and config; nothing of a loader
        or a dataset that is built already.
    """
    options = cfg.get(loader)
    if isinstance(options, Mapping):
        yield from datasets_within(options.get('dataset'), f'{loader}.dataset')


def pipelines_of(cfg: Config, loader: str) -> Iterator[list]:
    """The pipelines of a loader, the datasets' before the wrappers'.

    Args:
        cfg (Config): The whole config.
        loader (str): Such as ``'test_dataloader'``.

    Yields:
        list: The config's own, which may be changed in place.
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
    """The steps that prepare a loader's pictures.

    Args:
        cfg (Config): Of a detector, a classifier or a segmentor.
        loader (str): Such as ``'test_dataloader'``.

    Returns:
        List[dict]: Those of the first dataset that has any, as the config has
        them; empty without such a loader.
    """
    return next((steps for steps in pipelines_of(cfg, loader) if steps), [])


# --- steps -------------------------------------------------------------------


def walk(steps: Any) -> Iterator[dict]:
    """Every step and those within it, in order."""
    if isinstance(steps, Mapping):
        if 'type' in steps:
            yield steps
        steps = list(steps.values())
    if isinstance(steps, (list, tuple)):
        for step in steps:
            yield from walk(step)


def loads_pictures(step: Any) -> bool:
    """Tell whether a step reads a picture's file."""
    return re.match(r'Load(?!.*(Annotation|Proposal))',
                    type_name(step)) is not None


def without_labels(steps: Any) -> Any:
    """Leave out, at any depth, what reads more than the picture.

    Args:
        steps (Any): A pipeline; not changed.

    Returns:
        Any: The same without loading of annotations.
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
    """Leave out of a training pipeline what changes pictures by chance.

    Args:
        steps (list): A pipeline; not changed.
        shape (Tuple[int, int]): Height and width that its pictures get.

    Returns:
        list: Loading, resizing and packing; the pipeline itself, if it does
        not begin with one and end with the other.
    """
    loading = [x for x in steps if type_name(x).startswith('Load')]
    if not loading or not type_name(steps[-1]).startswith('Pack'):
        return steps
    height, width = shape
    return [*loading, dict(type='Resize', scale=(width, height)), steps[-1]]


def shape_of_steps(cfg: Config) -> Optional[Tuple[int, int]]:
    """Height and width that the pipelines of a config end with.

    Args:
        cfg (Config): Whose training pictures come before others.

    Returns:
        tuple | None: What the last crop or resize says that says a size in
        pixels, of several sizes the last; None where nothing does.
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
                # Crops say (height, width), Resize says (width, height); what
                # torchvision calls size is (height, width).
                return pair if key == 'size' else pair[::-1]
    return None


def _pair(size: Any) -> Optional[Tuple[int, int]]:
    """Two numbers of pixels; None if they are none."""
    if isinstance(size, (list, tuple)) and size and isinstance(
            size[0], (list, tuple)):
        size = size[-1]  # of several, the last
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
    """Set the defaults that the host's configs expect of its own tools.

    Call it last: what the config or the user has set stays. ``~`` at the
    beginning of a path of a loader or an evaluator becomes the home folder,
    which hosts leave as it is.

    Args:
        cfg (Config): Changed in place, if its host has such defaults:
            mmpretrain's dataloaders have.

    Returns:
        Config: The same.
    """
    for name in list(cfg):
        if name.endswith(('_dataloader', '_evaluator')):
            _expand_home(cfg[name])
    host_of(cfg).prepare_config(cfg)
    return cfg


def _expand_home(node: Any) -> None:
    """Expand, in place, every text that starts as a path in a home folder."""
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
    """Tell whether building a loader's datasets might download something."""
    enter_scope(cfg)
    return any('download' in _arguments(class_of(dataset, DATASETS))
               for _, dataset in datasets_of(cfg, loader))


def _arguments(cls: Any) -> List[str]:
    try:
        return list(inspect.signature(cls).parameters)
    except (TypeError, ValueError):  # None, or one without a signature
        return []


def _brings_its_data(dataset: dict) -> bool:
    """Whether a dataset makes, downloads or fetches what it does not find."""
    if is_remote(dataset):
        return True
    cls = class_of(dataset, DATASETS)
    if cls is None:  # building it will say so
        return True
    return getattr(cls, 'MAKES_ITS_DATA', False) or (
        'download' in _arguments(cls) and dataset.get('download', True))


def check_data(cfg: Config, *loaders: str, evaluators: bool = True) -> None:
    """Check that the data of some loaders is there, before models are built.

    Args:
        cfg (Config): The whole config.
        loaders (str): Names such as ``train_dataloader``.
        evaluators (bool): Whether their evaluators' files are needed too.
            Defaults to True.

    Raises:
        UsageError: Naming the first missing file or folder and its option.
    """
    enter_scope(cfg)
    for loader in loaders:
        if cfg.get(loader) is None:
            continue  # nothing is evaluated either
        local = True
        for path, dataset in datasets_of(cfg, loader):
            if _brings_its_data(dataset):
                local = False
                continue
            _check_dataset(dataset, path)
        if local and evaluators:
            _check_evaluator(cfg, loader.replace('dataloader', 'evaluator'))


def _check_dataset(dataset: dict, path: str) -> None:
    """Check the root, the annotations, the folders of one dataset."""
    root = dataset.get('data_root') or ''
    annotations = _texts(dataset.get('ann_file'))
    prefixes = list(prefixes_of(dataset).values())
    # Nothing is looked for in the root where all else is said in full.
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
    """Raise a UsageError with the option that points to another place."""
    if _missing(place):
        raise UsageError(
            f'{place!r} does not exist ({path}.{option}): put the data there, '
            f'or point to it with --cfg-options {path}.{other}=FOLDER')


def _texts(value: Any) -> List[str]:
    """The paths of an option that takes one or several."""
    several = value if isinstance(value, (list, tuple)) else [value]
    return [str(x) for x in several if isinstance(x, (str, os.PathLike))
            and str(x)]


def _missing(place: str) -> bool:
    return '://' not in place and not osp.exists(osp.expanduser(place))


def _check_evaluator(cfg: Config, name: str) -> None:
    """MMDetection's metrics have annotations of their own."""
    evaluators = cfg.get(name) or []
    if isinstance(evaluators, Mapping):  # of several datasets, or a metric
        metrics = evaluators.get('metrics')
        evaluators = metrics or [evaluators]
    for evaluator in (
            evaluators if isinstance(evaluators, (list, tuple)) else []):
        if not isinstance(evaluator, Mapping):
            continue  # built already
        for option in ('ann_file', 'seg_prefix'):  # the latter of panoptic maps
            for place in _texts(evaluator.get(option)):
                if _missing(place):
                    raise UsageError(
                        f'{place!r} does not exist ({name}.{option}): point to '
                        f'it with --cfg-options {name}.{option}=PATH')
