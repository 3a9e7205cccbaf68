"""Windows that depend on the training: in runs of each kind, and resumed."""
import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from support.toy import toy_config
from support.training import log_of

from ela_mm.analysis.plan import make_plan
from ela_mm.engine.journal.record import decisions_of, read_record, windows_of
from ela_mm.engine.warm_up import warm_up_of

SMALL = {'model.backbone.depth': 18}
ITERATIONS = {
    'train_dataloader.sampler.type': 'InfiniteSampler',
    'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=8)
}
WARM_UP = dict(type='LinearLR', start_factor=.1, by_epoch=False, end=6)


class Rates(Hook):
    """The learning rate of every step."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append(runner.optim_wrapper.get_lr()['lr'][0])


def config(folder, windows, **options):
    # Merging takes `_delete_` out of what it is given.
    return toy_config(folder, windows=windows,
                      **copy.deepcopy({**SMALL, **options}))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """5 epochs of 4 steps; the warm-up is over in the middle of the second."""
    folder = tmp_path_factory.mktemp('windows')
    cfg = config(folder / 'work', [(.75, 1.), ('after_warmup', 1)],
                 max_epochs=5, param_scheduler=[WARM_UP])
    rates = Rates()
    runner = Runner.from_cfg(cfg)
    runner.register_hook(rates, priority='LOWEST')
    runner.train()
    return folder / 'work', cfg, rates.seen


def test_after_the_warm_up_the_rate_is_full(run):
    folder, _, rates = run
    first, last = decisions_of(read_record(folder))
    full = [epoch for epoch in range(1, 6)
            if min(rates[4 * epoch - 4:4 * epoch]) == max(rates)]
    assert first.window == (full[0], full[0]) == (3, 3)
    assert last.window == (5, 5)  # the middle of epoch 4, 3.5, is before 3.75
    assert (first.samples, last.samples) == (8, 8)


def test_they_are_told_before_the_first_step_and_when_they_begin(run):
    folder, _, _ = run
    log = log_of(folder)
    said = ("windows of ELAPruneHook: epoch 3 ('after_warmup', 1), epoch 5 "
            '(0.75, 1.0), of 5 epochs')
    assert log.index(said) < log.index('Epoch(train)')
    assert log.index('measuring epoch 3: how redundant 8 attention layers are'
                     ) < log.index('redundancy of the attention layers, epoch 3')
    assert log.count('measuring ') == 2


def test_record_and_plan_have_them_as_given_and_as_they_are(run):
    folder, cfg, _ = run
    record = read_record(folder)
    assert record['windows'] == [[3, 3], [5, 5]]
    assert record['windows_given'] == [['after_warmup', 1], [.75, 1.]]
    assert list(map(windows_of(record).name, windows_of(record).spans)) == [
        "epoch 3 ('after_warmup', 1)", 'epoch 5 (0.75, 1.0)']
    plan = make_plan(cfg, rounds=0)
    assert [(w.label, w.begin, w.end) for w in plan.schedule.windows] == [
        ("window epoch 3 ('after_warmup', 1)", 8, 12),
        ('window epoch 5 (0.75, 1.0)', 16, 20)]
    assert not plan.refused


def test_in_a_longer_training_only_later_windows_move(tmp_path):
    """A window that has begun stays as the run has begun it."""
    windows = [(0., .5), (.5, 1.)]
    Runner.from_cfg(config(tmp_path / 'a', windows, max_epochs=4)).train()
    path = str(tmp_path / 'a' / 'epoch_1.pth')
    cfg = config(tmp_path / 'b', windows, max_epochs=6, resume=True,
                 load_from=path)
    planned = make_plan(cfg, rounds=0).schedule.windows
    assert [(w.begin, w.end) for w in planned] == [(0, 8), (12, 24)]
    Runner.from_cfg(cfg).train()
    first, second = decisions_of(read_record(tmp_path / 'b'))
    assert (first.window, second.window) == ((1, 2), (4, 6))
    assert (first.samples, second.samples) == (16, 24)
    log = log_of(tmp_path / 'b')
    assert ('window (0.0, 0.5) stays epochs 1 to 2, as it was when this run '
            'began it') in log
    assert ('8 samples of epoch 1 are taken up: measuring epochs 1 to 2 goes '
            'on') in log
    # Before it has begun, it moves with the training.
    begun = torch.load(path)['ela_prune_hook']['windows']
    assert begun == [[[0., .5], [1, 2]], [[.5, 1.], [3, 4]]]


def test_windows_of_an_iteration_based_run(tmp_path):
    cfg = config(tmp_path, [(.75, 1.), ('after_warmup', 2)],
                 param_scheduler=[dict(WARM_UP, end=3)],
                 hook=dict(by_epoch=False), **ITERATIONS)
    Runner.from_cfg(cfg).train()
    first, second = decisions_of(read_record(tmp_path))
    assert (first.window, second.window) == ((4, 5), (7, 8))
    assert ("windows of ELAPruneHook: iterations 4 to 5 ('after_warmup', 2), "
            'iterations 7 to 8 (0.75, 1.0), of 8 iterations') in log_of(tmp_path)
    spans = make_plan(cfg, rounds=0).schedule.windows
    assert [(w.begin, w.end) for w in spans] == [(3, 5), (6, 8)]


@pytest.mark.parametrize('options, message', [
    (dict(windows=[('after_warmup', 1)]), 'has no warm-up'),
    (dict(windows=[(0., .5)], **ITERATIONS), 'set by_epoch=False'),
    (dict(windows=[('after_warmup', 2)], param_scheduler=[WARM_UP]),
     'epochs 3 to 4, lies past the last epoch of the training, 3'),
])
def test_what_has_no_place_is_refused_before_the_first_step(
        tmp_path, options, message):
    runner = Runner.from_cfg(config(tmp_path, **options))
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0
    (reason, ) = make_plan(config(tmp_path, **options), rounds=0).refused
    assert message in reason


@pytest.mark.parametrize('schedulers, over', [
    ([], None),
    ([dict(type='LinearLR', by_epoch=True, end=2)], (2, 8)),
    ([dict(type='LinearLR', by_epoch=True, end=2,
           convert_to_iter_based=True)], (2, 8)),
    ([dict(type='ConstantLR', by_epoch=False, end=3),
      dict(type='LinearLR', by_epoch=False, begin=3, end=5)], (2, 5)),
    ([dict(type='OneCycleLR', eta_max=.1, total_steps=12, by_epoch=False)],
     (1, 4)),
    ([dict(type='mmdet.QuadraticWarmupLR', by_epoch=True, end=1)], (1, 4)),
    ([dict(type='MultiStepLR', milestones=[2])], None),
])
def test_warm_ups_of_schedulers_as_they_are_built(tmp_path, schedulers, over):
    runner = Runner.from_cfg(config(tmp_path, None, param_scheduler=schedulers))
    runner.train_loop  # noqa: B018  builds it
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.param_schedulers = runner.build_param_scheduler(
        runner.param_schedulers)
    found = warm_up_of(runner, True), warm_up_of(runner, False)
    assert found == (over or (None, None))
