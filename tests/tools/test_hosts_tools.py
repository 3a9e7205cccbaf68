"""The hosts' own tools, on runs with pruning windows."""
import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from support import ROOT
from support.classifier import train_classifier
from support.detector import small_config
from support.running import tool
from support.segmentor import small_config as small_segmentor

from ela_mm.datasets.digits import make_digit_maps
from ela_mm.run import find_script

pytestmark = pytest.mark.slow


def run(name, *arguments, said='', cwd=ROOT):
    """As ``python -m ela_mm.run`` does, without waiting for imports."""
    process = tool(find_script(name), *arguments, cwd=cwd, MPLBACKEND='Agg')
    output = process.stdout + process.stderr
    assert process.returncode == 0, output[-2000:]
    assert said in output


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """Config, work dir and predictions; validated after a window only."""
    folder = tmp_path_factory.mktemp('classifier')
    config, work_dir, _ = train_classifier(
        folder, '--cfg-options', 'train_cfg.max_epochs=2',
        'train_cfg.val_interval=2', 'default_hooks.logger.interval=1')
    run('mmpretrain/test.py', config, work_dir / 'epoch_2.pth', '--work-dir',
        folder / 'test', '--out', folder / 'predictions.pkl')
    return config, work_dir, folder / 'predictions.pkl'


@pytest.fixture(scope='module')
def detector(digits_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp('detector')
    config = folder / 'small.py'
    small_config(digits_root).dump(config)
    run('mmdet/train.py', config, '--work-dir', folder / 'work', '--cfg-options',
        'default_hooks.logger.interval=1')
    run('mmdet/test.py', config, folder / 'work' / 'epoch_3.pth', '--work-dir',
        folder / 'test', '--out', folder / 'predictions.pkl')
    return config, folder / 'work', folder / 'predictions.pkl'


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory):
    """Config, work dir and predictions, of pictures of 64 px."""
    pytest.importorskip('mmseg')
    folder = tmp_path_factory.mktemp('segmentor')
    make_digit_maps(str(folder / 'data'), num_train=4, num_val=2, size=64)
    config = folder / 'small.py'
    cfg = small_segmentor(folder / 'data')
    cfg.default_hooks.logger.interval = 1
    cfg.dump(config)
    run('mmseg/train.py', config, '--work-dir', folder / 'work')
    run('mmseg/test.py', config, folder / 'work' / 'iter_6.pth', '--work-dir',
        folder / 'test', '--out', folder / 'maps')
    return config, folder / 'work', folder / 'maps'


def scalars(work_dir) -> Path:
    """Of all that a run logs."""
    (path, ) = work_dir.glob('*/vis_data/scalars.json')
    return path


def published(folder) -> dict:
    (path, ) = folder.glob('published*.pth')
    return torch.load(path, weights_only=True)


def test_mmpretrains_log_analysis(classifier, tmp_path):
    """Of a run that ended a window before it validated."""
    log = scalars(classifier[1])
    run('mmpretrain/analysis_tools/analyze_logs.py', 'plot_curve', log, '--keys',
        'accuracy/top1', 'loss', '--out', tmp_path / 'curve.png')
    assert (tmp_path / 'curve.png').stat().st_size
    run('mmpretrain/analysis_tools/analyze_logs.py', 'cal_train_time', log,
        said='slowest epoch')


def test_mmpretrains_results(classifier, tmp_path):
    config, work_dir, predictions = classifier
    folder = 'mmpretrain/analysis_tools/'
    run(folder + 'analyze_results.py', config, predictions, '--out-dir', tmp_path)
    assert list(tmp_path.rglob('*.png'))
    for source in (predictions, work_dir / 'epoch_2.pth'):
        run(folder + 'confusion_matrix.py', config, source, '--show-path',
            tmp_path / 'matrix.png', said='confusion matrix is saved')
    run(folder + 'eval_metric.py', predictions, '--metric', 'type=Accuracy',
        'topk=1', said='accuracy/top1')


def test_mmpretrains_network_and_data(classifier, tmp_path):
    config, work_dir, _ = classifier
    run('mmpretrain/analysis_tools/get_flops.py', config, '--shape', 32, 32,
        said='Params: ')
    # Its model has no attention.
    run('mmpretrain/visualization/vis_scheduler.py',
        ROOT / 'configs' / 'ela_resnet20_digits.py', '--save-path',
        tmp_path / 'rates.png', '--not-show', '--dataset-size', 128,
        '--cfg-options', 'custom_hooks=[]', f'work_dir={tmp_path}')
    run('mmpretrain/model_converters/publish_model.py', work_dir / 'epoch_2.pth',
        tmp_path / 'published.pth', '--dataset-type', 'imagenet')
    assert not published(tmp_path)['state_dict']['backbone.active'].all()


def test_mmdets_results(detector, tmp_path):
    config, work_dir, predictions = detector
    folder = 'mmdet/analysis_tools/'
    if importlib.util.find_spec('seaborn'):
        run(folder + 'analyze_logs.py', 'plot_curve', scalars(work_dir),
            '--keys', 'loss', '--out', tmp_path / 'curve.png')
    run(folder + 'analyze_results.py', config, predictions, tmp_path / 'results',
        '--topk', 2)
    run(folder + 'confusion_matrix.py', config, predictions, tmp_path)
    assert (tmp_path / 'confusion_matrix.png').stat().st_size
    run(folder + 'eval_metric.py', config, predictions, said='coco/bbox_mAP')


def test_mmdets_network_and_data(detector, tmp_path):
    config, work_dir, _ = detector
    run('mmdet/analysis_tools/get_flops.py', config, '--num-images', 1,
        said='Params: ')
    run('mmdet/analysis_tools/browse_dataset.py', config, '--output-dir',
        tmp_path / 'shown', '--not-show')
    assert len(list((tmp_path / 'shown').iterdir())) == 12
    shutil.copy(work_dir / 'epoch_3.pth', tmp_path)
    run('mmdet/model_converters/publish_model.py', tmp_path / 'epoch_3.pth',
        tmp_path / 'published.pth')
    assert not published(tmp_path)['state_dict']['backbone.active'].all()


def test_mmsegs_results(segmentor, tmp_path):
    config, work_dir, predictions = segmentor
    folder = 'mmseg/analysis_tools/'
    if importlib.util.find_spec('seaborn'):
        run(folder + 'analyze_logs.py', scalars(work_dir), '--keys', 'loss',
            '--out', tmp_path / 'curve.png')
        assert (tmp_path / 'curve.png').stat().st_size
    run(folder + 'confusion_matrix.py', config, predictions, tmp_path)
    assert (tmp_path / 'confusion_matrix.png').stat().st_size
    run(folder + 'benchmark.py', config, work_dir / 'iter_6.pth', '--work-dir',
        tmp_path, said='fps')


def test_mmsegs_network(segmentor, tmp_path):
    config, work_dir, _ = segmentor
    # It also writes an example.py where it is.
    run('mmseg/misc/print_config.py', config, said='ELAResNetV1c', cwd=tmp_path)
    shutil.copy(work_dir / 'iter_6.pth', tmp_path)
    run('mmseg/misc/publish_model.py', tmp_path / 'iter_6.pth',
        tmp_path / 'published.pth')
    assert not published(tmp_path)['state_dict']['backbone.active'].all()
