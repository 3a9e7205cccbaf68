"""The registry of kinds of attention, by their name in configs."""
from typing import Any, Callable, Dict, Optional, Type

from ....errors import UsageError
from .stage import Stage

#: Stage classes by the value of ``attention`` that selects them.
ATTENTION: Dict[str, Type[Stage]] = {}


def register_attention(name: str) -> Callable[[Type[Stage]], Type[Stage]]:
    """Register a stage class as ``attention=name``.

    Args:
        name (str): Name of the kind; a registered one is replaced.

    Returns:
        Callable: A decorator for the class.
    """

    def register(kind: Type[Stage]) -> Type[Stage]:
        ATTENTION[name] = kind
        return kind

    return register


def attention_kind(
        name: Optional[str],
        options: Dict[str, Any],
        kinds: Dict[str, Type[Stage]] = ATTENTION) -> Optional[Type[Stage]]:
    """Find the stage class for the ``attention`` of a backbone.

    Args:
        name (str, optional): Value of ``attention``.
        options (Dict[str, Any]): Options of attention that the user gave.
        kinds (Dict[str, Type[Stage]]): Kinds that the family of the backbone
            offers. Defaults to :data:`ATTENTION`.

    Returns:
        Type[Stage] | None: The class; None if ``name`` is None, for the host's
        plain stages.

    Raises:
        UsageError: On a name that the family does not offer, or an option
            that the kind lacks.
    """
    if name is not None and name not in kinds:
        raise UsageError(f'attention={name!r}: expected one of '
                         f'{(*kinds, None)}')
    kind = None if name is None else kinds[name]
    for option, value in options.items():
        if kind is None or option not in kind.options:
            having = [repr(n) for n, k in kinds.items()
                      if option in k.options]
            raise UsageError(
                f'attention={name!r} knows no {option} (given: {value!r}): it '
                f'is an option of {", ".join(having) or "other backbones"}')
    return kind
