"""What a run says while it trains, when it stops early, and at Ctrl-C."""
import signal
import sys
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner
from support.running import tool
from support.toy import toy_config, validation
from support.training import log_of
from tensorboard.backend.event_processing import event_accumulator

from ela_mm.engine.interruption import tell_interrupted
from ela_mm.engine.journal.record import decisions_of, read_record
from ela_mm.engine.measurement import Measurement

SMALL = {'model.backbone.depth': 18}
DRAWN = {
    'visualizer': dict(type='Visualizer', vis_backends=[
        dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]),
    'default_hooks.logger': dict(type='LoggerHook', interval=2)
}


def runner_of(folder, **options):
    return Runner.from_cfg(toy_config(folder, **{**SMALL, **options}))


def curves(folder):
    (events, ) = folder.glob('**/events.out.tfevents.*')
    reader = event_accumulator.EventAccumulator(str(events.parent))
    reader.Reload()
    return {tag: [(point.step, point.value) for point in reader.Scalars(tag)]
            for tag in reader.Tags()['scalars'] if tag.startswith('ela/')}


# --- curves ------------------------------------------------------------------


def expected(layer, field, steps):
    """Means of single steps, of which the toy's are equally large."""
    values = np.array(getattr(layer, field))
    return [(step, pytest.approx(values[:n].mean(), rel=1e-4))
            for n, step in steps]


def test_a_window_is_a_curve_for_each_layer(tmp_path):
    """At each log interval, and at its end the number that decides."""
    runner_of(tmp_path, max_epochs=3, windows=[(1, 2)],
              hook=dict(redundancy='conditional',
                        criterion=dict(type='fixed', n=1)), **{
                  **DRAWN, 'model.backbone.depth': 34}).train()
    (decision, ) = decisions_of(read_record(tmp_path))
    found = curves(tmp_path)
    measured = [x for x in decision.layers if x.kl is not None]
    assert len(found) == 2 * len(measured) + 1 == 25
    points = [(2, 2), (4, 4), (6, 6), (8, 8)]
    for layer in measured:
        assert found[f'ela/kl/{layer.name}'] == expected(
            layer, 'kl_iterations', points)
        assert found[f'ela/conditional/{layer.name}'] == expected(
            layer, 'conditional_iterations', points)
    assert found['ela/active'] == [(8, decision.active)]


def test_a_window_of_iterations_is_one_too(tmp_path):
    """It begins and ends between the points of the log."""
    runner_of(tmp_path, windows=[(2, 7)], hook=dict(by_epoch=False), **DRAWN,
              **{'train_dataloader.sampler.type': 'InfiniteSampler',
                 'train_cfg': ConfigDict(
                     _delete_=True, type='IterBasedTrainLoop', max_iters=8)
                 }).train()
    (decision, ) = decisions_of(read_record(tmp_path))
    found = curves(tmp_path)
    for layer in decision.layers:
        if layer.kl is not None:
            assert found[f'ela/kl/{layer.name}'] == expected(
                layer, 'kl_iterations', [(1, 2), (3, 4), (5, 6), (6, 7)])
    assert 'measuring iterations 2 to 7: how redundant 8' in log_of(tmp_path)


def test_wandb_counts_the_steps_of_the_log_alone(tmp_path, monkeypatch):
    """It counts calls that commit; what they do not goes with the next one."""
    rows, waiting = [], {}

    class Image(NamedTuple):
        pixels: np.ndarray
        caption: str

    def log(values, commit=True):
        waiting.update(values)
        if commit:
            rows.append(dict(waiting))
            waiting.clear()

    wandb = SimpleNamespace(
        init=lambda **_: None, log=log, Image=Image, run=SimpleNamespace(
            log_code=lambda **_: None), config=SimpleNamespace(
            update=lambda *_, **__: None), join=lambda: None)
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    runner_of(tmp_path, max_epochs=3, windows=[(1, 2)],
              hook=dict(picture=True), **{
                  **DRAWN, 'visualizer': dict(type='Visualizer', vis_backends=[
                      dict(type='WandbVisBackend')])}).train()
    assert [row['iter'] for row in rows] == [2, 4, 6, 8, 10, 12]
    measured = [[tag for tag in row if tag.startswith('ela/kl/')]
                for row in rows]
    # The decision, after the log's fourth row, stands in the fifth.
    assert all(measured[:3]) and measured[4] and not measured[5]
    assert rows[4]['ela/active'] < 8 and not waiting
    assert ['ela_redundancy' in row for row in rows] == [
        False, False, False, False, True, False]
    picture = rows[4]['ela_redundancy']
    assert picture.caption == 'iteration 8'
    assert picture.pixels.ndim == 3 and picture.pixels.dtype == np.uint8


