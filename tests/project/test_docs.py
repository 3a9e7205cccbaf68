"""The documentation: its links lead somewhere, and its code runs."""
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest
from mmengine.config import Config
from support import ROOT

from ela_mm.config_types import type_name

PAGES = sorted((ROOT / 'docs').rglob('*.md'))
PAGES = [page for page in PAGES if '_build' not in page.parts]
LINK = re.compile(r'\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)')
SHELL = re.compile(r'^```bash\n(.*?)^```', re.M | re.S)
CODE = re.compile(r'^```python\n(.*?)^```', re.M | re.S)


def name_of(path):
    return str(path.relative_to(ROOT))


def without_code(text):
    return re.sub(r'^```(?!\{).*?^```|`[^`\n]*`', '', text, flags=re.M | re.S)


def anchors(path):
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r'^#+ (.*)$', re.sub(
        r'^```.*?^```', '', path.read_text(), flags=re.M | re.S), re.M)
    return {
        re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        for heading in headings
    }


def broken(text, folder, own=None):
    """Links that lead nowhere, from a text that lies in a folder."""
    for target, anchor in LINK.findall(without_code(text)):
        path = (folder / target).resolve() if target else own
        if not path.exists():
            yield target
        elif anchor and path.suffix == '.md' and anchor not in anchors(path):
            yield f'{target}#{anchor}'


@pytest.mark.parametrize('page', [ROOT / 'README.md', *PAGES], ids=name_of)
def test_links_lead_somewhere(page):
    assert not list(broken(page.read_text(), page.parent, page))


def test_links_of_the_notebook_lead_somewhere():
    notebook = ROOT / 'demo' / 'ela_in_five_minutes.ipynb'
    text = '\n'.join(''.join(cell['source'])
                     for cell in json.loads(notebook.read_text())['cells']
                     if cell['cell_type'] == 'markdown')
    assert LINK.search(text)
    assert not list(broken(text, notebook.parent))


def test_broken_links_are_found(tmp_path):
    (tmp_path / 'a.md').write_text("# Some `code`, and more\n\n## (x) y's\n")
    text = ('[1](a.md) [2](a.md#some-code-and-more) [3](a.md#x-ys) '
            '[4](b.md) [5](a.md#gone) [6](https://example.org/c)\n'
            '```\n[7](d.md)\n```\n`[8](e.md)`\n')
    assert list(broken(text, tmp_path)) == ['b.md', 'a.md#gone']


def test_every_page_is_in_a_table_of_contents():
    listed = set()
    for page in PAGES:
        for block in re.findall(r'^```\{toctree\}\n(.*?)^```',
                                page.read_text(), re.M | re.S):
            for line in block.splitlines():  # a page, or a title <page>
                target = re.sub(r'.*<(.*)>', r'\1', line)
                listed.add((page.parent / f'{target}.md').resolve())
    assert set(PAGES) - listed == {ROOT / 'docs' / 'index.md'}


def test_every_module_is_in_the_reference():
    text = '\n'.join(page.read_text() for page in PAGES)
    described = re.findall(r'automodule:: (\S+)', text)
    assert len(described) == len(set(described))
    modules = {
        '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        for path in (ROOT / 'ela_mm').rglob('*.py')
        if path.name not in ('__init__.py', 'version.py')
    }
    missing = modules - set(described)
    assert not missing, f'add an automodule to a page of docs/api: {missing}'


def commands(text):
    """Scripts that the text starts, with the arguments it gives them."""
    for block in SHELL.findall(text):
        for line in block.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            for i, word in enumerate(words):
                if re.match(r'(tools|dev)/.*\.py$', word):
                    yield word, words[i + 1:]
                elif word == '-m' and words[i + 1].startswith('dev.'):
                    path = words[i + 1].replace('.', '/') + '.py'
                    yield path, words[i + 2:]


def test_commands_are_understood():
    """Every script is there, and its help has every option that is used."""
    used = {}
    for page in [ROOT / 'README.md', *PAGES]:
        for script, arguments in commands(page.read_text()):
            assert (ROOT / script).is_file(), f'{page.name}: {script}'
            parser = (script, *arguments[:1]) if 'analyze' in script else (
                script, )
            used.setdefault(parser, set()).update(
                word for word in arguments if word.startswith('--'))
    assert ('tools/analyze.py', 'report') in used
    for (script, *command), options in used.items():
        if not script.startswith('tools/'):
            continue
        process = subprocess.run(
            [sys.executable, ROOT / script, *command, '--help'],
            capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        unknown = {option for option in options
                   if not re.search(option + r'\b', process.stdout)}
        assert not unknown, f'{script} {command}: {unknown}'


def a_record():
    """Of a run that has measured three layers of one stage."""
    layers = [
        dict(name=f'layer3.{i}', stage=3, index=i, kl=kl, kl_std=None,
             mapped=None, status='kept')
        for i, kl in enumerate([None, 0.3, 0.2, 0.1])
    ]
    names = [layer['name'] for layer in layers]
    decision = dict(
        window=[1, 1], epoch=1, iter=4, criterion=dict(type='EBQM'),
        layers=layers, note=None, step_time_before=None, step_time_after=None)
    return dict(
        format=1, windows=[[1, 1]], by_epoch=True, criterion=dict(type='EBQM'),
        skip='layer', layers=names, active=names, decisions=[decision])


@pytest.mark.parametrize('page', [
    page for page in [ROOT / 'README.md', *PAGES]
    if CODE.search(page.read_text())
], ids=name_of)
def test_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """From top to bottom; a block that begins with a path is that file."""
    run = tmp_path / 'work_dirs' / 'my_run'
    run.mkdir(parents=True)
    (run / 'ela_decisions.json').write_text(json.dumps(a_record()))
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    (tmp_path / 'mine').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {}
    for code in CODE.findall(page.read_text()):
        file = re.match(r'# (\S+\.py)\n', code)
        if file is None:
            exec(compile(code, page.name, 'exec'), names)
            continue
        # A config lies beside this project's, but is not written there.
        path = tmp_path / file[1].replace('configs/', 'mine/')
        path.write_text(code)
        if 'mmseg' in code and find_spec('mmseg') is None:
            continue
        if '_base_ =' in code or 'read_base()' in code:
            cfg = Config.fromfile(path)
            assert type_name(cfg.model.backbone).startswith('ELA')
            assert cfg.train_dataloader.dataset


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for name in ('sphinx', 'myst_parser', 'furo'):
        pytest.importorskip(name)
    path = os.pathsep.join(filter(None, [
        str(ROOT), os.environ.get('PYTHONPATH')]))
    built = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b',
         'html', '-d', tmp_path / 'doctrees', ROOT / 'docs', tmp_path / 'html'],
        env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    reference = (tmp_path / 'html' / 'api' / 'pruning.html').read_text()
    assert 'id="ela_mm.ebqm"' in reference
