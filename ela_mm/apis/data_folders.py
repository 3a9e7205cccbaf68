"""Folders in which a dataset's config says that its pictures are."""
import json
import os.path as osp
import re
from collections.abc import Mapping
from typing import Any, Dict, List, Optional, Sequence, Tuple

from mmengine.registry import DATASETS, TRANSFORMS

from ..config_types import class_of, type_name
from ..hosts.registration import HOSTS

# What the hosts' datasets call folders of pictures, and of maps of labels.
_PICTURES = ('img', 'img_path', 'img_path2', 'sub_data_root')
_MAPS = ('seg', 'seg_map_path', 'depth_map_path')
_OF_HOSTS = ('mmengine', 'mmcv', 'ela_mm', *HOSTS)
# So much of a file of annotations is read for the first names in it.
_BEGINNING = 1 << 16
_NAME = re.compile(
    r'"(?:file_name|filename|img_path|image)"\s*:\s*("(?:[^"\\]|\\.)*")')


def is_remote(options: Mapping) -> bool:
    """Tell whether a dataset or a step reads from other storage than disks.

    Args:
        options (Mapping): Its config.

    Returns:
        bool: By ``backend_args``, or ``file_client_args`` of earlier versions.
    """
    return any((options.get(name) or {}).get('backend', 'local') not in (
        'local', 'disk') for name in ('backend_args', 'file_client_args'))


def prefixes_of(dataset: Mapping) -> Dict[str, str]:
    """The folders that a dataset's config names, by option.

    Args:
        dataset (Mapping): Its config.

    Returns:
        Dict[str, str]: Such as ``{'data_prefix.img': 'train2017/'}``; not yet
        joined with its ``data_root``.
    """
    prefix = dataset.get('data_prefix')
    if isinstance(prefix, str):  # as MMPretrain takes it
        return {'data_prefix': prefix} if prefix else {}
    return {f'data_prefix.{key}': value
            for key, value in (prefix or {}).items() if isinstance(value, str)}


def folders_of(dataset: Mapping, annotations: Sequence[str],
               steps: Sequence[dict]) -> List[Tuple[str, str]]:
    """The folders that have to be there for a dataset's pictures to be read.

    A folder may be missing where the host would not look into it: a class or a
    step of the user's own may read anything, and pictures that annotations name
    by whole paths need none. Such a dataset has no folder here.

    Args:
        dataset (Mapping): Its config.
        annotations (Sequence[str]): Paths of its files of annotations, which
            exist.
        steps (Sequence[dict]): Of its pipeline, nested ones included.

    Returns:
        List[Tuple[str, str]]: Option and path.
    """
    cls = class_of(dataset, DATASETS)
    if not _is_of_hosts(getattr(cls, 'load_data_list', None)) or not all(
            map(_names_within_folders, annotations)):
        return []
    root = dataset.get('data_root') or ''
    return [(option, osp.join(root, osp.expanduser(prefix)))
            for option, prefix in prefixes_of(dataset).items()
            if (root or prefix)  # else pictures lie where the run starts
            and _is_read(option.rpartition('.')[2], steps)]


def _is_read(key: str, steps: Sequence[dict]) -> bool:
    """Whether a step of a host reads files of this kind from a disk."""
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
    # MMDetection's LoadAnnotations loads boxes, unless it is told more.
    return 'Annotation' in name and bool(
        step.get('with_seg', key != 'seg' or 'Panoptic' in name))


def _is_of_hosts(thing: Any) -> bool:
    return getattr(thing, '__module__', '').split('.')[0] in _OF_HOSTS


def _names_within_folders(annotations: str) -> bool:
    """Whether a file of annotations is known to name no whole paths."""
    if osp.isdir(annotations):
        return True
    name = _first_name(annotations)
    return name is not None and not osp.isabs(name) and '://' not in name


def _first_name(path: str) -> Optional[str]:
    """The first picture that is named; None where none is found."""
    ending = osp.splitext(path)[1]
    if ending not in ('.json', '.jsonl', '.odgt', '.txt', '.csv'):
        return None
    try:
        with open(osp.expanduser(path), encoding='utf-8') as file:
            beginning = file.read(_BEGINNING)
    except (OSError, UnicodeDecodeError):  # whoever reads it will say so
        return None
    if ending in ('.txt', '.csv', '.odgt'):
        return beginning.lstrip().partition('\n')[0]
    found = _NAME.search(beginning)
    return found and json.loads(found[1])
