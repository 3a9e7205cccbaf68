"""Interprets entries of configs: types by name or class, wrapped datasets."""
import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any, Callable, Iterator, Optional, Tuple

from mmengine.config import Config
from mmengine.registry import Registry, init_default_scope


def type_name(config: Any) -> str:
    """Return the name of what a config builds, without scope and modules.

    Args:
        config (dict | Any): Config whose ``type`` is a name such as
            ``'mmdet.ResNet'``, a class or a function; or an object that is
            built already.

    Returns:
        str: Name, such as ``'ResNet'``; empty without a type.
    """
    kind = config.get('type') if isinstance(config, dict) else type(config)
    if kind is None:
        return ''
    return re.split(r'[./]', getattr(kind, '__name__', str(kind)))[-1]


def class_of(config: dict, registry: Registry) -> Optional[Callable]:
    """Find the class or function that a config refers to.

    Args:
        config (dict): Config with a ``type``.
        registry (Registry): Registry to look names up in, in the default scope.

    Returns:
        Callable | None: The class or function; None if the name is unknown, or
        if there is no type.
    """
    kind = config.get('type')
    if not isinstance(kind, str):
        return kind if inspect.isclass(kind) or callable(kind) else None
    with registry.switch_scope_and_registry(None) as current:
        return current.get(kind)


def imports_package(cfg: Config) -> bool:
    """Return whether a config imports this package wherever it is read.

    This package's tools import it anyway; those of the hosts do not.

    Args:
        cfg (Config): Config that has been read, its imports included.

    Returns:
        bool: True if ``custom_imports`` names this package or a module that
        imports it, or if types are classes, as in pure Python configs.
    """
    package = __name__.partition('.')[0]

    def is_own(name: Any) -> bool:
        return isinstance(name, str) and name.partition('.')[0] == package

    if cfg.get('default_scope', '') is None or not isinstance(
            (cfg.model.get('backbone') or {}).get('type', ''), str):
        return True
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    names = [imports] if isinstance(imports, str) else imports
    return any(
        is_own(name) or any(
            is_own(getattr(x, '__module__', getattr(x, '__name__', None)))
            for x in vars(sys.modules.get(name, object)).values())
        for name in names)


def enter_scope(cfg: Config) -> None:
    """Make names without a scope refer to the config's ``default_scope``.

    Args:
        cfg (Config): Config. Without the key, the scope is mmengine's. If it is
            None, as in pure Python configs, no scope is set: the classes of a
            host then look names up in the host's own registries.
    """
    scope = cfg.get('default_scope', 'mmengine')
    if scope is not None:
        init_default_scope(scope)


def datasets_within(node: Any, path: str = '') -> Iterator[Tuple[str, dict]]:
    """Find the innermost datasets within (nested) dataset wrappers.

    Args:
        node (Any): Config of a dataset, or several as a list or by name.
        path (str): Path of ``node`` in the config. Defaults to ``''``.

    Yields:
        Tuple[str, dict]: Path and config of each innermost dataset. Datasets
        that are built already are left out.
    """
    if isinstance(node, (list, tuple)):
        for i, member in enumerate(node):
            yield from datasets_within(member, f'{path}.{i}')
    elif isinstance(node, Mapping):
        within = [key for key in ('dataset', 'datasets')
                  if isinstance(node.get(key), (Mapping, list, tuple))]
        for key in within:
            yield from datasets_within(node[key], f'{path}.{key}')
        if not within and 'type' in node:
            yield path, node
        elif not within:  # several by name
            for name, member in node.items():
                yield from datasets_within(member, f'{path}.{name}')
