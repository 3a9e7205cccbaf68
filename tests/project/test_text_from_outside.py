"""Names of classes, files and metrics are shown as they are, on any console."""
import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from support import ROOT

from ela_mm.analysis.features import Features, LayerFeatures
from ela_mm.analysis.history import Run
from ela_mm.analysis.report.features import features_picture
from ela_mm.analysis.report.page import Section, Table, render
from ela_mm.analysis.report.redundancy import timeline_picture
from ela_mm.analysis.report.terminal import show
from ela_mm.apis.deploy import whole_file
from ela_mm.apis.launch import run
from ela_mm.datasets.digits import make_digits
from ela_mm.engine.journal.picture import decision_picture
from ela_mm.engine.journal.record import write_whole
from ela_mm.engine.journal.table import prune_table
from ela_mm.plotting import new_figure, printable, save, style, to_png, to_svg
from ela_mm.pruning.decision import Decision, LayerDecision, Outcome

# rich's markup and emoji, a terminal's commands, HTML, mathtext that is none.
HOSTILE = '[/red] [b]x[/b] :warning: <b> $\\frac{$'
CONTROL = '\x1b[31m\nx\0\udcff'


def section():
    return Section(
        f'μ {HOSTILE}', [f'é {HOSTILE}', f'again {CONTROL}'],
        [Table(f'caption {HOSTILE}', [f'h {HOSTILE} ' + 20 * '.'],
               [[f'c {HOSTILE}'], [CONTROL]])])


# --- consoles ----------------------------------------------------------------


def console(monkeypatch, encoding):
    """Replaces the standard output; returns what was written to it."""
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, 'stdout', stream)
    return lambda: data.getvalue().decode(encoding)


def test_the_terminal_shows_text_as_it_is(tmp_path, monkeypatch):
    written = console(monkeypatch, 'utf-8')
    run(lambda: show([section()], str(tmp_path)))
    text = written()
    for start in ('μ', 'é', 'caption', 'h', 'c'):
        assert f'{start} {HOSTILE}' in text
    assert '\x1b' not in text and text.count(r'\x1b[31m\nx\x00\udcff') == 2
    (path, ) = tmp_path.glob('*.csv')
    assert HOSTILE in path.read_text(encoding='utf-8')


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252', 'latin-1', 'cp437'])
def test_a_console_that_is_not_utf8_gets_ascii_lines(
        tmp_path, monkeypatch, encoding):
    written = console(monkeypatch, encoding)
    run(lambda: show([section()], str(tmp_path)))
    text = written()
    assert f'caption {HOSTILE}' in text and f'c {HOSTILE}' in text
    assert r'\u03bc' in text or 'μ' in text
    assert '+--' in text and '━' not in text


def test_what_a_console_lacks_is_an_escape(monkeypatch):
    written = console(monkeypatch, 'ascii')
    run(lambda: print('± μ \udcff'))
    assert written().strip() == r'\xb1 \u03bc \udcff'


def layers():
    return [
        LayerDecision('layer1.0', 1, 0, Outcome.FIRST),
        LayerDecision('layer1.1', 1, 1, Outcome.SKIPPED, kl=.1, kl_std=.1,
                      mapped=.2)
    ]


@pytest.mark.parametrize('console_, files, boxes', [
    ('utf-8', 'UTF-8', True), ('cp1252', 'UTF-8', False),
    ('utf-8', 'cp1252', False), ('ascii', 'ANSI_X3.4-1968', False),
    (None, 'utf-8', True)
])
def test_the_table_of_a_pruning_can_be_logged(
        monkeypatch, console_, files, boxes):
    monkeypatch.setattr('locale.getpreferredencoding', lambda *args: files)
    stream = io.StringIO()
    if console_ is not None:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=console_)
    monkeypatch.setattr(sys, 'stdout', stream)
    table = prune_table(layers())
    table.encode(files), table.encode(console_ or 'utf-8')
    assert ('┏' in table) == boxes
    (row, ) = [line for line in table.splitlines() if 'layer1.1' in line]
    assert '0.1000' in row and '0.2000' in row and 'skipped' in row


TRAINING = '''
import logging
from support.toy import toy_config
from ela_mm.apis.launch import build_runner, run
def main():
    runner = build_runner(toy_config({folder!r}, max_epochs=1))
    runner.train()
    runner.logger.info('class \\u03bc')
    print('done')
run(main)
'''


def test_a_training_under_an_ascii_locale_loses_nothing(tmp_path):
    code = TRAINING.format(folder=str(tmp_path / 'run'))
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    process = subprocess.run(
        [sys.executable, '-c', code], capture_output=True,
        env={**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0',
             'PYTHONCOERCECLOCALE': '0', 'PYTHONPATH': path})
    assert process.returncode == 0, process.stderr.decode()[-2000:]
    assert b'Logging error' not in process.stderr
    (log, ) = (tmp_path / 'run').glob('*/*.log')
    for text in (process.stdout.decode('ascii'), log.read_text('ascii')):
        assert '| layer1.1 ' in text and r'class \u03bc' in text


