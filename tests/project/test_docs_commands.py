"""Every command of the documentation runs, in small, or is named with why not."""
import json
import os
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from support import ROOT

from ela_mm.hosts.mmdet import ELAResNet
from ela_mm.hosts.mmpretrain import ELAResNet_CIFAR

BLOCK = re.compile(r'^```(\w+)\n(.*?)^```', re.M | re.S)
FILE = re.compile(r'# (\S+\.(?:py|yaml))\n')
PAGES = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]

# What no test runs from the pages: words of the command, and why.
NOT_RUN = {
    r'make (setup|demo|test|test-all)\b': 'installs the stack',
    r'pip install': 'installs packages',
    r'--nnodes=': 'several machines',
    r'#SBATCH|MASTER_PORT=|srun': 'Slurm',
    r'nproc_per_node=[48]': 'many processes; two run from distributed.md',
    r'--amp': 'a GPU',
    r'configs/(faster|mask)_rcnn_ela_r\d+': 'COCO',
    r'_cifar100?\.py|table[14]': 'CIFAR; tests/tools/test_ablation.py',
    r'validity|starts': 'minutes; tests/tools/test_validity.py',
    r'--preset digits': 'minutes; tests/tools/test_ablation.py',
    r'dev\.drop_in': 'hours; tests/project/test_drop_in.py',
    r'ela_mm\.run': 'a detector; tests/tools/test_hosts_tools.py',
    r'-m pytest': 'the tests themselves',
    r'my_detector': "a reader's data; tests/tools/test_detector.py",
    r'fpn_ela_r50': 'minutes; tests/hosts/test_mmseg_runs.py',
}

TRAIN = 'python tools/train.py configs/ela_resnet20_digits.py'
RUN = 'work_dirs/ela_resnet20_digits'
# What stands for names in capitals, for a reader's runs, and for what is large.
STANDS_FOR = {
    r'\bCONFIG\b': 'configs/ela_resnet20_digits.py',
    r'\bCHECKPOINT\b': f'{RUN}/epoch_10.pth',
    r'work_dirs/my_run\b': RUN,
    r'work_dirs/mine/epoch_7': f'{RUN}/epoch_10',
    r'work_dirs/mine': RUN,
    r'work_dirs/faster_rcnn_ela_r101/epoch_12': f'{RUN}/epoch_10',
    r'THEIRS\.pth OURS\.pth --source dla':
        'THEIRS_DLA.pth OURS_DLA.pth --source dla',
    r'--batches 20': '--batches 2',
    r'(tools/complexity\.py)': r'\1 --tables table1_cifar10',
    # Of an option that is given twice the second holds.
    r'(tools/benchmark\.py.*)':
        r'\1 --networks cifar20 --rounds 1 --no-peak --batch 4 --size 32',
    r'(?<![\w/])torchrun\b': 'python -m torch.distributed.run',
    r'^ela\b': 'python -m ela_mm.cli',
    r'(?<![\w/])python(?![\w/.])': sys.executable,
}
SMALLER_GRID = """seeds: [0]
overrides:
  train_cfg.max_epochs: 1
  custom_hooks.0.windows: [[1, 1]]"""
# By what pages say, where it is more than words.
WRITTEN = {
    'deploying.md': [f'{RUN}/epoch_10_deploy.pth', 'net.onnx'],
    'getting_started.md': [f'{RUN}/ela_report.html'],
    'reading_the_report.md': ['work_dirs/ela_analysis/compare.html'],
    'training.md': ['work_dirs/my_grid/results.md'],
    'using_ela.md': ['OURS.pth', f'{RUN}/edited.pth'],
}


class Command(NamedTuple):
    """A line of a page, without its comment."""
    page: str
    text: str

    @property
    def why_not(self):
        return next((why for words, why in NOT_RUN.items()
                     if re.search(words, self.text)), None)


