"""What a config's entries are: types by name or class, datasets in wrappers."""
import inspect
import re
from collections.abc import Mapping
from typing import Any, Callable, Iterator, Optional, Tuple

from mmengine.config import Config
from mmengine.registry import Registry, init_default_scope


def type_name(config: Any) -> str:
    """Name what a config builds, without scope and modules.

    Args:
        config (dict | Any): With a ``type``: a name such as
            ``'mmdet.ResNet'``, as a registry or a dumped config has it, a
            class or a function; or an object that is built already.

    Returns:
        str: ``'ResNet'``; empty without a type.
    """
    kind = config.get('type') if isinstance(config, dict) else type(config)
    if kind is None:
        return ''
    return re.split(r'[./]', getattr(kind, '__name__', str(kind)))[-1]


def class_of(config: dict, registry: Registry) -> Optional[Callable]:
    """Find the class or function that a config builds or calls.

    Args:
        config (dict): With a ``type``.
        registry (Registry): Knows the names, in the default scope.

    Returns:
        Callable | None: None where the name is not known, or there is none.
    """
    kind = config.get('type')
    if not isinstance(kind, str):
        return kind if inspect.isclass(kind) or callable(kind) else None
    with registry.switch_scope_and_registry(None) as current:
        return current.get(kind)


def enter_scope(cfg: Config) -> None:
    """Let names without a scope be those of the config's ``default_scope``.

    Args:
        cfg (Config): Without the key, mmengine's names are meant. None, as
            pure Python configs have it, leaves each registry to itself: a
            host's classes find what they build by name in the host's own.
    """
    scope = cfg.get('default_scope', 'mmengine')
    if scope is not None:
        init_default_scope(scope)


def datasets_within(node: Any, path: str = '') -> Iterator[Tuple[str, dict]]:
    """Find the datasets that wrappers hold, one within the other.

    Args:
        node (Any): A dataset, or several as a list or by name.
        path (str): Its place in the config.

    Yields:
        Tuple[str, dict]: Place and config of each innermost dataset; nothing of
        one that is built already.
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