# --- pictures and pages ------------------------------------------------------

reads_math = pytest.mark.skipif(
    'text.parse_math' not in matplotlib.rcParams,
    reason='matplotlib < 3.6 cannot be told')


def pictures(name):
    """One with each text that comes from outside."""
    cam = np.zeros((8, 8))
    shown = [LayerFeatures('layer1.1', True, None, cam)]
    yield features_picture(
        Features(np.zeros((8, 8, 3)), f'class {name}', shown, None))
    yield timeline_picture(Run(
        'w', dict(layers=['a'], active=['a'], decisions=[]), None, None,
        'epoch', [], f'metric/{name}', [(1, .5), (2, .6)]))
    decision = Decision((1, 1), 1, 4, dict(type=name), 'layer', layers())
    decision.layers[1].name = name
    yield decision_picture(decision)


@reads_math
@pytest.mark.parametrize('name', ['$\\frac{$', '$x^2$', '100% [b]$'])
def test_names_in_pictures_are_no_formulas(name):
    for picture in pictures(name):
        to_png(picture.figure), to_svg(picture.figure)
        texts = [t for t in picture.figure.findobj(Text) if name in t.get_text()]
        assert texts and not any(text.get_parse_math() for text in texts)


@pytest.mark.parametrize('name', ['\x1b[31m\nx\0', '\udcff', '日本', '--> ]]>'])
def test_pictures_are_drawn_whatever_the_names(name):
    from xml.etree import ElementTree
    for picture in list(pictures(printable(name)))[2:] + list(
            pictures(name))[:2]:
        to_png(picture.figure)
        ElementTree.fromstring(to_svg(picture.figure))


def test_a_users_latex_is_left_out():
    with matplotlib.rc_context({'text.usetex': True}), style():
        figure = new_figure(1, 1)
        assert not figure.text(0, 0, '$x').get_usetex()


def test_pages_show_text_as_it_is():
    page = render(HOSTILE, [HOSTILE], [section()], [HOSTILE])
    assert page.count('[/red] [b]x[/b] :warning: &lt;b&gt; $\\frac{$') > 6
    assert '<b>' not in page


# --- files -------------------------------------------------------------------


def test_what_has_no_bytes_in_utf8_is_written_as_an_escape(tmp_path):
    write_whole('μ \udcff', str(tmp_path / 'a.html'))
    assert (tmp_path / 'a.html').read_bytes() == 'μ \\udcff'.encode()
    assert [path.name for path in tmp_path.iterdir()] == ['a.html']


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr('os.replace', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole('text', str(tmp_path / 'a.html'))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('umask', [0o022, 0o027, 0o077, 0o002])
def test_files_respect_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_whole('text', str(tmp_path / 'text'))
        with whole_file(str(tmp_path / 'deployed')) as name:
            Path(name).write_bytes(b'x')
        with style():
            figure = new_figure(1, 1)
        picture = next(pictures('x'))._replace(name='picture', figure=figure)
        save(picture, str(tmp_path / 'folder'))
        make_digits(str(tmp_path / 'digits'), num_train=1, num_val=1)
    finally:
        os.umask(before)
    for path in tmp_path.rglob('*'):
        mode = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == mode & ~umask, path


# Written by mmengine in the locale's encoding, which has no other reader.
OF_THE_HOST = {'ela_mm/engine/checkpoints.py'}


def opened_as_the_locale_says(source: str):
    """Lines that open a text file without saying its encoding."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
        if name not in ('open', 'fdopen', 'read_text', 'write_text'):
            continue
        modes = [arg.value for arg in node.args[1:2]
                 if isinstance(arg, ast.Constant)]
        if any(word.arg == 'encoding' for word in node.keywords) or (
                'b' in str(modes)):
            continue
        yield node.lineno


def test_text_files_are_utf8_everywhere():
    found = {}
    for folder in ('ela_mm', 'tools', 'dev'):
        for path in sorted((ROOT / folder).rglob('*.py')):
            name = str(path.relative_to(ROOT))
            if '.mim' not in name and name not in OF_THE_HOST:
                found[name] = list(opened_as_the_locale_says(
                    path.read_text(encoding='utf-8')))
    assert len(found) > 50 and {k: v for k, v in found.items() if v} == {}


def test_a_text_file_without_an_encoding_is_found():
    assert list(opened_as_the_locale_says(
        "open(a)\nopen(a, 'rb')\nopen(a, 'w', encoding='utf-8')\n"
        'path.read_text()\nos.fdopen(a, "w")\n')) == [1, 4, 5]
