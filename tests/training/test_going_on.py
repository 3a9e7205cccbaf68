"""Going on: with other windows, in the same process, or from any checkpoint."""
import copy

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.logging import MessageHub
from mmengine.registry import METRICS
from mmengine.runner import Runner
from support import toy
from support.toy import validation
from support.training import TIMES, log_of
from support.versions import RESUMES_ITERATIONS, STARTS_OVER

from ela_mm.engine import ValidateResumedHook, validations
from ela_mm.engine.journal.record import decisions_of, read_record


def toy_config(folder, **kwargs):
    """The toy with 8 attention layers, of which 4 are candidates."""
    return toy.toy_config(folder, **{'model.backbone.depth': 18, **kwargs})


def toy_runner(folder, **kwargs) -> Runner:
    return Runner.from_cfg(toy_config(folder, **kwargs))


def iterations(number, **train_cfg) -> dict:
    """Overrides for a loop of iterations."""
    return {
        'train_dataloader.sampler.type': 'InfiniteSampler',
        'hook': dict(by_epoch=False),
        'train_cfg': ConfigDict(
            _delete_=True, type='IterBasedTrainLoop', max_iters=number,
            **train_cfg)
    }


# --- other windows -----------------------------------------------------------


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    """A run that is inside of window (1, 3) after its first two epochs."""
    folder = tmp_path_factory.mktemp('first')
    toy_runner(folder, windows=[(1, 3)]).train()
    return folder


def resume(folder, checkpoint, **kwargs):
    runner = toy_runner(folder, resume=True, load_from=str(checkpoint),
                        **kwargs)
    runner.train()
    return decisions_of(read_record(folder))


