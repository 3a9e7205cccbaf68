"""The command ``ela``.

It stands outside of the package, whose import brings torch and the hosts along
and takes seconds: ``ela --help`` and ``ela train --help`` need neither.
"""
import importlib.util
import os.path as osp


def main() -> None:
    """Run ``ela_mm/cli.py`` without importing the package."""
    package = importlib.util.find_spec('ela_mm')
    path = osp.join(osp.dirname(package.origin), 'cli.py')
    spec = importlib.util.spec_from_file_location('ela_cli', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()


if __name__ == '__main__':
    main()
