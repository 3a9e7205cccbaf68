"""Registers the criteria with mmengine, where the configs of all hosts look.

Users make a function of their own a criterion by
``@mmengine.registry.FUNCTIONS.register_module()``;
:mod:`ela_mm.pruning.criteria` says what it takes and returns.
"""
from typing import Any, Callable, Optional

from mmengine.config import ConfigDict
from mmengine.registry import FUNCTIONS

from ..errors import UsageError
from .criteria import CRITERIA, Criterion
from .ebqm import ebqm

for _name, _function in CRITERIA.items():
    FUNCTIONS.register_module(name=_name, module=_function, force=True)


def build_criterion(config: Optional[dict] = None) -> Criterion:
    """Build a criterion from its config.

    Args:
        config (dict, optional): ``type`` and the parameters of the criterion.
            Defaults to ``dict(type='EBQM')``.

    Returns:
        Criterion: The criterion, its parameters checked and defaults filled
        in.

    Raises:
        UsageError: On an unknown type or wrong parameters.
    """
    if config is not None and not isinstance(config, dict):
        raise UsageError(f'criterion={config!r}: expected a dict with a type, '
                         "such as dict(type='EBQM', mu=0.2)")
    config = dict(config or dict(type='EBQM'))
    for key, value in config.items():
        if isinstance(value, ConfigDict):  # records and checkpoints hold dicts
            config[key] = value.to_dict()
    kind = config.pop('type', None)
    function = FUNCTIONS.get(kind) if isinstance(kind, str) else kind
    if not callable(function):
        raise UsageError(
            f'unknown criterion {kind!r}: expected one of '
            f'{", ".join(CRITERIA)}, or a function registered in '
            'mmengine.registry.FUNCTIONS')
    if function is ebqm:
        function = CRITERIA['EBQM']  # decides alike, and returns scores too
    return Criterion(_name(kind, function), function, **config)


def _name(kind: Any, function: Callable) -> str:
    """Find the registered name, which records keep, of a type in a config."""
    registered = (name for name, known in FUNCTIONS.module_dict.items()
                  if known is function)
    own = kind if isinstance(kind, str) else function.__name__
    return own if own in FUNCTIONS.module_dict else next(registered, own)
