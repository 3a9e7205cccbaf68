"""Killed anywhere and resumed: the same run, bit for bit."""
import json
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from support import ROOT
from support.detector import small_config
from support.running import tool
from support.toy import toy_config
from support.training import without_times
from support.versions import RESUMES_ITERATIONS, STARTS_OVER, with_its_host

from ela_mm.apis.launch import check_checkpoint
from ela_mm.engine.checkpoints import (
    is_intact,
    latest_intact,
    resume_latest,
    warn_of_single_checkpoint,
)
from ela_mm.engine.journal.record import read_record
from ela_mm.engine.randomness import SeededBatches

KILLED = -9


def train(config, work_dir, *arguments, fault='') -> int:
    """Returns the exit code; the output is appended to output.txt."""
    work_dir.mkdir(exist_ok=True)
    return tool('train.py', config, '--work-dir', work_dir, *arguments,
                output=work_dir / 'output.txt', FAULT=fault).returncode


def noisy_config(path, **overrides) -> Path:
    """Stochastic depth, augmentation, EMA and a metric that draws."""
    cfg = toy_config(
        path.parent, max_epochs=4, windows=[(2, 3)],
        hooks=[dict(type='EMAHook', momentum=0.1), dict(type='Fault')])
    cfg.merge_from_dict({
        'custom_imports': dict(imports=['support.noisy']),
        'model.backbone': dict(
            _delete_=True, type='mmpretrain.ELAResNet', depth=34,
            base_channels=16, stem_channels=16, drop_path_rate=0.5),
        'train_dataloader.dataset.type': 'NoisyDataset',
        'val_dataloader': dict(
            cfg.train_dataloader, dataset=dict(type='NoisyDataset', size=4),
            sampler=dict(type='DefaultSampler', shuffle=False)),
        # An epoch in between does not start where a seeded validation ended.
        'train_cfg.val_interval': 2,
        'val_cfg': dict(),
        'val_evaluator': dict(type='NoisyMetric'),
        'param_scheduler': [dict(type='CosineAnnealingLR', by_epoch=False)],
        'optim_wrapper.clip_grad': dict(max_norm=1.),
        'default_hooks.checkpoint': dict(
            save_best='noisy/score', rule='greater'),
        'log_processor': dict(window_size=1),
        **overrides
    })
    cfg.dump(path)
    return path


def output_of(work_dir) -> str:
    return (work_dir / 'output.txt').read_text()


def metrics_of(work_dir) -> dict:
    """By step; of a step that was evaluated twice, all values."""
    metrics = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            scalars = json.loads(line)
            for name in ('noisy/score', 'coco/bbox_mAP'):
                if name in scalars:
                    metrics.setdefault(scalars['step'], set()).add(
                        scalars[name])
    return metrics


def assert_equal(ours, theirs, place=''):
    assert type(ours) is type(theirs), place
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), place
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), place
        for key in ours:
            assert_equal(ours[key], theirs[key], f'{place}.{key}')
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), place
        for i, pair in enumerate(zip(ours, theirs)):
            assert_equal(*pair, f'{place}.{i}')
    else:
        assert ours == theirs, place


def assert_same_run(resumed, whole, last):
    """Weights, averaged weights, optimizer, mask, record, losses, metrics."""
    a, b = (torch.load(folder / last)
            for folder in (resumed, whole))
    assert not a['state_dict']['backbone.active'].all()
    assert a.keys() == b.keys()
    for key in ('state_dict', 'ema_state_dict', 'optimizer',
                'param_schedulers'):
        assert_equal(a.get(key), b.get(key), key)
    loss, losses = (x['message_hub']['log_scalars']['train/loss'].data[0]
                    for x in (a, b))
    assert loss.tolist() == losses.tolist()
    records = [without_times(read_record(folder))
               for folder in (resumed, whole)]
    assert records[0] == records[1] and records[0]['decisions']
    assert metrics_of(resumed) == metrics_of(whole) != {}
    assert all(len(values) == 1 for values in metrics_of(whole).values())


