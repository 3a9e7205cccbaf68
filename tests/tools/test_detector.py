"""The product end to end: a detector on digits, through the tools."""
import pickle
import re
import subprocess
import sys

import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.runner import Runner
from support.detector import small_config
from support.running import tool
from support.training import without_times

from ela_mm.engine.journal.record import read_record


@pytest.fixture(scope='module')
def trained(digits_root, tmp_path_factory):
    """Config file, work dir and output of a run of tools/train.py."""
    folder = tmp_path_factory.mktemp('detector')
    config = folder / 'small.py'
    small_config(digits_root).dump(config)
    work_dir = folder / 'work'
    process = tool('train.py', config, '--work-dir', work_dir)
    assert process.returncode == 0, process.stderr[-2000:]
    return config, work_dir, process.stdout + process.stderr


def test_prunes_at_the_right_epochs_and_evaluates(trained):
    _, work_dir, output = trained
    decisions = read_record(work_dir)['decisions']
    assert [d['epoch'] for d in decisions] == [1, 3]
    assert decisions[0]['skipped']
    assert re.search(r'skipped \d+: \d+ of 16 attention layers active; steps? ',
                     output)
    assert 'bbox_mAP_50' in output
    # Pruned before the evaluation and the checkpoint of the last epoch.
    assert output.rindex('of 16 attention layers active') < output.rindex(
        'Saving checkpoint at 3 epochs') < output.rindex('bbox_mAP_50')


def test_a_fresh_process_predicts_the_same(trained, tmp_path):
    config, work_dir, _ = trained
    checkpoint = work_dir / 'epoch_3.pth'
    process = tool('test.py', config, checkpoint, '--work-dir', tmp_path,
                   '--out', tmp_path / 'predictions.pkl', '--show-dir',
                   tmp_path / 'drawn')
    assert process.returncode == 0, process.stderr[-2000:]
    predictions = pickle.loads((tmp_path / 'predictions.pkl').read_bytes())
    assert list(tmp_path.glob('**/drawn/*.png'))

    cfg = Config.fromfile(config)
    cfg.work_dir = str(tmp_path / 'here')
    cfg.experiment_name = 'fresh'
    runner = Runner.from_cfg(cfg)
    runner.load_checkpoint(str(checkpoint))
    active = read_record(work_dir)['active']
    assert [layer.name for layer in runner.model.backbone.attention_layers
            if layer.active] == active
    runner.model.eval()
    with torch.no_grad():
        results = [r for batch in runner.test_dataloader
                   for r in runner.model.test_step(batch)]
    assert len(results) == len(predictions) == 4
    for result, prediction in zip(results, predictions):
        ours = result.pred_instances
        assert len(ours) > 0
        assert torch.equal(ours.bboxes, prediction['pred_instances']['bboxes'])
        assert torch.equal(ours.scores, prediction['pred_instances']['scores'])


@pytest.mark.parametrize('config_from_checkpoint', [False, True])
def test_inferencer_gives_what_the_runner_gives(trained, digits_root,
                                                tmp_path,
                                                config_from_checkpoint):
    """mmdet's, on a picture; a checkpoint is enough, it holds its config."""
    config, work_dir, _ = trained
    checkpoint = str(work_dir / 'epoch_3.pth')
    inferencer = DetInferencer(
        None if config_from_checkpoint else str(config), checkpoint,
        device='cpu', show_progress=False)
    active = read_record(work_dir)['active']
    assert [layer.name for layer in inferencer.model.backbone.attention_layers
            if layer.active] == active
    picture = digits_root / 'val' / '00002.png'
    result = inferencer(
        str(picture), out_dir=str(tmp_path / 'out'), no_save_pred=False,
        pred_score_thr=0.)['predictions'][0]
    assert (tmp_path / 'out' / 'vis' / picture.name).is_file()
    assert (tmp_path / 'out' / 'preds' / '00002.json').is_file()

    cfg = Config.fromfile(config)
    cfg.work_dir = str(tmp_path / 'work')
    cfg.experiment_name = f'inferencer_{config_from_checkpoint}'
    runner = Runner.from_cfg(cfg)
    runner.load_checkpoint(checkpoint)
    runner.model.eval()
    with torch.no_grad():
        (sample, ) = (
            sample for batch in runner.test_dataloader
            for sample in runner.model.test_step(batch)
            if sample.img_path == str(picture))
    expected = sample.pred_instances
    assert result['labels'] == expected.labels.tolist() and result['labels']
    # A batch of one rounds otherwise than a batch of four.
    torch.testing.assert_close(
        torch.tensor(result['bboxes']), expected.bboxes, rtol=0, atol=1e-2)
    torch.testing.assert_close(
        torch.tensor(result['scores']), expected.scores, rtol=0, atol=1e-4)


