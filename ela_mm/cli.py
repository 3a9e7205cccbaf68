"""The command ``ela``, which runs the tools of this package."""
import importlib.util
import os
import os.path as osp
import re
import shutil
import sys
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

# For each sub-command, the tool and its first arguments.
TOOLS: Dict[str, List[str]] = {
    'train': ['train.py'],
    'test': ['test.py'],
    'plan': ['analyze.py', 'plan'],
    'analyze': ['analyze.py'],
    'edit-mask': ['edit_mask.py'],
    'export': ['export_pruned.py'],
    'convert': ['convert_weights.py'],
    'complexity': ['complexity.py'],
    'benchmark': ['benchmark.py'],
    'ablation': ['ablation.py'],
}
# Questions of ela analyze, which need not be said before them.
QUESTIONS = ('layers', 'attention', 'redundancy', 'features', 'similarity',
             'ablate', 'whatif', 'cost', 'compare', 'report')
USAGE = 'usage: ela COMMAND ...'
CONFIGS_USAGE = """usage: ela configs [WORD ...]
       ela configs --copy NAME [--to FOLDER]

List the configs that come along (those whose names hold all words), or copy
one, with what it inherits from of this package, to a folder; default: configs.
A name may be that of a grid of ela ablation, such as ablations/digits.yaml."""
# Find what a config inherits from: paths, or in pure Python configs modules.
_BASES = re.compile(r'^_base_ = (.+?)(?=^\S|\Z)', re.M | re.S)
_READ_BASE = re.compile(r'^\s+from \.(\.*)([\w.]+) import', re.M)


class Place(NamedTuple):
    """Folders of tools and configs, in a wheel or in a copy of the repository.

    Attributes:
        tools (str): Folder of the tools.
        configs (str): Folder of the configs.
    """
    tools: str
    configs: str


def find_place() -> Place:
    """Find the tools and configs that belong to this package.

    Raises:
        FileNotFoundError: If the package was installed without them.
    """
    package = osp.dirname(osp.abspath(__file__))
    for root in (osp.join(package, '.mim'), osp.dirname(package)):
        place = Place(osp.join(root, 'tools'), osp.join(root, 'configs'))
        if osp.isfile(osp.join(place.tools, 'train.py')):
            return place
    raise FileNotFoundError(f'ela_mm at {package!r} came without its tools: '
                            'expected them in .mim, or beside the package')


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run a sub-command.

    Args:
        arguments (Sequence[str], optional): Arguments. Defaults to those of
            the command line.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words.pop(0) if words else '--help'
    place = find_place()
    if name == 'configs':
        configs(place.configs, words)
    elif name in ('-h', '--help'):
        print(help_text(place))
    elif name not in TOOLS and name not in QUESTIONS:
        sys.exit(f'error: no command {name!r}: expected one of '
                 f'{", ".join([*TOOLS, "configs"])}, or of ela analyze: '
                 f'{", ".join(QUESTIONS)}')
    else:
        tool, *first = TOOLS.get(name, ['analyze.py', name])
        # argparse calls a program by the last part of its path.
        sys.argv = [f'ela {name}' if not first else 'ela', *first, *words]
        # As runpy does, but with a program name other than the tool's path.
        spec = importlib.util.spec_from_file_location(
            '__main__', osp.join(place.tools, tool))
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def help_text(place: Place) -> str:
    """List all sub-commands, each with the first line of its docstring."""
    lines = [USAGE, '']
    for name, (tool, *first) in TOOLS.items():
        with open(osp.join(place.tools, tool), encoding='utf-8') as file:
            about = file.readline().strip().strip('"')
        if first:
            about = f'The same as ela analyze {first[0]}.'
        lines.append(f'  {name:<11} {about}')
    lines += [f'  {"configs":<11} List the configs that come along, copy one.',
              '', 'ela report is short for ela analyze report; so are',
              f'{", ".join(QUESTIONS[:-1])}.', 'ela COMMAND --help says more.']
    return '\n'.join(lines)


