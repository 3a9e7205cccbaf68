"""Try the test suite on other versions, in a throw-away environment (from a checkout).

The pinned ones: python dev/versions.py stack
The forks:       python dev/versions.py onedl
The oldest:      python dev/versions.py oldest --python python3.8
Some tests only: python dev/versions.py oldest -- tests/method -x

A set is a file of requirements/. Its environment is made in a temporary
folder (several GB, since torch brings its CUDA packages) and deleted at the
end; with --venv FOLDER it is kept and used again.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parent.parent
# Requirements that are installed before the rest, in this order. onedl-mmcv
# compiles its ops, which takes most of an hour, unless torch is missing while it is
# built; ela_mm does not need them.
BUILD = re.compile(r'^(setuptools|packaging)\b')
BEFORE_TORCH = re.compile(r'^onedl-mmcv\b')
TORCH = re.compile(r'^(torch|torchvision|numpy)\b')
# Distributions whose versions are reported; the forks have names of their own.
REPORTED = ('torch', 'torchvision', 'mmengine', 'onedl-mmengine', 'mmcv-lite',
            'mmcv', 'onedl-mmcv', 'mmdet', 'onedl-mmdetection', 'mmpretrain',
            'onedl-mmpretrain', 'mmsegmentation', 'numpy', 'scipy')


def set_names() -> List[str]:
    """List the sets of versions, the files of requirements/."""
    return sorted(path.stem for path in (ROOT / 'requirements').glob('*.txt'))


def parse_args(arguments: Optional[List[str]] = None) -> argparse.Namespace:
    arguments = sys.argv[1:] if arguments is None else arguments
    # Split off here: argparse fails on a list of arguments after an option.
    own = arguments
    pytest_arguments: List[str] = []
    if '--' in arguments:
        place = arguments.index('--')
        own, pytest_arguments = arguments[:place], arguments[place + 1:]
    parser = argparse.ArgumentParser(
        usage='%(prog)s SET [options] [-- PYTEST ...]',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='PYTEST: arguments of pytest; default: the fast suite')
    parser.add_argument('set', choices=set_names(), help='which versions')
    parser.add_argument(
        '--python',
        default=sys.executable,
        help='interpreter of the environment; default: the one that runs this')
    parser.add_argument(
        '--venv', help='folder of the environment; it is kept and used again')
    parser.add_argument(
        '--pip-args',
        default='',
        help='further options of pip, such as "--index-url https://..."')
    parser.add_argument(
        '--install-only', action='store_true', help='do not run the tests')
    args = parser.parse_args(own)
    args.pytest = pytest_arguments
    if args.install_only and not args.venv:
        parser.error('--install-only needs --venv: without it the environment '
                     'is deleted at the end')
    return args


def requirements(name: str) -> List[str]:
    """Read the lines of a set, without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(
        encoding='utf-8').splitlines()
    return [line for line in map(str.strip, lines)
            if line and not line.startswith('#')]


def install(name: str, venv: Path, python: str, pip_args: List[str]) -> None:
    """Make the environment, unless it is complete already."""
    stamp = venv / f'.complete_{name}'
    if stamp.exists():
        return
    subprocess.run([python, '-m', 'venv', '--clear', str(venv)], check=True)
    pip = [str(venv / 'bin/python'), '-m', 'pip', 'install', '--quiet',
           *pip_args]
    wanted = requirements(name)

    def chosen(pattern) -> List[str]:
        return [line for line in wanted if pattern.match(line)]

    source = ['--no-build-isolation']
    for options, lines in (
        (['--upgrade'], ['pip', 'wheel', 'packaging', *chosen(BUILD)]),
        ([*source, '--no-deps'], chosen(BEFORE_TORCH)),
        ([], chosen(TORCH)),
        (source, wanted)):
        if lines:
            print('installing', ', '.join(lines), flush=True)
            subprocess.run([*pip, *options, *lines], check=True)
    stamp.touch()


def report(venv: Path) -> str:
    """Return the versions that the environment has, on one line."""
    code = ('import sys\n'
            'from importlib.metadata import version, PackageNotFoundError\n'
            "found = ['Python ' + sys.version.split()[0]]\n"
            f'for name in {REPORTED}:\n'
            '    try: found.append(name + " " + version(name))\n'
            '    except PackageNotFoundError: pass\n'
            "print(', '.join(found))")
    return subprocess.run([str(venv / 'bin/python'), '-c', code], check=True,
                          capture_output=True, text=True).stdout.strip()


def main() -> int:
    args = parse_args()
    venv = Path(args.venv or tempfile.mkdtemp(prefix=f'ela_mm_{args.set}_'))
    venv = venv.absolute()
    try:
        install(args.set, venv, args.python, args.pip_args.split())
        print(report(venv), flush=True)
        if args.install_only:
            return 0
        # The working tree itself, so that nothing is built or left in it.
        path = os.pathsep.join(
            filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
        return subprocess.run(
            [str(venv / 'bin/python'), '-m', 'pytest', *args.pytest],
            cwd=ROOT, env={**os.environ, 'PYTHONPATH': path}).returncode
    except subprocess.CalledProcessError as error:
        command = ' '.join(map(str, error.cmd))
        print(f'error: {command!r} ended with {error.returncode}; its output '
              'is above', file=sys.stderr)
        return 1
    finally:
        if not args.venv:
            shutil.rmtree(venv, ignore_errors=True)


if __name__ == '__main__':
    sys.exit(main())