def test_fine_tunes_a_pruned_detector_with_more_windows(trained, tmp_path):
    config, work_dir, _ = trained
    before = read_record(work_dir)['active']
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(
        work_dir=str(tmp_path), experiment_name='fine_tuned',
        load_from=str(work_dir / 'epoch_3.pth')))
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.custom_hooks[0].windows = [(1, 1)]
    cfg.custom_hooks[0].criterion = dict(type='fixed', n=1)
    Runner.from_cfg(cfg).train()
    (decision, ) = read_record(tmp_path)['decisions']
    gone = [x['name'] for x in decision['layers']
            if x['status'] == 'skipped before']
    assert set(gone) == set(read_record(work_dir)['layers']) - set(before)
    assert all(x['kl'] is None for x in decision['layers']
               if x['name'] in gone)
    (more, ) = decision['skipped']
    assert more in before
    state = torch.load(tmp_path / 'epoch_1.pth')['state_dict']
    assert state['backbone.active'].sum() == len(before) - 1


def test_resumes_from_the_latest_checkpoint(trained):
    config, work_dir, _ = trained
    first = read_record(work_dir)['decisions']
    (work_dir / 'epoch_3.pth').unlink()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    process = tool('train.py', config, '--work-dir', work_dir, '--resume')
    assert process.returncode == 0, process.stderr[-2000:]
    output = process.stdout + process.stderr
    assert 'resumed epoch: 2' in output
    assert 'Epoch(train) [2]' not in output
    again = read_record(work_dir)['decisions']
    assert without_times(again[0]) == without_times(first[0])
    assert [d['epoch'] for d in again] == [1, 3]
    assert torch.load(work_dir / 'epoch_3.pth')['state_dict'][
        'backbone.active'].sum() == again[1]['active']


def test_runs_under_the_hosts_own_tool(digits_root, tmp_path):
    """mmdet's installed tools/train.py, which knows nothing of ela_mm."""
    import mmdet
    host = f'{mmdet.__path__[0]}/.mim/tools/train.py'
    config = tmp_path / 'small.py'
    cfg = small_config(digits_root)
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.custom_hooks[0].windows = [(1, 1)]
    cfg.dump(config)
    process = subprocess.run(
        [sys.executable, host, str(config), '--work-dir', str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-2000:]
    assert read_record(tmp_path)['decisions'][0]['epoch'] == 1


COCO = 'configs/faster_rcnn_ela_r50.py'


@pytest.mark.parametrize('name, arguments, message', [
    ('train.py', [COCO], "'data/coco/' does not exist.*data_root=FOLDER"),
    ('train.py', ['configs/none.py'], "config 'configs/none.py' does not"),
    ('train.py', [COCO, '--amp'], '--amp needs a GPU'),
    ('train.py', [COCO, '--resume', 'none.pth'],
     "checkpoint 'none.pth' does not exist"),
    ('train.py', [COCO, '--launcher', 'slurm', '--cfg-options',
                  'train_dataloader.dataset.data_root=',
                  'train_dataloader.dataset.ann_file=',
                  'train_dataloader.dataset.data_prefix.img=',
                  'val_dataloader=None'], 'slurm needs GPUs'),
    ('test.py', [COCO, 'none.pth'], "checkpoint 'none.pth' does not exist"),
    ('test.py', [COCO, COCO, '--out', 'a.txt'], r"'a.txt'.*\.pkl"),
    ('test.py', [COCO, COCO, '--out', 'a.txt', '--out-item', 'metrics'],
     r"'a.txt'.*\.json"),
])
def test_mistakes_end_with_one_line(name, arguments, message, tmp_path):
    process = tool(name, *arguments, '--work-dir', tmp_path)
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ') and re.search(message, last), last
    assert 'Traceback' not in process.stderr


@pytest.mark.parametrize('option, message', [
    ('custom_hooks.0.criterion.mu=3', 'mu=3: expected a threshold'),
    ('custom_hooks.0.windows=[(1,9)]', 'lies past the last epoch'),
    ('model.backbone.head_dim=7', 'head_dim=7 does not divide'),
    ('val_evaluator.ann_file=no.json', 'val_evaluator.ann_file'),
])
def test_wrong_options_end_with_one_line(digits_root, tmp_path, option,
                                         message):
    config = tmp_path / 'small.py'
    cfg = small_config(digits_root)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.type = 'CocoDataset'
        loader.dataset.metainfo = dict(classes=tuple('0123456789'))
    cfg.dump(config)
    process = tool('train.py', config, '--work-dir', tmp_path,
                   '--cfg-options', option)
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ') and message in last, last


def test_auto_scale_lr_needs_a_batch_size(digits_root, tmp_path):
    config = tmp_path / 'small.py'
    cfg = small_config(digits_root)
    cfg.auto_scale_lr = None  # as a config may take its base's back
    cfg.dump(config)
    process = tool('train.py', config, '--auto-scale-lr', '--work-dir',
                   tmp_path)
    assert process.returncode == 1
    assert 'auto_scale_lr=dict(base_batch_size=' in process.stderr
