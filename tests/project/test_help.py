"""--help is answered at once: without torch, a host or this package."""
import ast
import subprocess
import sys

import pytest
from support import ROOT

TOOLS = sorted(path.name for path in (ROOT / 'tools').glob('*.py'))
# Runs a script in this process and says what that has imported.
RUN = ('import atexit, runpy, sys; atexit.register(lambda: print('
       '"imported:", *sorted({m.split(".")[0] for m in sys.modules}))); '
       'sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], '
       'run_name="__main__")')
SLOW = {'torch', 'numpy', 'mmengine', 'mmdet', 'mmpretrain', 'mmseg', 'ela_mm'}


def run(script, *arguments, status=0):
    done = subprocess.run(
        [sys.executable, '-c', RUN, ROOT / script, *arguments], cwd=ROOT,
        capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    imported = set(done.stdout.split('imported: ')[1].split())
    return done.stdout + done.stderr, imported


@pytest.mark.parametrize('tool', TOOLS)
def test_a_tool_answers_without_torch(tool):
    text, imported = run(f'tools/{tool}', '--help')
    assert f'usage: {tool}' in text
    assert not imported & SLOW


@pytest.mark.parametrize('command', ['train', 'plan', 'configs'])
def test_the_command_answers_without_torch(command):
    text, imported = run('ela_command.py', command, '--help')
    assert text.startswith('usage: ela')
    assert not imported & SLOW


def test_a_typo_is_answered_as_soon():
    text, imported = run('tools/train.py', 'x.py', '--lauchner', 'none',
                         status=2)
    assert 'unrecognized arguments: --lauchner none' in text
    assert not imported & SLOW


def test_what_is_imported_is_seen(tmp_path):
    (tmp_path / 'script.py').write_text('def f():\n    import numpy\nf()')
    assert run(tmp_path / 'script.py')[1] & SLOW == {'numpy'}


def constants(tool):
    """Names in capitals that a tool gives literal values."""
    tree = ast.parse((ROOT / 'tools' / tool).read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0],
                                                       ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:  # computed
                continue
    return found


def test_choices_are_those_of_the_package():
    """The tools name them, since they are asked before it is imported."""
    from ela_mm.analysis.report.report import PARTS
    from ela_mm.analysis.source import FOLDER
    from ela_mm.apis.convert import SOURCES
    from ela_mm.apis.onnx import parts
    from ela_mm.experiments import benchmark
    from ela_mm.hosts.registration import installed
    from ela_mm.pruning.kl import REDUNDANCY
    named = constants('analyze.py')
    assert named['PARTS'] == PARTS and named['FOLDER'] == FOLDER
    assert set(named['REDUNDANCY']) == set(REDUNDANCY)
    named = constants('convert_weights.py')
    assert set(named['SOURCES']) == set(SOURCES)
    assert {host.scope for host in installed() if host.deep_stem} <= set(
        named['HOSTS'])
    assert set(parts()) <= set(constants('export_pruned.py')['PARTS'])
    named = constants('benchmark.py')
    assert named['NETWORKS'] == benchmark.NETWORKS
    assert named['VARIANTS'] == benchmark.VARIANTS
    assert named['COMPARED'] == (*benchmark.COMPARED, benchmark.REGULARIZED)
    assert '6, 12, 23 and 36' in (ROOT / 'tools/benchmark.py').read_text()
    assert benchmark.GROWTH == (6, 12, 23, 36)
