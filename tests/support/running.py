"""Runs this project's tools as a user does, without waiting for imports.

Each runs in a process of its own, which is forked where torch and the hosts are
imported but nothing has run yet.
"""
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from support import ROOT


@lru_cache(maxsize=None)
def _context():
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['support.imported'])
    before = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join(
        filter(None, [str(ROOT / 'tests'), before]))
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        del os.environ['PYTHONPATH']
        if before is not None:
            os.environ['PYTHONPATH'] = before
    return context


def _run(name, arguments, cwd, environment, streams):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, (stream, path) in enumerate(
            zip((sys.stdout, sys.stderr), streams), start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        stream.reconfigure(line_buffering=True)
    sys.argv = [name, *arguments]
    runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')


def tool(name, *arguments, cwd=ROOT, output=None, **environment):
    """Returns the finished process.

    Its output is appended to the file ``output``, if there is one.
    """
    arguments = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        streams = [output] * 2 if output else [
            os.path.join(folder, stream) for stream in ('out', 'err')]
        process = _context().Process(
            target=_run,
            args=(name, arguments, str(cwd), {**os.environ, **environment},
                  [str(path) for path in streams]))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([name, *arguments], 300)
        return subprocess.CompletedProcess(
            [name, *arguments], process.exitcode,
            *(Path(path).read_text() for path in streams))


def in_a_fresh_process(function, *arguments):
    """Call a function of ``support`` where no test has left anything."""
    process = _context().Process(target=function, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode == 0
