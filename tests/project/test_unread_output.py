"""What is piped into ``head`` ends quietly once that has its lines."""
import contextlib
import logging
import os
import subprocess
import sys

import pytest
from support import ROOT

from ela_mm.apis.launch import run
from ela_mm.errors import UNREAD, UsageError, while_read


@pytest.fixture(params=[-1, 1], ids=['buffered', 'by line'])
def unread(request):
    """A pipe that nobody reads, to be the standard output."""
    reading, writing = os.pipe()
    os.close(reading)
    # It is closed as Python does at the end: what is left goes nowhere.
    with open(writing, 'w', buffering=request.param) as stream:
        yield stream


def status(main, stream):
    with contextlib.redirect_stdout(stream), pytest.raises(
            SystemExit) as ended:
        run(main)
    return ended.value.code


def ela(*words, unbuffered=''):
    """Run the command; nobody reads what it says."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [sys.executable, 'ela_command.py', *words], cwd=ROOT,
            env={**os.environ, 'PYTHONUNBUFFERED': unbuffered},
            stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)


@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize('word', ['--help', 'configs'])
def test_the_command_ends_quietly(word, unbuffered):
    done = ela(word, unbuffered=unbuffered)
    assert (done.returncode, done.stderr) == (UNREAD, '')


def test_a_status_of_its_own_stays():
    done = ela('train', '--help')
    assert (done.returncode, done.stderr) == (0, '')
    done = ela('trian')
    assert done.returncode == 1
    assert done.stderr.startswith("error: no command 'trian'")
    assert done.stderr.count('\n') == 1


@pytest.mark.parametrize('tool', sorted((ROOT / 'tools').glob('*.py')),
                         ids=lambda path: path.stem)
def test_every_tool_ends_in_one_place(tool):
    assert "if __name__ == '__main__':" in tool.read_text()
    assert tool.read_text().endswith('    run(main)\n')


def test_a_tool_ends_quietly(unread, capfd):
    assert status(lambda: print('a table'), unread) == UNREAD
    assert capfd.readouterr().err == ''


def test_a_training_goes_on_and_does_not_complain_at_every_line(
        unread, capfd):
    logger = logging.getLogger('unread')
    handler = logging.StreamHandler(unread)
    logger.addHandler(handler)
    lines = []

    def train():
        for line in range(3):
            lines.append(line)
            logger.warning(line)

    try:
        with contextlib.redirect_stdout(unread):
            run(train)
    finally:
        logger.removeHandler(handler)
    assert lines == [0, 1, 2] and capfd.readouterr().err == ''


def test_an_error_is_still_told(unread):
    def main():
        raise UsageError('no such run')

    assert status(main, unread) == 'error: no such run'


def test_other_pipes_may_break(capsys):
    """Such as a worker's: an error, with its traceback."""
    def main():
        raise BrokenPipeError('a worker')

    with pytest.raises(BrokenPipeError, match='a worker'):
        run(main)


def test_logging_is_left_as_it_was():
    class Broken(logging.StreamHandler):
        def emit(self, record):
            try:
                raise BrokenPipeError
            except BrokenPipeError:
                self.handleError(record)

    with while_read():
        Broken().handle(logging.makeLogRecord({}))  # told, not raised
    assert logging.StreamHandler.handleError is logging.Handler.handleError
