"""Explains options of a config that a class does not have."""
import inspect
import re
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Callable, Iterator, List, Optional, Tuple

from mmengine.registry import Registry, root

from ..config_types import class_of
from ..errors import UsageError

# Python names the class from 3.10 on.
_UNEXPECTED = re.compile(
    r"(?:(\w+)\.)?\w+\(\) got an unexpected keyword argument '(\w+)'")
_REGISTRIES = [x for x in vars(root).values() if type(x) is Registry]


@contextmanager
def options_explained(config: Any, path: str = '') -> Iterator[None]:
    """Name the option of a config that a class does not have.

    Args:
        config (Any): Config that is built in this context.
        path (str): Path of ``config`` in the whole config. Defaults to ``''``.

    Raises:
        UsageError: Instead of the TypeError, if its cause is found in the
            config. It says the option, the class, and near names or all.
    """
    try:
        yield
    except TypeError as error:
        found = _UNEXPECTED.search(str(error))
        told = found and _explain(config, path, *found.groups())
        if not told:
            raise
        raise UsageError(told) from error


def _explain(config: Any, path: str, owner: Optional[str],
             option: str) -> Optional[str]:
    for place, node in _nodes_with(config, option, path):
        for registry in _REGISTRIES:
            kind = class_of(node, registry)
            known = kind and options_of(kind)
            if not known or option in known or (
                    owner and owner not in _names(kind)):
                continue
            near = get_close_matches(option, known)
            expected = (f'did you mean {" or ".join(map(repr, near))}?'
                        if near else f'expected {", ".join(known)}')
            return (f'{place}{option}={node[option]!r}: {kind.__name__} has no '
                    f'such option; {expected}')
    return None


def _nodes_with(node: Any, option: str, path: str) -> Iterator[Tuple[str, dict]]:
    """Find the configs that set an option of what they build."""
    if isinstance(node, dict):
        if 'type' in node and option in node:
            yield path, node
        members = node.items()
    elif isinstance(node, (list, tuple)):
        members = enumerate(node)
    else:
        return
    for name, member in members:
        yield from _nodes_with(member, option, f'{path}{name}.')


def _names(kind: Callable) -> List[str]:
    return [base.__name__ for base in getattr(kind, '__mro__', [kind])]


def options_of(kind: Callable) -> List[str]:
    """List the options of a class, or of a function, by name.

    Args:
        kind (Callable): The class or function.

    Returns:
        List[str]: Names. Where ``__init__`` takes ``**kwargs``, those of the
        base class follow, which they are handed on to.
    """
    names: List[str] = []
    for base in getattr(kind, '__mro__', [None]):
        if base is not None and '__init__' not in vars(base):
            continue
        parameters = inspect.signature(
            kind if base is None else base.__init__).parameters.values()
        names += [x.name for x in parameters if x.name != 'self' and x.kind in (
            x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY)]
        if not any(x.kind is x.VAR_KEYWORD for x in parameters):
            break
    return list(dict.fromkeys(names))
