"""Pure Python configs, one of each host: every tool, with classes as types."""
from typing import List, NamedTuple

import pytest
import torch
import yaml
from support import ROOT
from support.detector import FUSED_ON_CPUS
from support.running import tool

from ela_mm.analysis.history import read_run
from ela_mm.apis.loading import config_from_file
from ela_mm.datasets.digits import make_digit_maps
from ela_mm.experiments.validity.study import Pictures
from ela_mm.experiments.validity.training import load_pictures

FOLDER = ROOT / 'configs' / 'pure_python'
LOADERS = ('train', 'val', 'test')
SMALL = [
    f'{loader}_dataloader.{option}' for loader in LOADERS
    for option in ('dataset.indices=8', 'batch_size=8', 'num_workers=0',
                   'persistent_workers=False')
]
SMALL_DETECTOR = [
    'model.backbone.depth=18', 'model.backbone.base_channels=16',
    'model.neck.in_channels=[16,32,64,128]',
    'model.test_cfg.rcnn.score_thr=0.0',
    f'optim_wrapper.optimizer.fused={FUSED_ON_CPUS}']
SMALL_SEGMENTOR = [
    'model.backbone.depth=18', 'model.backbone.stem_channels=8',
    'model.neck.in_channels=[16,32,64,128]',
    'model.data_preprocessor.size=(64,64)', 'train_cfg.max_iters=3',
    'train_cfg.val_interval=3', 'default_hooks.checkpoint.interval=3',
    'custom_hooks.0.windows=[(1,1),(3,3)]']


class Trained(NamedTuple):
    """A run, and the options that it and its tools take."""
    config: str
    work_dir: str
    checkpoint: str
    options: List[str]
    picture: str


def run(name, *arguments, said=''):
    process = tool(name, *arguments)
    output = process.stdout + process.stderr
    assert process.returncode == 0, output[-2000:]
    assert said in output


def train(name, folder, picture, *options):
    options = [*SMALL, *options]
    run('train.py', FOLDER / name, '--work-dir', folder, '--cfg-options',
        *options)
    return Trained(FOLDER / name, folder,
                   folder / (folder / 'last_checkpoint').read_text(), options,
                   picture)


@pytest.fixture(scope='module')
def classifier(tmp_path_factory, digits_root):
    return train('ela_resnet20_digits.py', tmp_path_factory.mktemp('pure'),
                 digits_root / 'val' / '00000.png', 'train_cfg.max_epochs=3')


@pytest.fixture(scope='module')
def detector(tmp_path_factory, digits_root):
    return train(
        'faster_rcnn_ela_r50_digits.py', tmp_path_factory.mktemp('pure'),
        digits_root / 'val' / '00000.png', *SMALL_DETECTOR,
        'train_cfg.max_epochs=3',
        *(f'{loader}_dataloader.dataset.data_root={digits_root}/'
          for loader in LOADERS),
        *(f'{name}_evaluator.ann_file={digits_root}/val.json'
          for name in ('val', 'test')))


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory):
    pytest.importorskip('mmseg')
    folder = tmp_path_factory.mktemp('pure')
    make_digit_maps(str(folder / 'data'), num_train=8, num_val=4, size=64)
    return train(
        'fpn_ela_r50_digits.py', folder / 'work',
        folder / 'data' / 'val' / '00001.png', *SMALL_SEGMENTOR,
        *(f'{loader}_dataloader.dataset.data_root={folder}/data/'
          for loader in LOADERS))


def test_training_prunes(classifier):
    done = read_run(str(classifier.work_dir))
    assert [decision.window for decision in done.decisions] == [(1, 1), (3, 3)]
    # The function ebqm, by the name that analyses know.
    assert done.decisions[0].criterion['type'] == 'EBQM'
    # What mmengine dumps: names of modules and classes, which tools read too.
    assert "type='ela_mm.hosts.mmpretrain.ELAResNet_CIFAR'" in (
        classifier.work_dir / classifier.config.name).read_text()


def test_pictures_are_drawn_and_flips_averaged(classifier, tmp_path):
    options = (classifier.config, classifier.checkpoint, '--work-dir', tmp_path,
               '--cfg-options', 'test_dataloader.dataset.indices=8')
    run('test.py', *options, '--show-dir', tmp_path / 'shown')
    assert len(list((tmp_path / 'shown').iterdir())) == 8
    run('test.py', *options, '--tta', '--out', tmp_path / 'predictions.pkl',
        '--show-dir', tmp_path / 'shown_flipped')
    assert (tmp_path / 'predictions.pkl').stat().st_size
    assert len(list((tmp_path / 'shown_flipped').iterdir())) == 8