@pytest.mark.parametrize('windows', [[(2, 2)], [(2, 3)], [(3, 3)]])
def test_sums_of_another_window_decide_nothing(first, tmp_path, windows):
    """Neither where the new one has begun, nor where it is still to come."""
    (decision, ) = resume(tmp_path, first / 'epoch_1.pth', windows=windows)
    first_epoch, last = windows[0]
    assert decision.samples == 8 * (last - first_epoch + 1)
    assert decision.steps == len(decision.layers[1].kl_iterations) == (
        decision.samples // 2)
    assert ('the checkpoint has statistics of (1, 3), in which this run is '
            'not' in log_of(tmp_path))


def test_a_longer_window_counts_what_follows_and_says_so(first, tmp_path):
    (decision, ) = resume(tmp_path, first / 'epoch_2.pth', windows=[(2, 3)])
    assert decision.samples == 8
    assert 'window (2, 3) began before the checkpoint' in log_of(tmp_path)


def test_the_same_window_goes_on(first, tmp_path):
    (decision, ) = resume(tmp_path, first / 'epoch_1.pth', windows=[(1, 3)])
    assert decision.samples == 24
    log = log_of(tmp_path)
    assert 'statistics of' not in log and 'began before' not in log


def test_a_run_without_the_hook_is_resumed_inside_a_window(tmp_path):
    toy_runner(tmp_path / 'a', windows=None, max_epochs=2).train()
    (decision, ) = resume(tmp_path / 'b', tmp_path / 'a' / 'epoch_1.pth',
                          windows=[(1, 2)], max_epochs=2)
    assert decision.samples == 8
    assert 'window (1, 2) began before the checkpoint' in log_of(
        tmp_path / 'b')


def test_iteration_windows_may_change_as_well(tmp_path):
    toy_runner(tmp_path / 'a', windows=[(2, 8)],
               **{'default_hooks.checkpoint.by_epoch': False,
                  'default_hooks.checkpoint.interval': 4},
               **iterations(8)).train()
    (decision, ) = resume(tmp_path / 'b', tmp_path / 'a' / 'iter_4.pth',
                          windows=[(6, 7)], **iterations(8))
    assert decision.samples == 4


def test_statistics_of_an_earlier_version_know_no_window(first, tmp_path):
    """Inside a window that has begun they are taken up, else not."""
    old = torch.load(first / 'epoch_1.pth')
    del old['ela_prune_hook']['window']
    torch.save(old, tmp_path / 'old.pth')
    for windows, samples in (([(1, 2)], 16), ([(2, 2)], 8), ([(3, 3)], 8)):
        (decision, ) = resume(tmp_path / str(windows), tmp_path / 'old.pth',
                              windows=windows)
        assert decision.samples == samples


# --- once more in one process ------------------------------------------------


class Trip(Hook):
    """Raises once, at a point of the hooks' round."""
    priority = 'LOWEST'

    def __init__(self, point, at, error=KeyboardInterrupt):
        self.point, self.at, self.error = point, at, error

    def _trip(self, point, number):
        if (self.point, self.at) == (point, number):
            self.point = None
            raise self.error('a fault for the test')

    def before_train_iter(self, runner, *args, **kwargs):
        self._trip('before_iter', runner.iter + 1)
        if (self.point, self.at) == ('forward', runner.iter + 1):
            self.point = None
            runner.model.backbone.layer4.register_forward_pre_hook(self._raise)

    def _raise(self, module, args):
        module._forward_pre_hooks.clear()
        raise self.error('a fault for the test')

    def after_train_iter(self, runner, *args, **kwargs):
        self._trip('after_iter', runner.iter + 1)

    def after_train_epoch(self, runner):
        self._trip('after_epoch', runner.epoch + 1)

    def before_val_epoch(self, runner):
        self._trip('val', runner.epoch)


def train_twice(runner, trip):
    runner.register_hook(trip)
    with pytest.raises(trip.error):
        runner.train()
    assert trip.point is None
    stages = runner.model.backbone.attention_stages
    assert all(stage.observer is None for stage in stages)
    runner.train()


@pytest.mark.parametrize('point, at, error', [
    ('before_iter', 6, KeyboardInterrupt),
    ('forward', 6, RuntimeError),
    ('after_iter', 6, KeyboardInterrupt),
    ('after_iter', 4, RuntimeError),
    ('after_epoch', 1, RuntimeError),
    ('after_epoch', 2, KeyboardInterrupt),
    ('val', 1, KeyboardInterrupt),
])
def test_an_epoch_that_is_started_over_counts_once(tmp_path, point, at, error):
    runner = toy_runner(tmp_path, windows=[(1, 2), (3, 3)], **validation())
    train_twice(runner, Trip(point, at, error))
    first, second = decisions_of(read_record(tmp_path))
    assert first.window == (1, 2) and second.window == (3, 3)
    assert (first.samples, second.samples) == (16, 8)
    assert first.skipped
    assert ('interrupted' if error is KeyboardInterrupt else
            'was ended by a RuntimeError') in log_of(tmp_path)


@pytest.mark.parametrize('point, at', [
    ('before_iter', 4), ('forward', 4), ('after_iter', 4), ('after_iter', 5)])
def test_an_iteration_that_is_repeated_counts_once(tmp_path, point, at):
    runner = toy_runner(tmp_path, windows=[(2, 5), (7, 7)], **iterations(8))
    train_twice(runner, Trip(point, at))
    first, second = decisions_of(read_record(tmp_path))
    assert first.window == (2, 5) and second.window == (7, 7)
    assert (first.samples, second.samples) == (8, 2)


def test_fresh_norms_stay_fresh_when_a_process_trains_once_more(tmp_path):
    cfg = toy_config(tmp_path, max_epochs=2, windows=[(2, 2)])
    cfg.model.backbone.norm_eval = True
    runner = Runner.from_cfg(cfg)
    train_twice(runner, Trip('after_iter', 3))
    backbone = runner.model.backbone
    assert len(backbone.fresh_norms) == 8
    norms = [layer.norm for stage in backbone.attention_stages
             for layer in stage.attention]
    assert all(norm.num_batches_tracked >= 6 for norm in norms)
    backbone.train()
    assert all(norm.training for norm in norms)


def test_masks_stay_when_a_process_trains_once_more(tmp_path):
    """Of sparse training, which RigL has changed by then."""
    cfg = toy_config(tmp_path, windows=None, max_epochs=2)
    cfg.custom_hooks = [dict(
        type='SparseTrainingHook', density=.3,
        scheme=dict(type='RigL', interval=2, fraction=.5, until=.4))]
    runner = Runner.from_cfg(cfg)
    hook = next(h for h in runner.hooks if hasattr(h, 'masks'))
    seen = []

    class Look(Hook):

        def after_train_iter(self, runner, *args, **kwargs):
            seen.append({n: m.clone() for n, m in hook.masks.items()})

    runner.register_hook(Look(), priority='LOWEST')
    train_twice(runner, Trip('forward', 6))
    assert len(hook.updates) == 1
    assert_equal(seen[-1], seen[4])
    assert not all(torch.equal(m, seen[0][n]) for n, m in seen[-1].items())


def test_what_ended_a_window_early_is_said(tmp_path):
    """By an error, or by a hook that stops the loop."""

    class Stop(Hook):

        def after_train_epoch(self, runner):
            runner.train_loop.stop_training = runner.epoch == 1

    runner = toy_runner(tmp_path / 'a', windows=[(1, 3)], max_epochs=4)
    runner.register_hook(Stop())
    runner.train()
    runner = toy_runner(tmp_path / 'b', windows=[(1, 1), (2, 3), (4, 4)],
                        max_epochs=4)
    runner.register_hook(Trip('forward', 6, RuntimeError))
    with pytest.raises(RuntimeError):
        runner.train()
    assert ('nothing was decided on epochs 1 to 3: the training was stopped '
            'after epoch 2 of 4, by EarlyStoppingHook or another') in log_of(
                tmp_path / 'a')
    assert ('nothing was decided on epochs 2 to 3 and epoch 4: the training '
            'was ended by a RuntimeError in epoch 2 of 4') in log_of(
                tmp_path / 'b')
    toy_runner(tmp_path / 'c').train()
    assert 'nothing was decided' not in log_of(tmp_path / 'c')


# --- what tools/train.py --resume does beyond the host -----------------------


@METRICS.register_module(force=True)
class Course(BaseMetric):
    """A score by epoch or iteration, and a number that the network gives."""
    scores = {1: 1., 2: 3., 3: 2., 4: 2.5, 5: 2.}

    def process(self, data_batch, data_samples):
        self.results += [float(x.double().square().sum()) for x in
                         data_samples]

    def compute_metrics(self, results):
        done = MessageHub.get_current_instance().get_info('iter') + 1
        return dict(score=self.scores[done // 4], energy=sum(results))


# One of each kind that mmengine has, of rates and of momenta: a run of them
# all ends with other values if any one has taken a step too many or too few.
# But for OneCycleLR, which undoes what the others do: tests/project/test_compat.
SCHEDULERS = [
    dict(type='LinearLR', start_factor=.5, by_epoch=False, end=6),
    dict(type='ConstantLR', factor=.9, end=2),
    dict(type='CosineAnnealingLR', T_max=9),
    dict(type='CosineRestartLR', periods=[3, 9], restart_weights=[1, .5],
         eta_min=0),
    dict(type='ExponentialLR', gamma=.9),
    dict(type='MultiStepLR', milestones=[2, 4], gamma=.7),
    dict(type='PolyLR', power=2., end=9, by_epoch=False),
    dict(type='StepLR', step_size=2, gamma=.8),
    dict(type='ReduceOnPlateauLR', monitor='score', rule='greater',
         factor=.6, patience=1),
    dict(type='LinearMomentum', start_factor=.5, end=4),
    dict(type='ReduceOnPlateauMomentum', monitor='score', rule='greater',
         factor=.6, patience=1),
]
COUNTING = dict(EarlyStoppingHook=dict(
    type='EarlyStoppingHook', monitor='score', rule='greater', min_delta=0,
    patience=3))


def counting_runner(folder, epochs=True, schedulers=SCHEDULERS, **overrides):
    """Validates after each epoch, or every 4 iterations; best is the second."""
    options = validation()
    if not epochs:
        options.pop('train_cfg.val_interval')
        options.update(iterations(20, val_interval=4))
        options['default_hooks.checkpoint.by_epoch'] = False
        options['default_hooks.checkpoint.interval'] = 4
    runner = toy_runner(
        folder, max_epochs=5, windows=[(2, 3) if epochs else (6, 11)],
        hooks=[dict(type='EMAHook', momentum=.1), *COUNTING.values()],
        val_evaluator=dict(type='Course'),
        param_scheduler=copy.deepcopy(schedulers),
        optim_wrapper=ConfigDict(_delete_=True, optimizer=dict(
            type='SGD', lr=.05, momentum=.9)),
        **{k: v for k, v in options.items() if k != 'val_evaluator'},
        **{'default_hooks.checkpoint.save_best': 'score',
           'default_hooks.checkpoint.rule': 'greater'}, **overrides)
    runner.register_hook(ValidateResumedHook())
    return runner


def what_counts(runner, checkpoint) -> dict:
    """All that a run counts, in its last checkpoint and outside of it."""
    saved = torch.load(checkpoint)
    hub = saved['message_hub']
    (stopping, ) = (h for h in runner.hooks
                    if isinstance(h, EarlyStoppingHook))
    info = dict(hub['runtime_info'])
    # The version has the commit in it of the folder that one is in.
    for name in ('cfg', 'experiment_name', 'last_ckpt', 'best_ckpt',
                 'mmengine_version'):
        info.pop(name, None)
    return dict(
        state=saved['state_dict'],
        averaged=saved['ema_state_dict'],
        optimizer=saved['optimizer'],
        schedulers=saved['param_schedulers'],
        scalars={
            name: [array.tolist() for array in buffer.data]
            for name, buffer in hub['log_scalars'].items()
            if 'time' not in name
        },
        info=info,
        stopping=(stopping.wait_count, stopping.best_score,
                  runner.train_loop.stop_training),
        decisions=saved['ela_prune_hook']['decisions'])


def assert_equal(ours, theirs, place=''):
    assert type(ours) is type(theirs), place
    if isinstance(ours, dict):
        assert ours.keys() - TIMES == theirs.keys() - TIMES, place
        for key in ours:
            if key not in TIMES:
                assert_equal(ours[key], theirs[key], f'{place}.{key}')
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), place
        for i, pair in enumerate(zip(ours, theirs)):
            assert_equal(*pair, f'{place}.{i}')
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), place
    else:
        assert ours == theirs, place


@pytest.fixture(scope='module', params=['epochs', 'iterations'])
def counted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('counted')
    epochs = request.param == 'epochs'
    if not epochs and not RESUMES_ITERATIONS:
        pytest.skip(STARTS_OVER)
    schedulers = SCHEDULERS
    if not epochs:  # which has no epoch that would end
        schedulers = [dict(s, by_epoch=False) for s in SCHEDULERS
                      if 'Plateau' not in s['type']]
    runner = counting_runner(folder, epochs, schedulers)
    runner.train()
    last = 'epoch_5.pth' if epochs else 'iter_20.pth'
    return folder, epochs, schedulers, what_counts(runner, folder / last), last


@pytest.mark.parametrize('at', [
    1, 3, 5, *(pytest.param(at, marks=pytest.mark.slow) for at in (2, 4))
])
def test_resuming_counts_as_an_uninterrupted_run(counted, tmp_path, at):
    """After epoch 1 and 2 the checkpoint is saved by the validation, else
    before it; after 5 nothing is left to train."""
    folder, epochs, schedulers, expected, last = counted
    name = f'epoch_{at}.pth' if epochs else f'iter_{4 * at}.pth'
    runner = counting_runner(
        tmp_path, epochs, schedulers, resume=True,
        load_from=str(folder / name))
    runner.train()
    validated = log_of(tmp_path).count('validating the resumed checkpoint')
    assert validated == (at > 2)
    if at < 5:
        assert_equal(what_counts(runner, tmp_path / last), expected)
    else:
        (stopping, ) = (h for h in runner.hooks
                        if isinstance(h, EarlyStoppingHook))
        assert (stopping.wait_count, stopping.best_score,
                runner.train_loop.stop_training) == expected['stopping']


def test_a_validation_that_was_completed_is_not_repeated(counted, tmp_path):
    """What came out of it is given to all who count."""
    _, epochs, schedulers, expected, last = counted
    runner = counting_runner(tmp_path, epochs, schedulers)
    runner.register_hook(Trip('before_iter', 14, RuntimeError))
    with pytest.raises(RuntimeError):
        runner.train()
    runner = counting_runner(
        tmp_path, epochs, schedulers, resume=True,
        load_from=str(tmp_path / ('epoch_3.pth' if epochs else 'iter_12.pth')))
    runner.train()
    log = log_of(tmp_path)
    assert 'the resumed checkpoint was validated before' in log
    assert 'validating the resumed checkpoint' not in log
    assert_equal(what_counts(runner, tmp_path / last), expected)


@pytest.mark.slow
def test_a_validation_of_another_run_is_not_taken(tmp_path):
    """Which has left its file in the work dir."""
    counting_runner(tmp_path).train()
    runner = counting_runner(tmp_path)
    with pytest.raises(RuntimeError):
        runner.register_hook(Trip('val', 3, RuntimeError))
        runner.train()
    counting_runner(tmp_path, resume=True,
                    load_from=str(tmp_path / 'epoch_3.pth')).train()
    assert log_of(tmp_path).count('validating the resumed checkpoint') == 1


@pytest.mark.parametrize('content', [
    None, '', '[1]', '{"a": 3}', '{"a": {}}', '{"a": {"score": "high"}}',
    '{"a": {"score": [1]}}'])
def test_what_is_not_known_is_validated_again(tmp_path, content):
    if content is not None:
        (tmp_path / validations.FILE_NAME).write_text(content)
    assert validations.recall(str(tmp_path), 'a') is None
    validations.remember(str(tmp_path), 'b', dict(
        score=np.float32(.1), whole=torch.tensor(2), nan=float('nan')))
    found = validations.recall(str(tmp_path), 'b')
    assert found['score'] == np.float32(.1) and found['whole'] == 2
    assert found['nan'] != found['nan']
    validations.remember(str(tmp_path), 'c', dict(score=1., each=[1., 2.]))
    assert validations.recall(str(tmp_path), 'c') is None


def test_a_run_that_was_to_stop_stops(tmp_path):
    """Its last validation said so, and was cut off."""
    for name, rest in (('a', {}), ('b', dict(
            resume=True, load_from=str(tmp_path / 'a' / 'epoch_4.pth')))):
        runner = counting_runner(tmp_path / name, **rest)
        (stopping, ) = (h for h in runner.hooks
                        if isinstance(h, EarlyStoppingHook))
        stopping.patience = 2
        runner.train()
        assert runner.epoch == 4
    assert not (tmp_path / 'b' / 'epoch_5.pth').exists()


def test_a_best_checkpoint_lacks_what_it_lacks(counted, tmp_path):
    """Validated by then; optimizer and schedulers start anew, which is said."""
    folder, epochs, schedulers, expected, last = counted
    (best, ) = folder.glob('best_*.pth')
    runner = counting_runner(
        tmp_path, epochs, schedulers, resume=True, load_from=str(best))
    runner.train()
    log = log_of(tmp_path)
    assert 'validating the resumed checkpoint' not in log
    assert 'the checkpoint has no optimizer and no param_schedulers' in log
    ours = what_counts(runner, tmp_path / last)
    assert ours['stopping'] == expected['stopping']
    name = 'val/score'
    assert ours['scalars'][name] == expected['scalars'][name]


def test_a_process_that_trains_once_more_validates_nothing_twice(tmp_path):
    counting_runner(tmp_path / 'a').train()
    runner = counting_runner(
        tmp_path / 'b', resume=True,
        load_from=str(tmp_path / 'a' / 'epoch_3.pth'))
    train_twice(runner, Trip('before_iter', 14))
    assert log_of(tmp_path / 'b').count('validating the resumed') == 1


def test_another_seed_of_the_data_is_said(tmp_path):
    toy_runner(tmp_path / 'a', max_epochs=2).train()
    for seed, said in ((5, True), (0, False)):
        folder = tmp_path / f'b{seed}'
        toy_runner(folder, max_epochs=2, resume=True,
                   load_from=str(tmp_path / 'a' / 'epoch_1.pth'),
                   randomness=dict(seed=seed)).train()
        assert ('Set randomness=dict(seed=0) to go on' in log_of(
            folder)) == said
