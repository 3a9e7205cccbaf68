"""The house keeps its order: imports run downward, hosts stay in hosts/."""
import ast
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Set, Tuple

import networkx
import pytest
from support import ROOT

# From the top floor down; a room imports from its own floor and those below.
FLOORS = (
    ('tools', 'dev', 'cli', 'run'),
    ('analysis', 'experiments'),
    ('apis', ),
    ('hosts', 'engine'),
    ('models', 'pruning', 'sparsity'),
    ('compat', 'config_types', 'datasets', 'errors', 'plotting', 'timing', 'version'),
)
FLOOR = {room: -i for i, rooms in enumerate(FLOORS) for room in rooms}
FLOOR[''] = 0  # the entrance, which brings its own rooms along
# Where a host's name may be asked for.
HOST_ROOMS = ('hosts', 'datasets', 'dev')


class Import(NamedTuple):
    """One file imports another; both are paths below the root."""
    source: Path
    target: Path

    def __str__(self) -> str:
        return f'{self.source} -> {self.target}'


def files(root: Path) -> List[Path]:
    """Of the package and what stands on it, below the root."""
    return sorted(
        path.relative_to(root) for folder in ('ela_mm', 'tools', 'dev')
        for path in (root / folder).rglob('*.py') if '.mim' not in path.parts)


def room(path: Path) -> str:
    """``ela_mm/engine/ranks.py`` is in ``engine``; the entrance in ``''``."""
    if path.parts[0] != 'ela_mm':
        return path.parts[0]
    return '' if path.name == '__init__.py' and len(
        path.parts) == 2 else path.with_suffix('').parts[1]


def names_in(path: Path, tree: ast.AST) -> Iterator[str]:
    """Absolute dotted names of all that is imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = path.parts[:-node.level] if node.level else ()
            module = [*base, *(node.module or '').split('.')]
            for alias in node.names:
                yield '.'.join(filter(None, [*module, alias.name]))


def imports_of(root: Path) -> List[Import]:
    """Of the house's own files."""
    found = set()
    known = {path.with_suffix('').parts: path for path in files(root)}
    for path in known.values():
        tree = ast.parse((root / path).read_text())
        for name in names_in(path, tree):
            parts = tuple(name.split('.'))
            # A module, a name in one, a package, or a name in a package.
            for place in (parts, parts[:-1], (*parts, '__init__'),
                          (*parts[:-1], '__init__')):
                if place in known:
                    found.add(Import(path, known[place]))
                    break
    return sorted(found)


def upward(imports: List[Import]) -> List[str]:
    """Imports that run up, but for the entrance's."""
    return [
        str(x) for x in imports if FLOOR[room(x.source)] < FLOOR[room(x.target)]
    ]


def circles(imports: List[Import],
            of: Callable[[Path], str] = room) -> List[str]:
    """Circles of rooms (or of files), with the imports that make them."""
    steps: Dict[Tuple[str, str], Set[str]] = {}
    for x in imports:
        step = of(x.source), of(x.target)
        if all(step) and step[0] != step[1]:
            steps.setdefault(step, set()).add(str(x))
    found = []
    for stops in networkx.simple_cycles(networkx.DiGraph(list(steps))):
        around = zip(stops, [*stops[1:], stops[0]])
        found.append('; '.join(
            text for step in around for text in sorted(steps[step])))
    return found


def hosts(root: Path) -> Set[str]:
    """One file each, beside what they share."""
    return {path.stem for path in (root / 'ela_mm' / 'hosts').glob('*.py')
            } - {'__init__', 'host', 'registration'}


def questions(root: Path) -> List[str]:
    """Where a host is imported, or its name compared or handed to a function."""
    names = hosts(root)

    def is_host(text) -> bool:
        return isinstance(text, str) and text.split('.')[0] in names

    found = []
    for path in files(root):
        if room(path) in HOST_ROOMS:
            continue
        tree = ast.parse((root / path).read_text())
        found += [f'{path} imports {name}' for name in names_in(path, tree)
                  if is_host(name)]
        for node in ast.walk(tree):
            asking = (ast.walk(node) if isinstance(node, ast.Compare) else
                      node.args if isinstance(node, ast.Call) else [])
            found += [
                f'{path}:{x.lineno} asks for {x.value!r}' for x in asking
                if isinstance(x, ast.Constant) and is_host(x.value)
            ]
    return sorted(set(found))