# --- epochs ------------------------------------------------------------------


@pytest.fixture(scope='module')
def epochs(tmp_path_factory):
    """Config and work dir of 4 epochs of 4 steps, a window in 2 and 3."""
    folder = tmp_path_factory.mktemp('epochs')
    config = noisy_config(folder / 'config.py')
    assert train(config, folder / 'whole') == 0, output_of(
        folder / 'whole')[-3000:]
    return config, folder / 'whole'


def resumed_from(work_dir) -> list:
    """Names of the checkpoints, None where a run began anew."""
    names = []
    for line in output_of(work_dir).splitlines():
        if line.startswith('resuming from '):
            names.append(Path(line.split()[-1]).name)
        elif line.startswith('nothing to resume'):
            names.append(None)
    return names


def test_killed_again_and_again(epochs, tmp_path):
    config, whole = epochs
    run = tmp_path / 'run'
    deaths = {
        'iteration:2': None,  # before the first checkpoint
        'write:epoch_1.pth': None,  # half-written, and the only one
        'iteration:6': 'epoch_1.pth',  # inside the window
        'write:epoch_3.pth': 'epoch_2.pth',  # half-written, decision taken
        'epoch:3': 'epoch_2.pth',  # between the decision and the checkpoint
        'name:epoch_3.pth': 'epoch_3.pth',  # last_checkpoint is empty
        'iteration:13': 'epoch_3.pth',  # right after the window
        'validation:4': 'epoch_4.pth',  # nothing is left to train
    }
    for fault in deaths:
        assert train(config, run, '--resume', fault=fault) == KILLED, fault
        if fault == 'epoch:3':  # not in any checkpoint yet
            assert [d['epoch'] for d in read_record(run)['decisions']] == [3]
    assert train(config, run, '--resume') == 0
    assert resumed_from(run) == [None, *deaths.values()]
    assert f'{run}/epoch_1.pth is damaged' in output_of(run)
    assert_same_run(run, whole, 'epoch_4.pth')


@pytest.mark.slow
@pytest.mark.parametrize('fault', [
    'iteration:2', 'iteration:6', 'iteration:10', 'epoch:3', 'iteration:13',
    'write:epoch_1.pth', 'write:epoch_3.pth', 'name:epoch_3.pth',
    'validation:2', 'validation:4'
])
def test_killed_once(epochs, tmp_path, fault):
    config, whole = epochs
    assert train(config, tmp_path / 'run', fault=fault) == KILLED
    assert train(config, tmp_path / 'run', '--resume') == 0
    assert_same_run(tmp_path / 'run', whole, 'epoch_4.pth')


def test_batches_that_are_passed_over_count():
    """As onedl-mmengine asks for it; those that follow draw the same."""

    class Batches:
        number = 0

        def __next__(self):
            self.number += 1
            return self.number, torch.rand(3)

    whole, resumed = (SeededBatches(Batches(), 5) for _ in range(2))
    expected = [next(whole) for _ in range(6)][4:]
    resumed.skip_iter(4)
    for number, noise in expected:
        ours = next(resumed)
        assert ours[0] == number and torch.equal(ours[1], noise)


def test_persistent_workers_draw_the_same(tmp_path):
    """They outlive an epoch; their generators die with the run."""
    config = noisy_config(
        tmp_path / 'config.py', **{
            'train_dataloader.num_workers': 2,
            'train_dataloader.persistent_workers': True
        })
    assert train(config, tmp_path / 'whole') == 0
    assert train(config, tmp_path / 'run', fault='iteration:10') == KILLED
    assert train(config, tmp_path / 'run', '--resume') == 0
    assert_same_run(tmp_path / 'run', tmp_path / 'whole', 'epoch_4.pth')


