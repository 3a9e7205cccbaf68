"""The kinds of attention, by the name that a config gives."""
from typing import Any, Callable, Dict, Optional, Type

from ....errors import UsageError
from .stage import Stage

#: The classes of stage, by name.
ATTENTION: Dict[str, Type[Stage]] = {}


def register_attention(name: str) -> Callable[[Type[Stage]], Type[Stage]]:
    """Offer a class of stage as ``attention=name``.

    Args:
        name (str): New among :data:`ATTENTION`.

    Returns:
        Callable: A decorator of the class.
    """

    def register(kind: Type[Stage]) -> Type[Stage]:
        ATTENTION[name] = kind
        return kind

    return register


def attention_kind(
        name: Optional[str],
        options: Dict[str, Any],
        kinds: Dict[str, Type[Stage]] = ATTENTION) -> Optional[Type[Stage]]:
    """Find the class of stage that a backbone is to have.

    Args:
        name (str, optional): None for the host's plain stages.
        options (Dict[str, Any]): What the user gave beside it.
        kinds (Dict[str, Type[Stage]]): Those that the backbone's family
            offers. Defaults to :data:`ATTENTION`.

    Returns:
        Type[Stage] | None: None for the host's plain stages.

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
