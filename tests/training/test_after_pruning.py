"""Hooks of a user's own react to a decision."""
import pytest
from mmengine.hooks import Hook
from support.toy import toy_runner

from ela_mm import ELAPruneHook
from ela_mm.engine.journal.record import decisions_of, read_record
from ela_mm.errors import UsageError


class LowerRate(Hook):
    """Halves the learning rate at each pruning."""

    def __init__(self):
        self.seen = []

    def after_pruning(self, runner, decision):
        self.seen.append(decision)
        self.active = int(runner.model.backbone.active.sum())
        self.recorded = len(read_record(runner.work_dir)['decisions'])
        for group in runner.optim_wrapper.param_groups:
            group['lr'] /= 2


def test_every_decision_reaches_every_hook(tmp_path):
    runner = toy_runner(tmp_path, max_epochs=3, windows=[(1, 1), (3, 3)],
                        hook=dict(criterion=dict(type='fixed', n=2)))
    hook = LowerRate()
    runner.register_hook(hook)
    runner.train()
    assert [d.window for d in hook.seen] == [(1, 1), (3, 3)]
    # Applied and recorded by then.
    assert hook.active == 12 and hook.recorded == 2
    assert runner.optim_wrapper.param_groups[0]['lr'] == 1e-3 / 4
    for ours, recorded in zip(hook.seen, decisions_of(read_record(tmp_path))):
        assert ours.skipped == recorded.skipped and len(ours.skipped) == 2


def test_windows_with_criteria_of_their_own(tmp_path):
    toy_runner(tmp_path, max_epochs=2, windows=[
        dict(first=1, last=1, criterion=dict(type='fixed', n=3)), (2, 2)
    ], hook=dict(criterion=dict(type='fixed', n=1))).train()
    first, second = decisions_of(read_record(tmp_path))
    assert len(first.skipped) == 3 and len(second.skipped) == 1
    assert first.criterion == dict(type='fixed', n=3)
    assert second.criterion == dict(type='fixed', n=1)


@pytest.mark.parametrize('window, message', [
    (dict(first=1), 'expected the keys first and last'),
    (dict(first=1, last=1, mu=.3), 'and criterion if it is to have its own'),
    (dict(first=2, last=1), 'is reversed'),
    (dict(first=1, last=1, criterion=dict(type='EBMQ')), "'EBMQ'"),
])
def test_bad_windows_of_their_own_are_named(window, message):
    with pytest.raises(ValueError, match=message):
        ELAPruneHook(windows=[window])


def test_a_second_hook_is_refused(tmp_path):
    """Both would prune; the sentence says what is wanted instead."""
    second = dict(type='ELAPruneHook', windows=[(2, 2)],
                  criterion=dict(type='fixed', n=1))
    runner = toy_runner(tmp_path, max_epochs=2, hooks=[second])
    with pytest.raises(UsageError, match=r'two ELAPruneHooks.*windows=\['):
        runner.train()
    assert runner.iter == 0
