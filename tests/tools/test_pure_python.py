"""Pure Python configs, one of each host: every tool, with classes as types."""
import pytest
from support import ROOT
from support.detector import FUSED_ON_CPUS
from support.running import tool

from ela_mm.analysis.history import read_run

FOLDER = ROOT / 'configs' / 'pure_python'
SMALL = [
    f'{loader}_dataloader.{option}' for loader in ('train', 'val', 'test')
    for option in ('dataset.indices=8', 'batch_size=8', 'num_workers=0',
                   'persistent_workers=False')
] + ['train_cfg.max_epochs=3']


def run(name, *arguments, said=''):
    process = tool(name, *arguments)
    output = process.stdout + process.stderr
    assert process.returncode == 0, output[-2000:]
    assert said in output


def train(name, folder, *options):
    """The config and a work dir."""
    run('train.py', FOLDER / name, '--work-dir', folder, '--cfg-options',
        *SMALL, *options)
    return FOLDER / name, folder


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    return train('ela_resnet20_digits.py', tmp_path_factory.mktemp('pure'))


@pytest.fixture(scope='module')
def detector(tmp_path_factory, digits_root):
    return train(
        'faster_rcnn_ela_r50_digits.py', tmp_path_factory.mktemp('pure'),
        'model.backbone.depth=18', 'model.backbone.base_channels=16',
        'model.neck.in_channels=[16,32,64,128]',
        'model.test_cfg.rcnn.score_thr=0.0',
        f'optim_wrapper.optimizer.fused={FUSED_ON_CPUS}',
        *(f'{loader}_dataloader.dataset.data_root={digits_root}/'
          for loader in ('train', 'val', 'test')),
        *(f'{name}_evaluator.ann_file={digits_root}/val.json'
          for name in ('val', 'test')))


def test_training_prunes(classifier):
    config, work_dir = classifier
    done = read_run(str(work_dir))
    assert [decision.window for decision in done.decisions] == [(1, 1), (3, 3)]
    # The function ebqm, by the name that analyses know.
    assert done.decisions[0].criterion['type'] == 'EBQM'
    # What mmengine dumps: names of modules and classes, which tools read too.
    assert "type='ela_mm.hosts.mmpretrain.ELAResNet_CIFAR'" in (
        work_dir / config.name).read_text()


def test_pictures_are_drawn_and_flips_averaged(classifier, tmp_path):
    config, work_dir = classifier
    options = (config, work_dir / 'epoch_3.pth', '--work-dir', tmp_path,
               '--cfg-options', 'test_dataloader.dataset.indices=8')
    run('test.py', *options, '--show-dir', tmp_path / 'shown')
    assert len(list((tmp_path / 'shown').iterdir())) == 8
    run('test.py', *options, '--tta', '--out', tmp_path / 'predictions.pkl')
    assert (tmp_path / 'predictions.pkl').stat().st_size


def test_the_report_reads_the_config_that_the_run_has_dumped(classifier):
    _, work_dir = classifier
    run('analyze.py', 'report', work_dir, '--without', 'features', 'cost',
        'similarity', said='report: ')


@pytest.mark.slow
@pytest.mark.parametrize('host', ['classifier', 'detector'])
@pytest.mark.parametrize('dumped', [False, True])
def test_every_tool_takes_them(request, host, dumped, digits_root, tmp_path):
    config, work_dir = request.getfixturevalue(host)
    small = [] if dumped else ['--cfg-options', *SMALL]
    if host == 'detector' and not dumped:
        pytest.skip('the network of the config itself is large')
    pair = (work_dir / config.name if dumped else config,
            work_dir / 'epoch_3.pth')
    run('test.py', *pair, '--work-dir', tmp_path, *small)
    run('test.py', *pair, '--work-dir', tmp_path, '--tta', *small)
    run('test.py', *pair, '--work-dir', tmp_path, '--show-dir',
        tmp_path / 'shown', *small)
    assert len(list((tmp_path / 'shown').iterdir())) >= 4
    picture = next((digits_root / 'val').glob('*.png'))
    for command, *options in (
            ('attention', '--images', 8), ('attention', picture),
            ('similarity', '--images', 8), ('ablate', '--images', 8),
            ('whatif', '--batches', 1, '--no-time'),
            ('cost', '--rounds', 1, '--batch', 2, '--shape', 64, 64)):
        run('analyze.py', command, *pair, *options, '--out', tmp_path / command,
            *small, said='written to')
    run('analyze.py', 'redundancy', work_dir, '--out', tmp_path / 'redundancy')
    run('export_pruned.py', *pair, '--out', tmp_path / 'deploy.pth', *small)
