"""Attention that is as it was drawn: windows are compared with the first step."""
import math

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from support.toy import toy_runner
from support.training import log_of

from ela_mm import ELAPruneHook
from ela_mm.engine.journal.record import read_record


class Spy(Hook):
    """Keeps the weights that the first step shows, and what sees them later."""
    priority = 'LOWEST'  # after ELAPruneHook has set its observer

    def __init__(self):
        self.seen, self.observed = {}, []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        stages = runner.model.backbone.attention_stages
        self.observed.append(stages[0].observer is not None)
        for stage in stages if self.observed == [True] else ():
            observer = stage.observer

            def both(name, prev, curr, observer=observer):
                observer(name, prev, curr)
                self.seen[name] = prev.detach(), curr.detach()

            stage.observer = both


def run(work_dir, lr=0., **overrides):
    """Two epochs of 4 steps, the second of which is a window."""
    runner = toy_runner(
        work_dir, max_epochs=2, windows=[(2, 2)], **{
            'model.backbone.depth': 18,
            'optim_wrapper.optimizer.lr': lr,
            **overrides
        })
    spy = Spy()
    runner.register_hook(spy)
    runner.train()
    return runner, spy


def hook_of(runner) -> ELAPruneHook:
    return next(h for h in runner.hooks if isinstance(h, ELAPruneHook))


def decision_of(work_dir) -> dict:
    (decision, ) = read_record(work_dir)['decisions']
    return decision


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """Nothing learns, and so no attention either."""
    work_dir = tmp_path_factory.mktemp('drawn')
    return (*run(work_dir), work_dir)


def test_the_first_step_is_measured_wherever_windows_are(drawn):
    runner, spy, work_dir = drawn
    assert spy.observed == [True] + 3 * [False] + 4 * [True]
    found = hook_of(runner).first_kl
    assert found.keys() == spy.seen.keys() and len(found) == 4
    for name, (prev, curr) in spy.seen.items():
        p, q = prev.double(), curr.double()
        n, m = p.shape[2], q.shape[2]
        # What is padded adds 1e-8 log(1e-8 / q), which is nothing.
        expected = (p * (p / q[..., :n]).log()).sum(-1).mean()
        assert found[name][0] == pytest.approx(float(expected), abs=1e-5)
        assert found[name][1] == pytest.approx(math.log(m / n))
    assert decision_of(work_dir)['as_drawn'] is True
    assert 'attention is still as it was drawn' in log_of(work_dir)


def test_it_survives_a_resume(drawn, tmp_path):
    runner, _, work_dir = drawn
    again, spy = run(tmp_path, resume=True, load_from=str(work_dir / 'epoch_1.pth'))
    assert spy.observed == 4 * [True]
    assert hook_of(again).first_kl == hook_of(runner).first_kl
    assert decision_of(tmp_path)['as_drawn'] is True


def test_checkpoints_of_earlier_versions_do_not_know_it(drawn, tmp_path):
    _, _, work_dir = drawn
    checkpoint = torch.load(work_dir / 'epoch_1.pth')
    del checkpoint['ela_prune_hook']['first_kl']
    torch.save(checkpoint, tmp_path / 'old.pth')
    runner, _ = run(tmp_path, resume=True, load_from=str(tmp_path / 'old.pth'))
    assert not hook_of(runner).first_kl
    assert 'as_drawn' not in decision_of(tmp_path)
    assert np.isfinite([x['kl'] for x in decision_of(tmp_path)['layers']
                        if x['kl'] is not None]).all()


@pytest.mark.parametrize('attention', [True, False])
def test_attention_that_was_loaded_was_not_drawn(drawn, tmp_path, attention):
    """Nor is it new to weights of a network that had none."""
    _, _, work_dir = drawn
    weights = torch.load(work_dir / 'epoch_2.pth')['state_dict']
    if not attention:
        weights = {name: x for name, x in weights.items()
                   if 'attention' not in name}
    torch.save(dict(state_dict=weights), tmp_path / 'weights.pth')
    runner, spy = run(tmp_path, load_from=str(tmp_path / 'weights.pth'))
    assert spy.observed[0] is not attention
    assert runner.model.backbone.fresh_attention is not attention
    assert decision_of(tmp_path).get('as_drawn', False) is not attention


def test_attention_that_learns_leaves_it(tmp_path):
    run(tmp_path, lr=.03)
    assert 'as_drawn' not in decision_of(tmp_path)
