"""Scripts that run after this package is imported, a host's own among them."""
import importlib.machinery
import multiprocessing.spawn
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import mmdet
import pytest
from support import ROOT

from ela_mm.compat import mmcv_ops, spawned
from ela_mm.run import find_script

SCRIPT = """
import sys
print(__name__, __file__, sys.argv[1:], 'ela_mm' in sys.modules)
import beside
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / 'beside.py').write_text('print("beside")')
    path = tmp_path / 'script.py'
    path.write_text(SCRIPT)
    return path


def test_a_hosts_tool_goes_by_the_hosts_name():
    path = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'test.py'
    assert find_script('mmdet/test.py') == str(path)
    assert find_script(str(path)) == str(path)
    for name in ('mmdet/nothing.py', 'nothing/test.py', '../test.py', ''):
        with pytest.raises(FileNotFoundError, match='neither a script nor'):
            find_script(name)


@pytest.mark.parametrize('name', ['__main__', '__mp_main__'])
def test_a_script_runs_as_if_python_ran_it(name, script, monkeypatch, capsys):
    """The second name is what spawned workers import it by."""
    started = [str(script)] if name == '__main__' else []
    monkeypatch.setenv('ELA_MM_SCRIPT', str(script))
    monkeypatch.setattr(sys, 'argv', ['run.py', *started, '--option'])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.delitem(sys.modules, 'beside', raising=False)
    monkeypatch.delitem(sys.modules, 'ela_mm.run')
    runpy.run_module('ela_mm.run', run_name=name)
    assert capsys.readouterr().out.splitlines() == [
        f"{name} {script} ['--option'] True", 'beside']


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.delitem(sys.modules, 'ela_mm.run')
    monkeypatch.setattr(sys, 'argv', ['run.py', 'nowhere.py'])
    with pytest.raises(SystemExit, match="'nowhere.py' is neither a script"):
        runpy.run_module('ela_mm.run', run_name='__main__')


SPAWNS = """
import multiprocessing
import sys

def work(queue):
    import mmcv.ops  # which mmcv-lite lacks
    queue.put('ela_mm' in sys.modules)

if __name__ == '__main__':
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    process = context.Process(target=work, args=(queue, ))
    process.start()
    assert queue.get(timeout=240)
    process.join()
    assert process.exitcode == 0
"""


BY_CONFIG = """    # As mmengine does for custom_imports.
    import importlib
    importlib.import_module('ela' + '_mm')
"""


@pytest.mark.slow
@pytest.mark.parametrize('plainly', [False, True])
def test_spawned_workers_have_it_too(plainly, tmp_path):
    """Also those of a script that knows nothing of this package."""
    text = SPAWNS
    if plainly:
        text = text.replace("'ela_mm'", "'ela' + '_mm'").replace(
            "__main__':\n", f"__main__':\n{BY_CONFIG}")
    (tmp_path / 'spawns.py').write_text(text)
    started = [] if plainly else ['-m', 'ela_mm.run']
    subprocess.run([sys.executable, *started, tmp_path / 'spawns.py'],
                   check=True, cwd=ROOT,
                   env={**os.environ, 'PYTHONPATH': str(ROOT)})


def spawned_import(monkeypatch, text, path, **attributes):
    """What a process imports that is spawned by a script with some text."""
    path.write_text(text)
    main = ModuleType('__main__')
    vars(main).update({'__file__': str(path), **attributes})
    monkeypatch.setitem(sys.modules, '__main__', main)
    monkeypatch.setenv(spawned.SCRIPT, 'another.py')
    spawned.install()
    return multiprocessing.spawn.get_preparation_data('worker').get(
        'init_main_from_name')


def test_only_scripts_without_it_are_imported_by_it(tmp_path, monkeypatch):
    path = tmp_path / 'train.py'
    assert spawned_import(monkeypatch, 'import mmdet', path) == 'ela_mm.run'
    assert os.environ[spawned.SCRIPT] == str(path)
    assert spawned_import(monkeypatch, 'import ela_mm', path) is None
    module = importlib.machinery.ModuleSpec('pytest.__main__', None)
    assert spawned_import(monkeypatch, 'import mmdet', path,
                          __spec__=module) == 'pytest.__main__'
    assert spawned_import(monkeypatch, '', path, __file__=None) is None
    # A compiled mmcv has its ops in every process.
    monkeypatch.setattr(spawned, 'is_stand_in', lambda: False)
    assert spawned_import(monkeypatch, 'import mmdet', path) is None
    assert os.environ[spawned.SCRIPT] == 'another.py'


def test_a_compiled_mmcv_is_no_stand_in(monkeypatch):
    assert mmcv_ops.is_stand_in()
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)

    class Compiled:
        def find_spec(self, name, path=None, target=None):
            if name == 'mmcv._ext':
                return importlib.machinery.ModuleSpec(name, self)

    monkeypatch.setattr(sys, 'meta_path', [Compiled(), *sys.meta_path])
    assert not mmcv_ops.is_stand_in()