def test_the_report_reads_the_config_that_the_run_has_dumped(classifier):
    run('analyze.py', 'report', classifier.work_dir, '--without', 'features',
        'cost', 'similarity', said='report: ')


def test_studies_read_their_pictures():
    cfg = config_from_file(str(FOLDER / 'ela_resnet20_digits.py'))
    read = load_pictures(cfg, Pictures(range(4), range(4, 6), range(3)))
    assert [len(pictures.samples) for pictures in read] == [4, 2, 3]
    again = load_pictures(cfg, Pictures(range(2, 4), range(4, 6), range(3)))
    assert torch.equal(read[0].inputs[2:], again[0].inputs)


@pytest.fixture(params=['classifier', 'detector', 'segmentor'])
def trained(request):
    return request.getfixturevalue(request.param)


@pytest.mark.slow
@pytest.mark.parametrize('dumped', [False, True])
def test_every_tool_takes_them(trained, dumped, tmp_path):
    small = [] if dumped else ['--cfg-options', *trained.options]
    pair = (trained.work_dir / trained.config.name if dumped else trained.config,
            trained.checkpoint)
    run('test.py', *pair, '--work-dir', tmp_path, *small)
    for flips in ([], ['--tta']):
        shown = tmp_path / f'shown{"".join(flips)}'
        run('test.py', *pair, '--work-dir', tmp_path, '--show-dir', shown,
            *flips, *small)
        assert len(list(shown.rglob('*.png'))) >= 4
    for command, *options in (
            ('layers', ), ('attention', '--images', 8),
            ('attention', trained.picture), ('similarity', '--images', 8),
            ('ablate', '--images', 8), ('whatif', '--batches', 1, '--no-time'),
            ('features', trained.picture, '--channels', 2, '--layers',
             'layer2.0', 'layer2.1'),
            ('cost', '--rounds', 1, '--batch', 2, '--shape', 64, 64)):
        run('analyze.py', command, *pair, *options, '--out', tmp_path / command,
            *small, said='' if command == 'layers' else 'written to')
    run('analyze.py', 'plan', *pair, '--rounds', 1, *small, said='windows')
    run('export_pruned.py', *pair, '--out', tmp_path / 'deploy.pth', *small)
    run('edit_mask.py', trained.checkpoint, '--undo-window', 1, '--out',
        tmp_path / 'edited.pth')
    run('test.py', pair[0], tmp_path / 'edited.pth', '--work-dir', tmp_path,
        *small)


@pytest.mark.slow
def test_every_analysis_of_a_run_takes_them(trained, tmp_path):
    for command in ('redundancy', 'whatif'):
        run('analyze.py', command, trained.work_dir, '--out',
            tmp_path / command, *['--no-time'][:command == 'whatif'])
    run('analyze.py', 'report', trained.work_dir, '--out',
        tmp_path / 'report.html')
    assert 'is left out' not in (tmp_path / 'report.html').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('metric', ['accuracy/top1', 'coco/bbox_mAP', 'mIoU'])
def test_a_grid_takes_them_and_goes_on(request, metric, tmp_path):
    """In processes of their own, where a function has another address."""
    of = {'accuracy/top1': 'classifier', 'coco/bbox_mAP': 'detector',
          'mIoU': 'segmentor'}[metric]
    trained = request.getfixturevalue(of)
    overrides = dict(option.split('=', 1) for option in trained.options)
    grid = dict(config=str(trained.config), seeds=[0], metrics=[metric],
                overrides={key: yaml.safe_load(value.replace('(', '[').replace(
                    ')', ']')) for key, value in overrides.items()},
                variants={'ELA': {}, 'fixed': {
                    'custom_hooks.0.criterion': dict(type='fixed', n=1)}})
    path = tmp_path / 'grid.yaml'
    path.write_text(yaml.safe_dump(grid))
    run('ablation.py', path, '--out', tmp_path / 'runs')
    done = (tmp_path / 'runs' / 'results.csv').read_text()
    assert len(done.splitlines()) == 3
    run('ablation.py', path, '--out', tmp_path / 'runs')  # nothing is left to do
    assert (tmp_path / 'runs' / 'results.csv').read_text() == done
    run('analyze.py', 'compare', tmp_path / 'runs', '--out', tmp_path)
