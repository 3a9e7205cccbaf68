"""Killed anywhere and resumed: the same run, bit for bit."""
import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from toy import toy_config

from ela_mm.engine.record import read_record

HERE = Path(__file__).parent
KILLED = -9
TIMES = ('step_time_before', 'step_time_after', 'steps_timed')


@pytest.fixture(scope='module')
def processes():
    """Fresh processes, forked where torch is imported but has not run yet."""
    path = os.environ.get('PYTHONPATH', '')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', f'{HERE}{os.pathsep}{path}')
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload(['noisy'])
        yield context


@pytest.fixture
def train(processes):
    return Train(processes)


class Train:
    """Runs tools/train.py in a process of its own."""

    def __init__(self, processes):
        self.processes = processes

    def __call__(self, config, work_dir, *arguments, fault='') -> int:
        """Returns the exit code; the output is appended to output.txt."""
        from noisy import tool
        work_dir.mkdir(exist_ok=True)
        process = self.processes.Process(
            target=tool,
            args=('train.py', [config, '--work-dir', work_dir, *arguments],
                  fault, work_dir / 'output.txt'))
        process.start()
        process.join(240)
        return process.exitcode


def noisy_config(path, **overrides) -> Path:
    """Stochastic depth, augmentation, EMA and a metric that draws."""
    cfg = toy_config(
        path.parent, max_epochs=4, windows=[(2, 3)],
        hooks=[dict(type='EMAHook', momentum=0.1), dict(type='Fault')])
    cfg.merge_from_dict({
        'custom_imports': dict(imports=['noisy']),
        'model.backbone': dict(
            _delete_=True, type='mmpretrain.ELAResNet', depth=34,
            base_channels=16, stem_channels=16, drop_path_rate=0.5),
        'train_dataloader.dataset.type': 'NoisyDataset',
        'val_dataloader': dict(
            cfg.train_dataloader, dataset=dict(type='NoisyDataset', size=4),
            sampler=dict(type='DefaultSampler', shuffle=False)),
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
            if 'noisy/score' in scalars:
                metrics.setdefault(scalars['step'], set()).add(
                    scalars['noisy/score'])
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
    a, b = (torch.load(folder / last, weights_only=True)
            for folder in (resumed, whole))
    assert not a['state_dict']['backbone.active'].all()
    for key in ('state_dict', 'ema_state_dict', 'optimizer',
                'param_schedulers'):
        assert_equal(a[key], b[key], key)
    loss, losses = (x['message_hub']['log_scalars']['train/loss'].data[0]
                    for x in (a, b))
    assert loss.tolist() == losses.tolist()
    records = [read_record(folder) for folder in (resumed, whole)]
    for record in records:
        for decision in record['decisions']:
            for name in TIMES:
                decision.pop(name)
    assert records[0] == records[1] and records[0]['decisions']
    assert metrics_of(resumed) == metrics_of(whole)
    assert all(len(values) == 1 for values in metrics_of(whole).values())


# --- epochs ------------------------------------------------------------------


@pytest.fixture(scope='module')
def epochs(processes, tmp_path_factory):
    """Config and work dir of 4 epochs of 4 steps, a window in 2 and 3."""
    folder = tmp_path_factory.mktemp('epochs')
    config = noisy_config(folder / 'config.py')
    assert Train(processes)(config, folder / 'whole') == 0, output_of(
        folder / 'whole')[-3000:]
    return config, folder / 'whole'


@pytest.mark.parametrize('fault, resumed_from', [
    ('iteration:2', None),
    ('iteration:6', 'epoch_1.pth'),
    ('iteration:10', 'epoch_2.pth'),
    ('epoch:3', 'epoch_2.pth'),
    ('iteration:13', 'epoch_3.pth'),
    ('write:epoch_1.pth', None),
    ('write:epoch_3.pth', 'epoch_2.pth'),
    ('name:epoch_3.pth', 'epoch_3.pth'),
    ('validation:4', 'epoch_4.pth'),
], ids=[
    'before_the_first_checkpoint', 'in_the_window', 'later_in_the_window',
    'between_decision_and_checkpoint', 'after_the_window',
    'in_the_first_checkpoint', 'in_a_checkpoint', 'in_last_checkpoint',
    'in_the_last_validation'
])
def test_killed_and_resumed_by_epochs(epochs, train, tmp_path, fault,
                                      resumed_from):
    config, whole = epochs
    assert train(config, tmp_path / 'run', fault=fault) == KILLED
    assert train(config, tmp_path / 'run', '--resume') == 0
    output = output_of(tmp_path / 'run')
    if resumed_from is None:
        assert 'training starts at the beginning' in output
    else:
        assert f'resuming from {tmp_path}/run/{resumed_from}' in output
    assert_same_run(tmp_path / 'run', whole, 'epoch_4.pth')
    damaged = f'{fault.partition(":")[2]} is damaged'
    assert (damaged in output) == (fault == 'write:epoch_1.pth')