def test_a_full_disk_ends_the_run_and_loses_nothing(epochs, tmp_path):
    config, whole = epochs
    run = tmp_path / 'run'
    limit = (whole / 'epoch_2.pth').stat().st_size * 3 // 4
    assert train(config, run, fault='iteration:5') == KILLED
    assert train(config, run, '--resume', fault=f'full:{limit}') == 1
    assert 'OSError' in output_of(run)
    assert (run / 'epoch_2.pth').stat().st_size == limit
    assert train(config, run, '--resume') == 0
    assert resumed_from(run) == ['epoch_1.pth', 'epoch_1.pth']
    assert_same_run(run, whole, 'epoch_4.pth')


@pytest.mark.slow
def test_a_detector_samples_the_same_boxes(digits_root, tmp_path):
    cfg = small_config(digits_root)
    cfg.custom_imports.imports.append('support.noisy')
    cfg.custom_hooks.append(dict(type='Fault'))
    config = tmp_path / 'config.py'
    cfg.dump(config)
    assert train(config, tmp_path / 'whole') == 0
    for fault in ('iteration:5', 'validation:3'):
        assert train(config, tmp_path / 'run', '--resume',
                     fault=fault) == KILLED
    assert train(config, tmp_path / 'run', '--resume') == 0
    assert resumed_from(tmp_path / 'run') == [None, 'epoch_1.pth',
                                              'epoch_3.pth']
    assert_same_run(tmp_path / 'run', tmp_path / 'whole', 'epoch_3.pth')


# --- iterations --------------------------------------------------------------


def iterations_config(path, **overrides) -> Path:
    """12 iterations, a window from 3 to 8, a checkpoint every 5."""
    return noisy_config(
        path, **{
            'train_cfg': dict(
                _delete_=True, type='IterBasedTrainLoop', max_iters=12,
                val_interval=2),
            'train_dataloader.sampler.type': 'InfiniteSampler',
            'default_hooks.checkpoint.by_epoch': False,
            'default_hooks.checkpoint.interval': 5,
            'default_hooks.logger': dict(
                type='LoggerHook', log_metric_by_epoch=False),
            'custom_hooks.0.by_epoch': False,
            'custom_hooks.0.windows': [(3, 8)],
            **overrides
        })


@pytest.mark.skipif(not RESUMES_ITERATIONS, reason=STARTS_OVER)
@pytest.mark.parametrize('workers', [
    0, pytest.param(2, marks=pytest.mark.slow)
])
def test_killed_and_resumed_by_iterations(tmp_path, workers):
    config = iterations_config(
        tmp_path / 'config.py', **{'train_dataloader.num_workers': workers})
    run = tmp_path / 'run'
    assert train(config, tmp_path / 'whole') == 0
    deaths = {
        'iteration:7': None,  # inside the window
        'iteration:8': 'iter_5.pth',  # between the decision and a checkpoint
        'write:iter_10.pth': 'iter_5.pth',
        'name:iter_10.pth': 'iter_5.pth',
        'iteration:12': 'iter_10.pth'
    }
    for fault in deaths:
        assert train(config, run, '--resume', fault=fault) == KILLED, fault
    assert train(config, run, '--resume') == 0
    assert resumed_from(run) == [*deaths.values(), 'iter_10.pth']
    assert_same_run(run, tmp_path / 'whole', 'iter_12.pth')


def test_an_epoch_that_is_started_over_is_measured_once(tmp_path):
    """Checkpoints by iteration in an epoch-based loop: mmengine repeats."""
    config = noisy_config(
        tmp_path / 'config.py', **{
            'train_cfg.max_epochs': 3,
            'default_hooks.checkpoint.by_epoch': False,
            'default_hooks.checkpoint.interval': 3
        })
    assert train(config, tmp_path / 'run', fault='iteration:11') == KILLED
    assert train(config, tmp_path / 'run', '--resume') == 0
    assert resumed_from(tmp_path / 'run') == ['iter_9.pth']
    output = output_of(tmp_path / 'run')
    assert 'the checkpoint was taken within epoch 3, which mmengine' in output
    assert 'validating the resumed checkpoint' not in output
    (decision, ) = read_record(tmp_path / 'run')['decisions']
    assert decision['samples'] == 16 and decision['iterations'] == 8


