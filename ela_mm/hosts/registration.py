"""Registers the installed hosts, and finds the host of a config or model."""
import sys
import warnings
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Dict, Iterable, Iterator, Optional, Tuple

from mmengine.config import Config
from mmengine.utils import get_object_from_string
from torch import nn

from ..errors import UsageError
from .host import Host

# Modules to import for each host, for their registrations; the first one has
# the object HOST. A host that others use comes before them.
HOSTS = dict(
    mmpretrain=('ela_mm.hosts.mmpretrain', 'ela_mm.hosts.mmpretrain_cifar',
                'ela_mm.hosts.mmpretrain_families',
                'ela_mm.hosts.mmpretrain_stages',
                'ela_mm.hosts.mmpretrain_more',
                'ela_mm.hosts.mmpretrain_masked',
                'ela_mm.datasets.mmpretrain'),
    mmdet=('ela_mm.hosts.mmdet', 'ela_mm.hosts.mmdet_families',
           'ela_mm.datasets.mmdet'),
    mmseg=('ela_mm.hosts.mmseg', 'ela_mm.hosts.mmseg_families',
           'ela_mm.datasets.mmseg'),
    mmpose=('ela_mm.hosts.mmpose', ))
_MMENGINE = Host()
_installed: Dict[str, Host] = {}
_failed: Dict[str, Exception] = {}


def register() -> None:
    """Register backbones and datasets with every installed host.

    A host that cannot be imported is left out, with a warning that says why.
    """
    for name in HOSTS:
        if name in _installed or find_spec(name) is None:
            continue
        try:
            register_host(name)
        except Exception as error:
            _failed[name] = error
            warnings.warn(
                f'ela_mm goes on without {name}, which cannot be imported: '
                f'{_reason(name)}. Once it can, '
                f'ela_mm.register_host({name!r}) adds what is missing',
                stacklevel=2)


def register_host(name: str) -> None:
    """Register backbones and datasets with a host.

    Importing :mod:`ela_mm` does this for all hosts. Call it for a host that
    could not be imported then, or that was installed later. Families of
    backbones that this version of the host lacks are left out, with a warning.

    Args:
        name (str): Name of the host: ``'mmdet'``, ``'mmpretrain'``,
            ``'mmseg'`` or ``'mmpose'``.

    Raises:
        UsageError: On another name.
        Exception: Whatever importing the host raises.
    """
    if name not in HOSTS:
        raise UsageError(f'no host is called {name!r}: expected one of '
                         f'{", ".join(HOSTS)}')
    with _hidden(other for other in _failed if other != name):
        first, *others = HOSTS[name]
        host = import_module(first)
        for module in others:
            _import_families(module)
    _installed[name] = host.HOST
    _failed.pop(name, None)


def _import_families(module: str) -> None:
    """Import a module; warn if it needs a class that the host lacks."""
    try:
        import_module(module)
    except ImportError as error:  # of another version of the host
        warnings.warn(f'ela_mm goes on without what {module} adds: {error}',
                      stacklevel=4)


@contextmanager
def _hidden(names: Iterable[str]) -> Iterator[None]:
    """Hide packages as if they were not installed.

    mmdet imports mmpretrain if it is installed. If that fails other than by an
    ImportError, mmdet would fail too.
    """
    names = set(names)
    hidden = {key: module for key, module in sys.modules.items()
              if key.split('.')[0] in names}
    for key in hidden:
        del sys.modules[key]
    sys.modules.update(dict.fromkeys(names))  # None: an ImportError
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(hidden)


def _reason(name: str) -> str:
    error = _failed[name]
    return f'{type(error).__name__}: {error}'


def installed() -> Tuple[Host, ...]:
    """List the hosts that are installed and can be imported."""
    return tuple(_installed.values())


def host_of(cfg: Config, kind: Any = None) -> Host:
    """Find the host of a config, or of a type in it.

    Args:
        cfg (Config): Config, whose ``default_scope`` decides if the type does
            not.
        kind (str | type, optional): Type, such as ``'mmdet.FasterRCNN'``.
            Defaults to the type of the config's model.

    Returns:
        Host: The host; the base class' object if no host is named.

    Raises:
        UsageError: If the host is not installed or cannot be imported.
    """
    if kind is None:
        kind = (cfg.get('model') or {}).get('type')
    scope, dot, _ = str(kind).partition('.')
    if isinstance(kind, str) and dot and scope not in HOSTS:
        kind = get_object_from_string(kind)  # a class, by its module
    if isinstance(kind, type):
        scope = _scope_of_class(kind)
    scope = scope if scope in HOSTS else None
    scope = scope or cfg.get('default_scope')
    if scope in HOSTS and scope not in _installed:
        what = ('is not installed: install it' if scope not in _failed else
                f'cannot be imported ({_reason(scope)}): mend that')
        raise UsageError(f'the config is one of {scope}, which {what}, or '
                         'take a config of '
                         f'{" or ".join(_installed) or "another host"}')
    return _installed.get(scope, _MMENGINE)


def host_of_model(model: nn.Module) -> Host:
    """Find the host of a model, by the base classes of its class.

    Args:
        model (nn.Module): Model of any host.

    Returns:
        Host: The host; the base class' object if it belongs to no host.
    """
    return _installed.get(_scope_of_class(type(model)), _MMENGINE)


def _scope_of_class(cls: type) -> Optional[str]:
    # The most basic class of a host counts: mmdet's ReID is a classifier of
    # mmpretrain.
    for ancestor in reversed(cls.__mro__):
        package = ancestor.__module__.split('.')[0]
        if package in _installed:
            return package
    return None
