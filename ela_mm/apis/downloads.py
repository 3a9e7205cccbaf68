"""Finds out what a config downloads, and explains failed downloads."""
import os.path as osp
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any, Dict, Iterator, List, Optional, Tuple
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner.checkpoint import (
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)

from ..errors import UsageError

# Errors of downloads: no name server, a proxy, a broken connection.
_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError)


def url_of(name: str) -> Optional[str]:
    """Find the URL that MMEngine downloads weights from.

    Args:
        name (str): Name of the weights, such as ``torchvision://resnet50``,
            ``open-mmlab://...`` or ``mmcls://...``, or the URL itself.

    Returns:
        str | None: The URL; None for an unknown name, a file, or what needs a
        client of its own, such as ``s3://``.
    """
    scheme, _, rest = name.partition('://')
    if scheme in ('http', 'https'):
        return name
    if scheme in ('torchvision', 'modelzoo'):
        return get_torchvision_models().get(rest)
    if scheme in ('open-mmlab', 'openmmlab'):
        rest = get_deprecated_model_names().get(rest, rest)
        url = get_external_models().get(rest)
        return url if url and '://' in url else None
    return get_mmcls_models().get(rest) if scheme == 'mmcls' else None


def cached_file(url: str) -> str:
    """Return the path at which torch keeps a download."""
    return osp.join(torch.hub.get_dir(), 'checkpoints',
                    osp.basename(urlparse(url).path))


def remote_weights(cfg: Config) -> Dict[str, str]:
    """List the weights that a training may download.

    Args:
        cfg (Config): Config of the training.

    Returns:
        Dict[str, str]: Names by path in the config, such as
        ``model.backbone.init_cfg.checkpoint``.
    """
    found = dict(_remote(cfg.get('model') or {}, 'model'))
    found.update(_remote(cfg.get('load_from'), 'load_from'))
    return found


def _remote(node: Any, place: str) -> Iterator[Tuple[str, str]]:
    if isinstance(node, str):
        if '://' in node:
            yield place, node
        return
    children = (node.items() if isinstance(node, dict) else enumerate(node)
                if isinstance(node, (list, tuple)) else ())
    for name, child in children:
        yield from _remote(child, f'{place}.{name}')


def remote_data(cfg: Config) -> Dict[str, Tuple[str, str]]:
    """List the datasets that can download themselves, such as CIFAR's.

    Args:
        cfg (Config): Config of the training.

    Returns:
        Dict[str, Tuple[str, str]]: URL and folder by path in the config.
    """
    found = {}
    with DATASETS.switch_scope_and_registry(
            cfg.get('default_scope')) as registry:
        for part in ('train', 'val', 'test'):
            dataset = (cfg.get(f'{part}_dataloader') or {}).get('dataset', {})
            kind = dataset.get('type')
            kind = registry.get(kind) if isinstance(kind, str) else kind
            url = getattr(kind, 'url', None)
            if isinstance(url, str):
                found[f'{part}_dataloader.dataset'] = (
                    url, dataset.get('data_root') or 'its data_root')
    return found


def weights_to_fetch(cfg: Config) -> List[str]:
    """Say what a training will download before its first step.

    Args:
        cfg (Config): Config of the training.

    Returns:
        List[str]: A clause for each name that is not downloaded yet.
    """
    return [f'{name} of {place} is not on this machine: the training downloads '
            'it, and ends where there is no network'
            for place, name in remote_weights(cfg).items()
            if url_of(name) is not None and not _is_cached(name)]


@contextmanager
def downloads_explained(cfg: Config, weights: bool = True) -> Iterator[None]:
    """Explain a failed download of weights or data within this context.

    Args:
        cfg (Config): Config of the training.
        weights (bool): Whether weights in the config are loaded. Defaults to
            True.

    Raises:
        UsageError: If a download fails; it names what is missing, its path in
            the config, and ways out.
    """
    try:
        yield
    except _ERRORS as error:
        ways = [_ways_out(name, place)
                for place, name in remote_weights(cfg).items()
                if weights and not _is_cached(name)]
        what = 'weights'
        if not ways:
            what = 'data'
            places: Dict[Tuple[str, str], str] = {}
            for place, source in remote_data(cfg).items():
                places.setdefault(source, place)  # name each download once
            ways = [f'{place}: download {url} elsewhere and unpack it in '
                    f'{folder}' for (url, folder), place in places.items()]
        if not ways:  # something else has failed
            raise
        raise UsageError(f'{what} cannot be downloaded ({_said(error)}); '
                         f'{"; ".join(ways)}') from error


@contextmanager
def download_explained(name: str) -> Iterator[None]:
    """Explain a failed download of a checkpoint within this context.

    Args:
        name (str): Name of the checkpoint that is loaded.

    Raises:
        UsageError: If the download fails; it names the checkpoint and ways out.
    """
    try:
        yield
    except _ERRORS as error:
        if '://' not in name or _is_cached(name):
            raise
        raise UsageError(f'the checkpoint cannot be downloaded '
                         f'({_said(error)}); {_ways_out(name)}') from error


def _said(error: Exception) -> str:
    return f'{type(error).__name__}: {getattr(error, "reason", error)}'


def _is_cached(name: str) -> bool:
    url = url_of(name)
    return url is not None and osp.isfile(cached_file(url))


def _ways_out(name: str, place: Optional[str] = None) -> str:
    url = url_of(name)
    ways = []
    if url is not None:
        ways.append(f'download {url} elsewhere and put it, under its name, '
                    f'into {osp.dirname(cached_file(url))}')
    if place is None:
        return f'{name!r}: {" or ".join([*ways, "name a file instead"])}'
    ways.append(f'name a file: --cfg-options {place}=FILE')
    start, found, _ = place.partition('.init_cfg')
    ways.append(('start from random weights' if place != 'load_from' else
                 'leave it out') + f': --cfg-options {start}{found}=None')
    return f'{name!r} of {place}: {", or ".join(ways)}'