def test_where_nobody_draws_nothing_is_averaged(tmp_path, monkeypatch):

    def refused(self):
        raise AssertionError('nobody asked')

    monkeypatch.setattr(Measurement, 'so_far', refused)
    runner_of(tmp_path, max_epochs=1).train()


# --- an early end ------------------------------------------------------------


def test_early_stopping_before_a_window_is_said_at_the_end(tmp_path):
    stops = dict(type='EarlyStoppingHook', monitor='energy', rule='greater',
                 min_delta=1e9, patience=1)
    runner_of(tmp_path, max_epochs=8, windows=[(1, 1), (4, 5), ('after_warmup', 2)],
              hooks=[stops], param_scheduler=[
                  dict(type='LinearLR', by_epoch=True, end=5)],
              **validation()).train()
    last = log_of(tmp_path).strip().splitlines()[-1]
    assert last.endswith(
        "nothing was decided on epochs 4 to 5 and epochs 6 to 7 ('after_warmup'"
        ', 2): the training was stopped after epoch 2 of 8, by '
        'EarlyStoppingHook or another that sets train_loop.stop_training')
    assert 'WARNING' in last


# --- Ctrl-C ------------------------------------------------------------------


class CtrlC(Hook):
    """Presses it once."""
    priority = 'LOWEST'

    def __init__(self, point, at):
        self.point, self.at = point, at

    def _press(self, point, number):
        if (self.point, self.at) == (point, number):
            raise KeyboardInterrupt

    def after_train_iter(self, runner, *args, **kwargs):
        self._press('step', runner.iter + 1)

    def before_val_epoch(self, runner):
        self._press('validation', runner.iter)


@pytest.mark.parametrize('point, at, said', [
    ('step', 1, 'interrupted before the first step was done, in the window of '
     'epoch 1; there is no checkpoint yet: --resume would start at the '
     'beginning'),
    ('step', 6, 'interrupted in epoch 2 of 3; --resume goes on from '
     'epoch_1.pth'),
    ('validation', 8, 'interrupted in the validation after epoch 2 of 3; '
     '--resume goes on from epoch_2.pth'),
])
def test_ctrl_c_is_one_line(tmp_path, point, at, said):
    runner = runner_of(tmp_path, windows=[(1, 1)], **validation())
    runner.register_hook(CtrlC(point, at))
    with pytest.raises(KeyboardInterrupt) as raised:
        runner.train()
    tell_interrupted(runner, raised.value)  # as the tool does, not once more
    log = log_of(tmp_path)
    assert log.count('interrupted') == 1 and log.rstrip().endswith(said)
    assert 'nothing was decided' not in log


def test_ctrl_c_without_the_hook_and_by_iterations(tmp_path):
    """A checkpoint that was cut off is not promised."""
    runner = runner_of(
        tmp_path, windows=None, **{
            'train_dataloader.sampler.type': 'InfiniteSampler',
            'default_hooks.checkpoint.by_epoch': False,
            'default_hooks.checkpoint.interval': 2,
            'train_cfg': ConfigDict(
                _delete_=True, type='IterBasedTrainLoop', max_iters=8)})
    runner.register_hook(CtrlC('step', 6))
    with pytest.raises(KeyboardInterrupt) as raised:
        runner.train()
    content = (tmp_path / 'iter_6.pth').read_bytes()
    (tmp_path / 'iter_6.pth').write_bytes(content[:-30])
    tell_interrupted(runner, raised.value)
    assert log_of(tmp_path).rstrip().endswith(
        'interrupted after iteration 5 of 8; --resume goes on from iter_4.pth')


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
                    reason='started in the background, where it is ignored')
def test_the_tool_ends_as_shells_expect(tmp_path):
    """SIGINT in a window, once more after a resume."""
    cfg = toy_config(
        tmp_path, max_epochs=3, windows=[(2, 3)], hooks=[dict(type='Fault')],
        custom_imports=dict(imports=['support.noisy']), **SMALL,
        **validation())
    cfg.dump(tmp_path / 'config.py')

    def train(*arguments, fault):
        return tool('train.py', tmp_path / 'config.py', '--work-dir',
                    tmp_path / 'work', *arguments, FAULT=fault)

    process = train(fault='interrupt:6')
    assert process.returncode == 130
    assert 'Traceback' not in process.stdout + process.stderr
    assert process.stdout.rstrip().endswith(
        'interrupted in epoch 2 of 3, in the window of epochs 2 to 3; --resume '
        'goes on from epoch_1.pth')
    process = train('--resume', fault='interrupt:10')
    said = process.stdout
    assert process.returncode == 130
    assert 'Traceback' not in said + process.stderr
    # That of epoch 1 was over by then.
    assert 'validated before: the results of that validation are used' in said
    assert 'validating the resumed checkpoint' not in said
    assert said.rstrip().endswith('goes on from epoch_2.pth')
