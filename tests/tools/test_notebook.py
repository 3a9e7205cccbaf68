"""The notebook runs, and is committed as it ran.

To renew its outputs: ``jupyter execute --inplace demo/ela_in_five_minutes.ipynb``.
"""
import json
import re
import warnings

import pytest
import torch
from support import ROOT

NOTEBOOK = ROOT / 'demo' / 'ela_in_five_minutes.ipynb'


@pytest.fixture(scope='module')
def cells():
    return json.loads(NOTEBOOK.read_text())['cells']


def code_of(cells):
    return [cell for cell in cells if cell['cell_type'] == 'code']


def text_of(cell):
    """What a cell printed."""
    return ''.join(''.join(output.get('text', ''))
                   for output in cell['outputs'])


def assert_shows_a_pruning(cells):
    skipped, total = map(
        int,
        re.search(r'skipped (\d+) of (\d+) layers',
                  ''.join(map(text_of, code_of(cells)))).groups())
    assert 0 < skipped < total
    pictures = [
        output for cell in code_of(cells) for output in cell['outputs']
        if 'image/png' in output.get('data', {})
    ]
    assert len(pictures) == 5


def test_is_a_notebook():
    nbformat = pytest.importorskip('nbformat')
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))


def test_is_committed_as_it_ran(cells):
    counts = [cell['execution_count'] for cell in code_of(cells)]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output['output_type']
             for cell in code_of(cells) for output in cell['outputs']}
    assert kinds <= {'stream', 'display_data', 'execute_result'}
    assert not any(output.get('name') == 'stderr'
                   for cell in code_of(cells) for output in cell['outputs'])
    assert_shows_a_pruning(cells)


def test_code_compiles(cells):
    for cell in code_of(cells):
        compile(''.join(cell['source']), NOTEBOOK.name, 'exec')


def test_what_comes_before_the_training_runs(cells, monkeypatch):
    plt = pytest.importorskip('matplotlib.pyplot')
    plt.switch_backend('agg')
    pytest.importorskip('sklearn')
    monkeypatch.chdir(ROOT)
    names = {}
    with plt.rc_context(), warnings.catch_warnings(), torch.random.fork_rng():
        for cell in code_of(cells):
            source = ''.join(cell['source'])
            if 'Runner.from_cfg' in source:
                break
            exec(compile(source, NOTEBOOK.name, 'exec'), names)
        plt.close('all')
    assert {'layer1.1', 'layer3.5'} <= names['kl'].keys()


def test_is_small_and_knows_no_machine():
    text = NOTEBOOK.read_text()
    assert len(text) < 300_000
    cells = json.loads(text)['cells']
    for cell in cells:
        for output in cell.get('outputs', []):
            output.get('data', {}).pop('image/png', None)
    said = json.dumps(cells)
    # A path from the root, but not a link or a division.
    assert not re.search(r'(?<![\w.:/>)])/(?!/)\w[\w.-]*/', said)
    assert not re.search(r'[A-Za-z]:\\\\', said)


def test_tables_are_text_in_jupyter(monkeypatch, capsys):
    """There rich would show them, and return nothing."""
    import rich.console

    from ela_mm.engine.journal.table import prune_table
    from ela_mm.pruning import LayerDecision, Outcome
    monkeypatch.setattr(rich.console, '_is_jupyter', lambda: True)
    layer = LayerDecision('layer1.1', 1, 1, Outcome.SKIPPED, .1, mapped=0.)
    assert 'layer1.1' in prune_table([layer])


@pytest.mark.slow
def test_runs():
    nbclient = pytest.importorskip('nbclient')
    nbformat = pytest.importorskip('nbformat')
    pytest.importorskip('ipykernel')
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_of(notebook.cells):
        cell['outputs'] = []
    # As Jupyter does, from the notebook's folder.
    nbclient.NotebookClient(
        notebook, timeout=900,
        resources=dict(metadata=dict(path=str(NOTEBOOK.parent)))).execute()
    assert_shows_a_pruning(notebook.cells)
