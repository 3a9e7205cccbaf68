"""Runs a host's own tool, or any script, after importing this package.

    python -m ela_mm.run mmdet/test.py CONFIG CHECKPOINT
    python -m ela_mm.run my_script.py ARGUMENT ...

With mmcv-lite, MMDetection's tools need ops before they have read the config,
and torch does not load mmengine's checkpoints by itself. Spawned workers import
this module as well, and so the package.
"""
import importlib.util
import os
import os.path as osp
import sys

from ela_mm.compat.spawned import SCRIPT


def find_script(name: str) -> str:
    """Find a script.

    Args:
        name (str): Path of the script; or the name of a host, a slash, and the
            path below the tools that the host has installed.

    Returns:
        str: Path of the script.

    Raises:
        FileNotFoundError: If there is no such script.
    """
    if osp.isfile(name):
        return name
    package, _, rest = name.partition('/')
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is not None and spec.origin is not None:
        path = osp.join(osp.dirname(spec.origin), '.mim', 'tools', rest)
        if osp.isfile(path):
            return path
    raise FileNotFoundError(
        f'{name!r} is neither a script nor one of a host: expected a path, or '
        "such as 'mmdet/analysis_tools/confusion_matrix.py'")


if __name__ == '__main__':
    del sys.argv[0]
    if not sys.argv or sys.argv[0] in ('-h', '--help'):
        sys.exit(__doc__)
    try:
        os.environ[SCRIPT] = find_script(sys.argv[0])
    except FileNotFoundError as error:
        sys.exit(f'error: {error}')

if __name__ in ('__main__', '__mp_main__'):  # the latter in spawned workers
    __file__ = sys.argv[0] = os.environ[SCRIPT]
    sys.path.insert(0, osp.dirname(osp.abspath(__file__)))
    with open(__file__, encoding='utf-8') as _file:
        exec(compile(_file.read(), __file__, 'exec'))
