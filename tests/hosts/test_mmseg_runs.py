"""A segmentor on digits, through the tools."""
import json
import pickle
import subprocess
import sys
from copy import deepcopy

import cv2
import numpy as np
import pytest
import torch
from support.running import tool
from torch.nn.functional import pad

pytest.importorskip('mmseg')

import mmseg  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import DATASETS  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402
from mmseg.apis import MMSegInferencer  # noqa: E402
from support.segmentor import small_config  # noqa: E402
from support.versions import RESUMES_ITERATIONS, STARTS_OVER  # noqa: E402

from ela_mm.analysis.ablate import ablate  # noqa: E402
from ela_mm.apis.data import annotated_batches, file_batches  # noqa: E402
from ela_mm.apis.loading import load_model  # noqa: E402
from ela_mm.datasets.digits import make_digit_maps  # noqa: E402
from ela_mm.engine.journal.record import read_record  # noqa: E402
from ela_mm.engine.trial import loss_of  # noqa: E402
from ela_mm.pruning.build import build_criterion  # noqa: E402


@pytest.fixture(scope='module')
def digit_maps(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'digits_maps'
    make_digit_maps(str(root), num_train=12, num_val=4, size=64, seed=1)
    return root


@pytest.fixture(scope='module')
def trained(digit_maps, tmp_path_factory):
    """Config file, work dir and output of a run of tools/train.py."""
    folder = tmp_path_factory.mktemp('segmentor')
    config = folder / 'small.py'
    small_config(digit_maps).dump(config)
    work_dir = folder / 'work'
    process = tool('train.py', config, '--work-dir', work_dir)
    assert process.returncode == 0, process.stderr[-2000:]
    return config, work_dir, process.stdout + process.stderr


def test_the_set_makes_itself_once(tmp_path, monkeypatch):
    monkeypatch.setattr(
        'ela_mm.datasets.mmseg.make_digit_maps',
        lambda root: make_digit_maps(root, num_train=3, num_val=2))
    config = dict(
        type='mmseg.DigitsSegmentationDataset',
        data_root=str(tmp_path / 'digits'),
        data_prefix=dict(img_path='train', seg_map_path='train_maps'),
        pipeline=[dict(type='LoadImageFromFile'),
                  dict(type='mmseg.LoadAnnotations')])
    dataset = DATASETS.build(config)
    sample = dataset[0]
    assert len(dataset) == 3 and sample['img'].shape == (96, 96, 3)
    labels = np.unique(sample['gt_seg_map'])
    assert labels[0] == 0 and len(labels) > 1 and labels[-1] < len(
        dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == 11
    place = tmp_path / 'digits' / 'train_maps' / '00000.png'
    written = place.stat().st_mtime_ns
    DATASETS.build(config)
    assert place.stat().st_mtime_ns == written


def run(name, *arguments):
    process = tool(name, *arguments)
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


def mean_iou(predictions, root):
    """By hand, in percent, of the classes that occur."""
    found, truth = [], []
    for prediction in predictions:
        name = prediction['img_path'].split('/')[-1]
        found.append(np.asarray(prediction['pred_sem_seg']['data'])[0])
        truth.append(cv2.imread(str(root / 'val_maps' / name), 0))
    found, truth = np.stack(found), np.stack(truth)
    shares = []
    for label in range(11):
        both = ((found == label) & (truth == label)).sum()
        either = ((found == label) | (truth == label)).sum()
        if either:
            shares.append(both / either)
    return 100 * np.mean(shares)


def test_prunes_by_iterations_and_evaluates(trained):
    _, work_dir, output = trained
    record = read_record(work_dir)
    assert not record['by_epoch']
    assert [d['iter'] for d in record['decisions']] == [2, 5]
    assert record['decisions'][0]['skipped']
    assert 'mIoU' in output and 'per class results' in output
    state = torch.load(work_dir / 'iter_6.pth')
    active = [bool(x) for x in state['state_dict']['backbone.active']]
    assert [name for name, on in zip(record['layers'], active) if on] == (
        record['active'])
    # The average is pruned alike.
    assert torch.equal(state['ema_state_dict']['module.backbone.active'],
                       state['state_dict']['backbone.active'])


@pytest.mark.parametrize('options', [[], ['--tta']], ids=['', 'flips'])
def test_a_fresh_process_says_the_miou_of_its_predictions(
        trained, digit_maps, tmp_path, options):
    config, work_dir, _ = trained
    arguments = [config, work_dir / 'iter_6.pth', '--work-dir', tmp_path,
                 *options]
    run('test.py', *arguments, '--out', tmp_path / 'maps.pkl', '--show-dir',
        tmp_path / 'drawn')
    predictions = pickle.loads((tmp_path / 'maps.pkl').read_bytes())
    (log, ) = tmp_path.glob('*/*.json')
    said = json.loads(log.read_text())['mIoU']
    assert said == pytest.approx(mean_iou(predictions, digit_maps), abs=6e-3)
    assert 'seg_logits' not in predictions[0]
    assert len(list(tmp_path.glob('drawn/vis_data/vis_image/*.png'))) == 4
    if not options:
        inferencer = MMSegInferencer(
            str(config), str(work_dir / 'iter_6.pth'), device='cpu')
        for prediction in predictions:
            answer = inferencer(prediction['img_path'])['predictions']
            assert np.array_equal(answer, prediction['pred_sem_seg']['data'][0])


@pytest.mark.skipif(not RESUMES_ITERATIONS, reason=STARTS_OVER)
def test_resumes_as_if_nothing_had_been(trained, tmp_path):
    config, work_dir, _ = trained
    work = tmp_path / 'work'
    work.mkdir()
    for name in ('iter_3.pth', 'ela_decisions.json'):
        (work / name).write_bytes((work_dir / name).read_bytes())
    (work / 'last_checkpoint').write_text(str(work / 'iter_3.pth'))
    run('train.py', config, '--work-dir', work, '--resume')
    for part in ('state_dict', 'ema_state_dict'):
        ours, theirs = (
            torch.load(folder / 'iter_6.pth')[part]
            for folder in (work, work_dir))
        for name, value in theirs.items():
            assert torch.equal(value, ours[name]), name


def test_labels_are_resized_with_the_picture_for_a_loss(trained, digit_maps):
    config, work_dir, _ = trained
    cfg = Config.fromfile(config)
    pipeline = cfg.val_dataloader.dataset.pipeline
    pipeline.insert(1, dict(type='Resize', scale=(32, 32)))
    model, _ = load_model(cfg, str(work_dir / 'iter_6.pth'))
    (batch, ) = annotated_batches(cfg, 2)
    for picture, sample in zip(batch['inputs'], batch['data_samples']):
        assert picture.shape[1:] == (32, 32)
        truth = cv2.imread(sample.seg_map_path, 0)
        assert np.array_equal(sample.gt_sem_seg.data[0], cv2.resize(
            truth, (32, 32), interpolation=cv2.INTER_NEAREST))
    found = ablate(model, [batch], build_criterion(None))
    assert found.loss > 0 and found.top1 is None
    assert set(found.layers) == set(read_record(work_dir)['active'])


def test_pictures_of_several_sizes_share_a_batch(trained):
    """mmseg pads them in training alone; the loss leaves out what is padded."""
    config, work_dir, _ = trained
    model, _ = load_model(Config.fromfile(config), str(work_dir / 'iter_6.pth'))
    # With weights, mmseg cannot leave labels out, in training either.
    model.decode_head.loss_decode.class_weight = None
    samples = [next(annotated_batches(_sized(config, side), 1, 1))
               for side in (64, 32)]
    batch = {key: [x[key][0] for x in samples] for key in samples[0]}
    alone = [model.data_preprocessor(deepcopy(x), False) for x in samples]
    large, small = (x['inputs'] for x in alone)
    (sample, ) = alone[1]['data_samples']
    sample.gt_sem_seg = PixelData(data=pad(
        sample.gt_sem_seg.data, (0, 32, 0, 32), value=255))
    with torch.no_grad():
        losses = model._run_forward(dict(
            inputs=torch.cat([large, pad(small, (0, 32, 0, 32))]),
            data_samples=[x['data_samples'][0] for x in alone]), mode='loss')
        expected = float(model.parse_losses(losses)[0])
    assert loss_of(model, batch) == pytest.approx(expected, rel=1e-6)
    found = ablate(model, [batch], build_criterion(None))
    assert found.loss == pytest.approx(expected, rel=1e-6)


def _sized(config, side) -> Config:
    cfg = Config.fromfile(config)
    cfg.val_dataloader.dataset.pipeline.insert(
        1, dict(type='Resize', scale=(side, side)))
    return cfg


@pytest.mark.slow
def test_runs_under_the_hosts_own_tool(digit_maps, tmp_path):
    """mmseg's installed tools/train.py, which knows nothing of ela_mm."""
    host = f'{mmseg.__path__[0]}/.mim/tools/train.py'
    cfg = small_config(digit_maps)
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.custom_hooks[0].windows = [(1, 2)]
    cfg.dump(tmp_path / 'small.py')
    process = subprocess.run(
        [sys.executable, host, str(tmp_path / 'small.py'), '--work-dir',
         str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-2000:]
    assert read_record(tmp_path)['decisions'][0]['iter'] == 2


@pytest.mark.slow
def test_every_tool_takes_a_segmentor(trained, digit_maps, tmp_path):
    config, work_dir, _ = trained
    checkpoint = work_dir / 'iter_6.pth'
    picture = digit_maps / 'val' / '00001.png'
    out = ['--out', tmp_path / 'analysis']
    printed = run('analyze.py', 'features', config, checkpoint, picture,
                  '--channels', 2, '--layers', 'layer4.0', 'layer4.1', *out)
    assert 'pixels of class' in printed
    for command in (['attention', config, checkpoint, '--images', 4],
                    ['similarity', config, checkpoint, '--images', 4,
                     '--batch', 4],
                    ['ablate', config, checkpoint, '--images', 4],
                    ['redundancy', work_dir],
                    ['whatif', work_dir, '--no-time'],
                    ['cost', config, checkpoint, '--rounds', 2]):
        run('analyze.py', *command, *out)
    run('analyze.py', 'report', work_dir, '--out', tmp_path / 'report.html')
    page = (tmp_path / 'report.html').read_text()
    assert 'pixels of class' in page and 'is left out' not in page
    printed = run('export_pruned.py', config, checkpoint, '--out',
                  tmp_path / 'small.pth', '--onnx', tmp_path / 'small.onnx',
                  '--scores', '--shape', 48, 64)
    assert 'images (batch, 3, 48, 64) -> scores' in printed
    ours, theirs = (
        load_model(Config.fromfile(config), str(path))[0]
        for path in (checkpoint, tmp_path / 'small.pth'))
    (batch, ) = file_batches(Config.fromfile(config), [str(picture)])
    with torch.no_grad():
        first, second = (
            model.test_step(batch)[0].seg_logits.data
            for model in (ours, theirs))
    assert torch.equal(first, second)