def test_every_room_has_a_floor():
    assert {room(path) for path in files(ROOT)} <= set(FLOOR)


def test_imports_run_downward():
    assert not upward(imports_of(ROOT))


def test_no_imports_run_in_a_circle():
    imports = imports_of(ROOT)
    assert not circles(imports) and not circles(imports, of=str)


def test_no_other_file_asks_which_host_it_is():
    assert not questions(ROOT)


@pytest.fixture
def house(tmp_path):
    """Writes a small house and returns its root."""

    def build(**texts):
        for name, text in texts.items():
            path = tmp_path / (name.replace('__', '/') + '.py')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / 'ela_mm' / '__init__.py').write_text(
            'from .engine.a import x')
        return tmp_path

    return build


@pytest.mark.parametrize('text', [
    'from ..apis.data import load',
    'from ..apis import data',
    'import ela_mm.apis.data',
    'from ela_mm.apis import data as renamed',
    'def late():\n    from ..apis.data import load',
])
def test_what_runs_up_is_named(house, text):
    root = house(ela_mm__engine__a=text, ela_mm__apis__data='from .. import '
                 'errors', ela_mm__errors='', tools__b='import ela_mm')
    assert upward(imports_of(root)) == [
        'ela_mm/engine/a.py -> ela_mm/apis/data.py']


@pytest.mark.parametrize('text', ['from .. import x', 'import ela_mm'])
def test_a_room_does_not_leave_by_the_entrance(house, text):
    root = house(ela_mm__engine__a=text)
    assert upward(imports_of(root)) == [
        'ela_mm/engine/a.py -> ela_mm/__init__.py']


def test_a_circle_is_named(house):
    root = house(
        ela_mm__models__a='from ..pruning.b import x',
        ela_mm__pruning__b='from ..sparsity.c import x',
        ela_mm__sparsity__c='from ..models import a')
    (circle, ) = circles(imports_of(root))
    assert sorted(circle.split('; ')) == [
        'ela_mm/models/a.py -> ela_mm/pruning/b.py',
        'ela_mm/pruning/b.py -> ela_mm/sparsity/c.py',
        'ela_mm/sparsity/c.py -> ela_mm/models/a.py']
    assert not upward(imports_of(root))


def test_a_circle_within_a_room_is_named(house):
    root = house(ela_mm__apis__a='from .b import x',
                 ela_mm__apis__b='def late():\n    from . import a')
    imports = imports_of(root)
    assert not circles(imports)
    (circle, ) = circles(imports, of=str)
    assert sorted(circle.split('; ')) == [
        'ela_mm/apis/a.py -> ela_mm/apis/b.py',
        'ela_mm/apis/b.py -> ela_mm/apis/a.py']


@pytest.mark.parametrize('text, offence', [
    ('import mmseg.models', 'imports mmseg.models'),
    ('def f():\n    from mmseg import apis', 'imports mmseg.apis'),
    ("x = cfg.get('default_scope') == 'mmseg'", "1 asks for 'mmseg'"),
    ("x = scope in ('mmengine', 'mmseg')", "1 asks for 'mmseg'"),
    ("x = kind.startswith('mmseg.')", "1 asks for 'mmseg.'"),
    ("x = find_spec('mmseg')", "1 asks for 'mmseg'"),
])
def test_a_question_for_a_host_is_named(house, text, offence):
    root = house(ela_mm__apis__a=text, ela_mm__hosts__mmseg=text,
                 ela_mm__datasets__b=text, dev__c=text)
    (found, ) = questions(root)
    assert found.startswith('ela_mm/apis/a.py') and found.endswith(offence)


def test_to_name_a_host_is_no_question(house):
    root = house(
        ela_mm__hosts__mmseg='',
        tools__a="model = dict(type='mmseg.ELAResNet', _scope_='mmseg')\n"
        "raise ValueError('mmseg is not installed')\n"
        'from ela_mm.hosts.mmseg import ELAResNet')
    assert not questions(root)