# --- which checkpoint --------------------------------------------------------


def checkpoint(path, age=0) -> Path:
    torch.save(dict(weight=torch.rand(1000)), path)
    os.utime(path, (10**9 - age, 10**9 - age))
    return path


def cut(path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[:-30])  # all weights, no table of contents
    return path


def test_the_latest_intact_checkpoint(tmp_path):
    assert latest_intact(str(tmp_path)) == (None, [])
    first = checkpoint(tmp_path / 'epoch_9.pth', age=9)  # of an older run
    second = checkpoint(tmp_path / 'epoch_1.pth', age=2)
    third = checkpoint(tmp_path / 'epoch_2.pth', age=1)
    checkpoint(tmp_path / 'best_accuracy_epoch_2.pth')
    assert latest_intact(str(tmp_path)) == (str(third), [])
    last = tmp_path / 'last_checkpoint'
    for name in ('', str(tmp_path / 'epoch_7.pth'), '\0\xff'):
        last.write_text(name)
        assert latest_intact(str(tmp_path)) == (str(third), [])
    last.write_text(str(second))
    assert latest_intact(str(tmp_path)) == (str(second), [])
    last.write_text('/moved/from/here/epoch_1.pth')
    assert latest_intact(str(tmp_path)) == (str(second), [])
    cut(second)
    assert latest_intact(str(tmp_path)) == (str(third), [str(second)])
    cut(third)
    assert latest_intact(str(tmp_path))[0] == str(first)
    last.write_text('s3://bucket/epoch_3.pth')
    assert latest_intact(str(tmp_path)) == ('s3://bucket/epoch_3.pth', [])


def test_what_is_intact(tmp_path):
    path = checkpoint(tmp_path / 'epoch_1.pth')
    assert is_intact(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    path.write_bytes(content)
    assert not is_intact(path)
    for content in (b'', bytes(5000)):
        path.write_bytes(content)
        assert not is_intact(path)
    torch.save(
        dict(weight=torch.rand(9)), path,
        _use_new_zipfile_serialization=False)
    assert is_intact(path)


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = cut(checkpoint(tmp_path / 'epoch_1.pth'))
    with pytest.raises(ValueError, match='epoch_1.pth.*is damaged'):
        check_checkpoint(str(path))


def test_nothing_to_resume_starts_as_the_config_says(tmp_path, capsys):
    cfg = Config(dict(work_dir=str(tmp_path), load_from='pretrained.pth'))
    (tmp_path / 'last_checkpoint').write_text('')
    resume_latest(cfg)
    assert (cfg.resume, cfg.load_from) == (False, 'pretrained.pth')
    assert 'training starts at the beginning' in capsys.readouterr().out
    checkpoint(tmp_path / 'epoch_1.pth')
    resume_latest(cfg)
    assert (cfg.resume, cfg.load_from) == (True, str(tmp_path / 'epoch_1.pth'))


def test_a_single_kept_checkpoint_is_a_risk(capsys):
    for kept, said in ((1, True), (2, False), (-1, False)):
        warn_of_single_checkpoint(
            Config(dict(default_hooks=dict(checkpoint=dict(
                type='CheckpointHook', max_keep_ckpts=kept)))))
        assert ('2 is safe' in capsys.readouterr().out) == said
    for absent in (dict(), dict(default_hooks=None)):
        warn_of_single_checkpoint(Config(absent))


@pytest.mark.parametrize('config', map(
    with_its_host, sorted((ROOT / 'configs').glob('*.py'))))
def test_the_configs_keep_more_than_one_checkpoint(config):
    cfg = Config.fromfile(config)
    assert cfg.default_hooks.checkpoint.get('max_keep_ckpts') != 1