# --- configs -----------------------------------------------------------------


def configs(folder: str, words: Sequence[str]) -> None:
    """List the configs of a folder, or copy one.

    Args:
        folder (str): Folder of the configs.
        words (Sequence[str]): Arguments of the command line.
    """
    words = list(words)
    if {'-h', '--help'}.intersection(words):
        print(CONFIGS_USAGE)
    elif '--copy' in words:
        target = _option(words, '--to') or 'configs'
        name = _option(words, '--copy')
        if words:
            sys.exit(f'error: {words[0]!r} is too much\n{CONFIGS_USAGE}')
        for path in copy_config(folder, name, target):
            print(path)
    else:
        for name in config_names(folder):
            if all(word.lower() in name.lower() for word in words):
                print(f'{name:<40} {first_line(osp.join(folder, name))}'
                      .rstrip())


def _option(words: List[str], name: str) -> Optional[str]:
    """Remove an option from the arguments, and return its value."""
    if name not in words:
        return None
    position = words.index(name)
    found = words[position:position + 2]
    del words[position:position + 2]
    if len(found) < 2:
        sys.exit(f'error: {name}: expected a value\n{CONFIGS_USAGE}')
    return found[1]


def config_names(folder: str) -> List[str]:
    """List the names of configs and grids below a folder, without bases."""
    names = []
    for place, _, files in os.walk(folder):
        below = osp.relpath(place, folder)
        if '_base_' in below.split(os.sep) or '__pycache__' in below:
            continue
        names += [osp.normpath(osp.join(below, file)) for file in files
                  if file.endswith(('.py', '.yaml'))
                  and not file.startswith('metafile')]
    return sorted(names, key=lambda name: (os.sep in name, name))


def first_line(path: str) -> str:
    """Return the description in the first line of a config or grid."""
    with open(path, encoding='utf-8') as file:
        text = file.readline().strip()
    if text.startswith('"""'):
        return text.strip('"')
    return text[len('title: '):].strip('"') if text.startswith('title: ') else ''


def copy_config(folder: str, name: str, target: str) -> List[str]:
    """Copy a config, and those of this package that it inherits from.

    Args:
        folder (str): Folder of the configs.
        name (str): Name from :func:`config_names`, with or without its
            extension.
        target (str): Folder to copy to; made if missing. Existing files are not
            overwritten.

    Returns:
        List[str]: Paths of the copies.
    """
    known = config_names(folder)
    chosen = next((k for k in known if name in (k, osp.splitext(k)[0])), None)
    if chosen is None:
        near = [k for k in known if name.lower() in k.lower()]
        sys.exit(f'error: no config {name!r}' + (
            f'; near to it: {", ".join(near)}' if near else
            ': ela configs lists them'))
    copies = []
    for source in dict.fromkeys(_with_bases(osp.join(folder, chosen))):
        copy = osp.join(target, osp.relpath(source, folder))
        if osp.exists(copy):
            print(f'{copy} is there already: it stays', file=sys.stderr)
            continue
        os.makedirs(osp.dirname(copy), exist_ok=True)
        shutil.copyfile(source, copy)
        copies.append(copy)
    return copies


def _with_bases(path: str) -> Iterator[str]:
    """Yield a config and all that it inherits from, directly or not."""
    yield path
    with open(path, encoding='utf-8') as file:
        text = file.read()
    found = _BASES.search(text)
    # Bases in a host have '::', and are found from anywhere.
    bases = [base for base in re.findall(r"'([^']+)'", found[1] if found else '')
             if '::' not in base]
    bases += ['../' * len(dots) + module.replace('.', '/') + '.py'
              for dots, module in _READ_BASE.findall(text)]
    for base in bases:
        yield from _with_bases(
            osp.normpath(osp.join(osp.dirname(path), base)))


if __name__ == '__main__':
    main()
