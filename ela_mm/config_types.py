"""What ``type`` means in a config: a name, or a class in pure Python configs."""
import inspect
import re
from typing import Any, Callable, Optional

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