def blocks(page, kind):
    return [text for language, text in BLOCK.findall(page.read_text())
            if language == kind]


COMMANDS = [
    Command(page.name, line.partition('  #')[0].strip())
    for page in PAGES for block in blocks(page, 'bash')
    for line in block.replace('\\\n', ' ').splitlines()
    if line.strip() and not line.startswith('# ')
]
# Each once, whatever pages have it.
TRIED = list({command.text: command for command in reversed(COMMANDS)
              if command.why_not is None}.values())[::-1]


def test_what_does_not_run_says_why():
    """And where something like it runs, that is there."""
    assert len(COMMANDS) > 60 and len(TRIED) > 30
    for words, why in NOT_RUN.items():
        assert any(re.search(words, line.text) for line in COMMANDS), words
        for path in re.findall(r'tests/\S+\.py', why):
            assert (ROOT / path).is_file(), path


def shell(line, folder):
    """Run a command of a page in a copy of the repository."""
    for words, stand_in in STANDS_FOR.items():
        line = re.sub(words, stand_in, line)
    path = os.pathsep.join(filter(None, [
        str(ROOT), os.environ.get('PYTHONPATH')]))
    line = line.replace('PYTHONPATH=.', f'PYTHONPATH=.:{path}')
    done = subprocess.run(
        ['bash', '-c', line], cwd=folder, capture_output=True, text=True,
        env={'OMP_NUM_THREADS': '1', **os.environ, 'PYTHONPATH': path})
    assert done.returncode == 0, f'{line}\n{done.stdout}\n{done.stderr[-2000:]}'
    return done.stdout


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    """Of what the commands name: files that pages show, runs, weights."""
    folder = tmp_path_factory.mktemp('copy')
    shutil.copytree(ROOT / 'configs', folder / 'configs')
    (folder / 'tools').symlink_to(ROOT / 'tools')
    for page in PAGES:
        for text in [*blocks(page, 'python'), *blocks(page, 'yaml')]:
            named = FILE.match(text)
            if named:
                (folder / named[1]).write_text(text.replace(
                    'seeds: [0, 1]\noverrides:', SMALLER_GRID))
    for name, source, network in (
            ('THEIRS', 'mrla', ELAResNet(depth=50)),
            ('THEIRS_DLA', 'dla', ELAResNet_CIFAR(depth=20, attention='dla'))):
        state = {f'backbone.{k}': v for k, v in network.state_dict().items()}
        torch.save(dict(state_dict=state), folder / 'ours.pth')
        shell(f'python tools/convert_weights.py ours.pth {name}.pth --reverse '
              f'--source {source}', folder)
    shell(TRAIN, folder)
    for name in ('seed_0', 'seed_1', 'mrla'):
        shutil.copytree(folder / RUN, folder / 'work_dirs' / name)
    return folder


def with_layers_of(run, line):
    """A line whose layers and window are those of a run."""
    record = json.loads((run / 'ela_decisions.json').read_text())
    window, decision = next((i, d) for i, d in enumerate(
        record['decisions'], start=1) if d['skipped'])
    (kept, *_) = (x['name'] for x in decision['layers'] if x['status'] == 'kept')
    stand_ins = {'window 2': f'window {window}', 'layer2.1': kept,
                 'layer3.5': decision['skipped'][0]}
    # At once: what stands in for one name may be the other name.
    return re.sub('|'.join(map(re.escape, stand_ins)),
                  lambda found: stand_ins[found[0]], line)


@pytest.mark.slow
@pytest.mark.parametrize('page', dict.fromkeys(x.page for x in TRIED))
def test_commands_of_a_page_run(page, copy):
    for command in TRIED:
        if command.page != page or TRAIN in command.text:
            continue
        line = command.text
        if 'edit_mask' in line:
            line = with_layers_of(copy / RUN, line)
        shell(line, copy)
    for name in WRITTEN.get(page, ()):
        assert (copy / name).is_file(), name
