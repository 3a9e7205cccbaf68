"""Finds the folders of images that a dataset's config names."""
import json
import os.path as osp
import re
from collections.abc import Mapping
from typing import Any, Dict, List, Optional, Sequence, Tuple

from mmengine.registry import DATASETS, TRANSFORMS

from ..config_types import class_of, type_name
from ..hosts.registration import HOSTS

# Names of folders of images, and of label maps, in the hosts' datasets.
_PICTURES = ('img', 'img_path', 'img_path2', 'sub_data_root')
_MAPS = ('seg', 'seg_map_path', 'depth_map_path')
_OF_HOSTS = ('mmengine', 'mmcv', 'ela_mm', *HOSTS)
# Number of characters of an annotation file that are searched for a name.
_BEGINNING = 1 << 16
_NAME = re.compile(
    r'"(?:file_name|filename|img_path|image)"\s*:\s*("(?:[^"\\]|\\.)*")')


def is_remote(options: Mapping) -> bool:
    """Return whether a dataset or step reads from remote storage.

    Args:
        options (Mapping): Config of the dataset or step.

    Returns:
        bool: Whether ``backend_args``, or ``file_client_args`` of earlier
        versions, name another backend than disks.
    """
    return any((options.get(name) or {}).get('backend', 'local') not in (
        'local', 'disk') for name in ('backend_args', 'file_client_args'))


def prefixes_of(dataset: Mapping) -> Dict[str, str]:
    """Return the folders that a dataset's config names.

    Args:
        dataset (Mapping): Config of the dataset.

    Returns:
        Dict[str, str]: Folders by option, such as
        ``{'data_prefix.img': 'train2017/'}``, not joined with ``data_root``.
    """
    prefix = dataset.get('data_prefix')
    if isinstance(prefix, str):  # MMPretrain's form
        return {'data_prefix': prefix} if prefix else {}
    return {f'data_prefix.{key}': value
            for key, value in (prefix or {}).items() if isinstance(value, str)}


def folders_of(dataset: Mapping, annotations: Sequence[str],
               steps: Sequence[dict]) -> List[Tuple[str, str]]:
    """Return the folders that have to exist for a dataset to be read.

    Folders that may be missing are left out: a class or step of the user's own
    may read anything, and images with absolute paths in the annotations need no
    folder.

    Args:
        dataset (Mapping): Config of the dataset.
        annotations (Sequence[str]): Paths of its annotation files, which exist.
        steps (Sequence[dict]): Steps of its pipeline, nested ones included.

    Returns:
        List[Tuple[str, str]]: Option and path of each folder.
    """
    cls = class_of(dataset, DATASETS)
    if not _is_of_hosts(getattr(cls, 'load_data_list', None)) or not all(
            map(_names_within_folders, annotations)):
        return []
    root = dataset.get('data_root') or ''
    return [(option, osp.join(root, osp.expanduser(prefix)))
            for option, prefix in prefixes_of(dataset).items()
            if (root or prefix)  # else images are in the current folder
            and _is_read(option.rpartition('.')[2], steps)]


def _is_read(key: str, steps: Sequence[dict]) -> bool:
    """Return whether a step of a host reads files of this kind from disk."""
    if key in _MAPS:
        reading = [x for x in steps if _loads_maps(x, key)]
    elif key in (*_PICTURES, 'data_prefix'):
        reading = [x for x in steps if re.match(
            r'Load.*Image.*From.*File', type_name(x))]
    else:
        return False
    return bool(reading) and all(
        _is_of_hosts(class_of(x, TRANSFORMS)) and not is_remote(x)
        for x in reading)


def _loads_maps(step: dict, key: str) -> bool:
    name = type_name(step)
    # By default, MMDetection's LoadAnnotations loads no maps.
    return 'Annotation' in name and bool(
        step.get('with_seg', key != 'seg' or 'Panoptic' in name))


def _is_of_hosts(thing: Any) -> bool:
    return getattr(thing, '__module__', '').split('.')[0] in _OF_HOSTS


def _names_within_folders(annotations: str) -> bool:
    """Return whether an annotation file is known to have relative paths."""
    if osp.isdir(annotations):
        return True
    name = _first_name(annotations)
    return name is not None and not osp.isabs(name) and '://' not in name


def _first_name(path: str) -> Optional[str]:
    """Return the first image name in an annotation file; None if unknown."""
    ending = osp.splitext(path)[1]
    if ending not in ('.json', '.jsonl', '.odgt', '.txt', '.csv'):
        return None
    try:
        with open(osp.expanduser(path), encoding='utf-8') as file:
            beginning = file.read(_BEGINNING)
    except (OSError, UnicodeDecodeError):  # reading it will raise an error
        return None
    if ending in ('.txt', '.csv', '.odgt'):
        return beginning.lstrip().partition('\n')[0]
    found = _NAME.search(beginning)
    return found and json.loads(found[1])
