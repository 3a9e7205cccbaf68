"""Builds a scheme of sparse training from a config."""
import inspect
from typing import Dict, Optional, Type

from ..errors import UsageError
from .random_masks import ERK, Uniform
from .rigl import RigL
from .scheme import Scheme
from .snip import SNIP

# Keys are the names used in configs: ``scheme=dict(type=name)``.
SCHEMES: Dict[str, Type[Scheme]] = dict(
    ERK=ERK, uniform=Uniform, SNIP=SNIP, RigL=RigL)


def build_scheme(cfg: Optional[dict] = None) -> Scheme:
    """Build a scheme, which chooses masks.

    Args:
        cfg (dict, optional): ``type`` and parameters of the scheme. Defaults to
            ``dict(type='ERK')``.

    Returns:
        Scheme: The scheme.

    Raises:
        UsageError: On an unknown type, or wrong parameters.
    """
    if cfg is not None and not isinstance(cfg, dict):
        raise UsageError(f'scheme={cfg!r}: expected a dict with a type, such '
                         "as dict(type='ERK')")
    options = dict(cfg or dict(type='ERK'))
    name = options.pop('type', None)
    if name not in SCHEMES:
        raise UsageError(f'scheme of type {name!r}: expected one of '
                         f'{", ".join(SCHEMES)}')
    cls = SCHEMES[name]
    try:
        inspect.signature(cls).bind(**options)
    except TypeError as error:
        known = ', '.join(inspect.signature(cls).parameters) or 'no parameters'
        raise UsageError(
            f'scheme {name}: {error}; it takes {known}') from None
    return cls(**options)
