"""Every tool takes a network of any family, as a user runs it."""
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from support.classifier import CONFIG, write_pictures
from support.families import FAMILIES, each_family
from support.family_runs import LastPooled
from support.running import tool

from ela_mm.apis.data import file_batches
from ela_mm.apis.loading import load_model
from ela_mm.engine.journal.record import read_record

# Branches would stand beside pictures in the batch, of which each has a label.
ALONE = dict(trident=dict(
    num_branch=1, trident_dilations=(1, ), test_branch_idx=0))


def run(name, *arguments):
    process = tool(name, *arguments)
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


def config_of(name, folder):
    """Of a classifier, beside its pictures."""
    write_pictures(folder / 'data')
    path = folder / 'classifier.py'
    path.write_text(CONFIG.replace('{root}', str(folder / 'data')))
    cfg = Config.fromfile(path)
    side = FAMILIES[name].side
    for kind in ('train', 'val', 'test'):
        cfg[f'{kind}_dataloader'].dataset.pipeline.insert(
            1, dict(type='Resize', scale=(side, side)))
    backbone = {**FAMILIES[name].config, **ALONE.get(name, {})}
    net = MODELS.build(backbone).eval()
    with torch.no_grad():
        (pooled, ) = LastPooled()(net(torch.zeros(2, 3, side, side)))
    cfg.model.backbone = backbone
    cfg.model.neck = dict(type='LastPooled')
    cfg.model.head.in_channels = pooled.shape[1]
    cfg.custom_imports.imports.append('support.family_runs')
    cfg.dump(path)
    return path


@pytest.mark.slow
@each_family()
def test_every_tool_takes_a_network_of_the_family(name, tmp_path):
    config, work = config_of(name, tmp_path), tmp_path / 'work'
    run('train.py', config, '--work-dir', work)
    checkpoint = work / 'epoch_1.pth'
    record = read_record(work)
    assert len(record['active']) < len(record['layers'])
    run('test.py', config, checkpoint, '--work-dir', tmp_path / 'test')

    picture = tmp_path / 'data' / '0' / '1.png'
    out = ['--out', tmp_path / 'analysis']
    printed = run('analyze.py', 'features', config, checkpoint, picture,
                  '--channels', 2, *out)
    assert 'class ' in printed
    for command in (['attention', config, checkpoint, '--images', 4],
                    ['similarity', config, checkpoint, '--images', 4,
                     '--batch', 4],
                    ['ablate', config, checkpoint, '--images', 4],
                    ['redundancy', work],
                    ['whatif', work, '--no-time'],
                    ['cost', config, checkpoint, '--rounds', 2]):
        run('analyze.py', *command, *out)
    run('analyze.py', 'report', work, '--out', tmp_path / 'report.html')
    page = (tmp_path / 'report.html').read_text()
    assert 'is left out' not in page

    small = tmp_path / 'small.pth'
    printed = run('export_pruned.py', config, checkpoint, '--out', small,
                  '--onnx', tmp_path / 'small.onnx', '--shape',
                  *[FAMILIES[name].side] * 2)
    assert 'left out' in printed and 'onnxruntime agrees to' in printed
    cfg = Config.fromfile(config)
    (batch, ) = file_batches(cfg, [str(picture)])
    with torch.no_grad():
        whole, deployed = (
            load_model(cfg, str(path))[0].test_step(batch)[0].pred_score
            for path in (checkpoint, small))
    assert torch.equal(whole, deployed)
