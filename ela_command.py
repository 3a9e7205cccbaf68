"""The command ``ela``.

It is outside of the package, whose import also imports torch and the hosts and
takes seconds: ``ela --help`` and ``ela train --help`` need neither.
"""
import importlib.util
import os.path as osp
from types import ModuleType


def load(name: str) -> ModuleType:
    """Load a file of the package without importing the package."""
    package = importlib.util.find_spec('ela_mm')
    path = osp.join(osp.dirname(package.origin), f'{name}.py')
    spec = importlib.util.spec_from_file_location(f'ela_{name}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Run ``ela_mm/cli.py``."""
    with load('errors').while_read():
        load('cli').main()


if __name__ == '__main__':
    main()
