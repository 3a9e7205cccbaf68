"""The hosts that are installed, and whose a config or a model is."""
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Dict, Optional, Tuple

from mmengine.config import Config
from torch import nn

from ..errors import UsageError
from .host import Host

# Modules to import for their registrations, by host; the first holds its HOST.
HOSTS = dict(
    mmdet=('ela_mm.hosts.mmdet', 'ela_mm.datasets.mmdet'),
    mmpretrain=('ela_mm.hosts.mmpretrain', 'ela_mm.hosts.mmpretrain_cifar',
                'ela_mm.datasets.mmpretrain'))
_MMENGINE = Host()
_installed: Dict[str, Host] = {}


def register() -> None:
    """Register backbones and datasets with every installed host."""
    for name, modules in HOSTS.items():
        if find_spec(name) is not None:
            host, *_ = [import_module(module) for module in modules]
            _installed[name] = host.HOST


def installed() -> Tuple[Host, ...]:
    """List the hosts whose packages are installed."""
    return tuple(_installed.values())


def host_of(cfg: Config, kind: Any = None) -> Host:
    """Find out whose a config is, or what one of its types names.

    Args:
        cfg (Config): Whose ``default_scope`` decides where a type does not.
        kind (str | type, optional): ``'mmdet.FasterRCNN'`` is of mmdet in any
            scope. Defaults to the type of the config's model.

    Returns:
        Host: That of mmengine where no host is named.

    Raises:
        UsageError: If the host is not installed.
    """
    if kind is None:
        kind = (cfg.get('model') or {}).get('type')
    if isinstance(kind, type):
        scope = _scope_of_class(kind)
    else:
        scope, dot, _ = str(kind).partition('.')
        scope = scope if dot and scope in HOSTS else None
    scope = scope or cfg.get('default_scope')
    if scope in HOSTS and scope not in _installed:
        raise UsageError(f'the config is one of {scope}, which is not '
                         'installed: install it, or take a config of '
                         f'{" or ".join(_installed) or "another host"}')
    return _installed.get(scope, _MMENGINE)


def host_of_model(model: nn.Module) -> Host:
    """Find out whose model it is, by the classes that its own inherits from.

    Args:
        model (nn.Module): A detector or a classifier.

    Returns:
        Host: That of mmengine for a class of no host.
    """
    return _installed.get(_scope_of_class(type(model)), _MMENGINE)


def _scope_of_class(cls: type) -> Optional[str]:
    # The oldest ancestor that a host has: mmdet's ReID is a classifier.
    for ancestor in reversed(cls.__mro__):
        package = ancestor.__module__.split('.')[0]
        if package in _installed:
            return package
    return None
