"""Scripts that run after this package is imported, a host's own among them."""
import runpy
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
from support import ROOT

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


@pytest.mark.slow
def test_spawned_workers_have_it_too(tmp_path):
    (tmp_path / 'spawns.py').write_text(SPAWNS)
    subprocess.run([sys.executable, '-m', 'ela_mm.run', tmp_path / 'spawns.py'],
                   check=True, cwd=ROOT)
