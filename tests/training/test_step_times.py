"""Step times that mean something: quartiles, in turns, and over the training."""
import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from support.toy import ToyClassifier, toy_runner
from support.training import log_of
from support.versions import needs_mmengine_0_9

from ela_mm.analysis.history import read_run
from ela_mm.analysis.report.redundancy import summarize
from ela_mm.engine import gain as gain_module
from ela_mm.engine import in_turns, step_clock
from ela_mm.engine.gain import (
    STRETCH,
    WARM_UP_STEPS,
    PruningGain,
    Timeline,
    quartiles,
)
from ela_mm.engine.hooks.ela_prune_hook import ELAPruneHook
from ela_mm.engine.journal.record import (
    decision_from_json,
    decision_to_json,
    read_record,
)
from ela_mm.errors import UsageError
from ela_mm.pruning.decision import Decision, LayerDecision, Outcome
from ela_mm.pruning.step_times import StepTimes

# --- around a pruning --------------------------------------------------------


def a_decision(outcome=Outcome.SKIPPED):
    return Decision((1, 1), 1, 4, dict(type='EBQM'), 'layer',
                    [LayerDecision('layer1.1', 1, 1, outcome, kl=.1)])


@pytest.fixture
def clock(monkeypatch):
    """The clock of the timers, in seconds, moved by hand."""
    seconds = [0.]
    monkeypatch.setattr(gain_module, 'now', lambda waits=True: seconds[0])
    return seconds


def steps(gain, clock, durations, measuring=False):
    """What is known after each step."""
    found = []
    for i, duration in enumerate(durations):
        gain.begin_step(measuring, window_starts=measuring and i == 0)
        clock[0] += duration
        found.append(gain.end_step())
        clock[0] += 100.  # loading data, validating
    return found


def test_medians_and_quartiles_of_the_steps_on_both_sides(clock):
    gain, decision = PruningGain(12), a_decision()
    steps(gain, clock, [9.] * 5, measuring=False)  # before the window
    before = [2. + .01 * i for i in range(20)]
    steps(gain, clock, before, measuring=True)
    gain.decided(decision)
    after = [9.] * WARM_UP_STEPS + [1. + .01 * i for i in range(12)]
    assert steps(gain, clock, after) == [None] * 13 + [decision]
    times = decision.times
    kept = sorted(before[-12:])  # 2.08 to 2.19
    assert times.before == pytest.approx((kept[5] + kept[6]) / 2)
    # Linear between order statistics: 11 / 4 from the smallest.
    assert times.before_quartiles == pytest.approx((2.1075, 2.1625))
    assert times.after_quartiles == pytest.approx((1.0275, 1.0825))
    assert times.steps == (12, 12) and times.are_enough and times.differ
    assert steps(gain, clock, [1.]) == [None]  # said once


def test_too_few_steps_wait_for_the_next_epoch_and_are_not_compared(clock):
    gain, decision = PruningGain(50), a_decision()
    steps(gain, clock, [1.] * 20, measuring=True)
    gain.decided(decision)
    steps(gain, clock, [1.] * (WARM_UP_STEPS + 9))
    assert gain.conclude() is None  # an epoch ends
    assert decision.times.after is None
    steps(gain, clock, [1.])
    assert gain.conclude() is decision and decision.times.steps == (20, 10)
    gain.decided(decision)
    steps(gain, clock, [1.] * (WARM_UP_STEPS + 3))
    assert gain.conclude(least=1) is decision  # the training ends
    assert decision.times.steps == (0, 3) and not decision.times.are_enough


def test_a_window_that_starts_over_forgets_what_was_cut_off(clock):
    gain, decision = PruningGain(50), a_decision()
    steps(gain, clock, [9.] * 5, measuring=True)
    steps(gain, clock, [1.] * 12, measuring=True)
    gain.decided(decision)
    assert decision.times.before == 1. and decision.times.steps == (12, 0)


def test_what_skips_nothing_is_not_timed(clock):
    gain, decision = PruningGain(2), a_decision(Outcome.KEPT)
    steps(gain, clock, [1.] * 4, measuring=True)
    gain.decided(decision)
    assert steps(gain, clock, [1.] * 9) == [None] * 9
    assert decision.times.after is None


@pytest.mark.parametrize('times, said', [
    (StepTimes(2., 1., (50, 40), (1.9, 2.1), (.9, 1.1)),
     '2 s (1.9 to 2.1) -> 1 s (0.9 to 1.1) (medians and quartiles of 50 and '
     '40 steps)'),
    (StepTimes(2., 1.95, (50, 40), (1.9, 2.1), (1.85, 1.9)),
     '2 s (1.9 to 2.1) -> 1.95 s (1.85 to 1.9) (medians and quartiles of 50 '
     'and 40 steps): they differ by less than their spread'),
    (StepTimes(1., 1.05, (50, 40), (.9, 1.2), (1.05, 1.1)), 'their spread'),
    (StepTimes(2., 1., (20, 20)), '2 s -> 1 s (medians of 20 and 20 steps)'),
    (StepTimes(2., 1.), '2 s -> 1 s (medians)'),  # of an earlier version
])
def test_the_spread_is_said(times, said):
    assert times.are_enough
    assert times.medians().endswith(said)
    assert times.differ is ('their spread' not in said)


@pytest.mark.parametrize('ratio, differs', [
    ((.85, .87, .9), True), ((.98, .99, 1.01), False), ((1.01, 1.1, 1.2), True)])
def test_a_ratio_says_how_sure_it_is(ratio, differs):
    said = StepTimes(ratio=ratio, rounds=8).in_turns()
    assert said.startswith(f'{ratio[1]:.3f} times as long without')
    assert f'quartiles {ratio[0]:.3f} to {ratio[2]:.3f}, 8 pairs' in said
    assert ('less than the spread' in said) is not differs


def test_the_record_keeps_all_of_it():
    decision = a_decision()
    decision.times = StepTimes(2., 1., (50, 40), (1.9, 2.1), (.9, 1.1),
                               (.8, .9, 1.), 8)
    entry = decision_to_json(decision)
    assert entry['step_quartiles_after'] == [.9, 1.1]
    assert entry['step_ratio'] == [.8, .9, 1.] and entry[
        'step_ratio_rounds'] == 8
    assert decision_from_json(entry) == decision
    for wrong in ([1.], [1., 2., 'x'], 3.):
        with pytest.raises((TypeError, ValueError)):
            decision_from_json({**entry, 'step_ratio': wrong})


# --- in turns ----------------------------------------------------------------


@OPTIM_WRAPPERS.register_module(force=True)
class Autocasting(OptimWrapper):
    """What AmpOptimWrapper does, on the CPU too, which that one refuses."""

    def optim_context(self, model):
        return torch.autocast('cpu', dtype=torch.bfloat16)


class Draw(Hook):
    """Writes down what the generators give after each step."""
    priority = 'LOWEST'

    def __init__(self):
        self.drawn = []

    def after_train_iter(self, runner, *args, **kwargs):
        self.drawn.append((float(torch.rand(())), np.random.rand(),
                           random.random()))


def noisy_runner(folder, rounds, **overrides):
    """Pruned amid an epoch and amid accumulated gradients; all draw."""
    return toy_runner(
        folder, max_epochs=1, windows=[(1, 2)],
        hooks=[dict(type='EMAHook', momentum=.1, update_buffers=True)],
        hook=dict(by_epoch=False, timing_rounds=rounds),
        **{'model.backbone': dict(
            type='mmpretrain.ELAResNet', depth=18, base_channels=16,
            stem_channels=16, drop_path_rate=.5, _delete_=True),
           'optim_wrapper.accumulative_counts': 4, **overrides})


def assert_equal(ours, theirs, place):
    assert type(ours) is type(theirs), place
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), place
        for key in ours:
            assert_equal(ours[key], theirs[key], f'{place}.{key}')
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), place
        for i, pair in enumerate(zip(ours, theirs)):
            assert_equal(*pair, f'{place}.{i}')
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), place
    else:
        assert ours == theirs, place


@pytest.mark.parametrize('overrides', [
    {}, {'optim_wrapper.type': 'Autocasting'},
    pytest.param({'activation_checkpointing': ['backbone.layer1']},
                 marks=needs_mmengine_0_9)
], ids=['plain', 'amp', 'checkpointing'])
def test_the_training_is_left_alone(tmp_path, overrides):
    """Weights, norms, averages, optimizer and random numbers, bit for bit."""
    saved, drawn = [], []
    for rounds in (0, 3):
        folder = tmp_path / str(rounds)
        runner = noisy_runner(folder, rounds, **overrides)
        draw = Draw()
        runner.register_hook(draw)
        runner.train()
        drawn.append(draw.drawn)
        checkpoint = torch.load(folder / 'epoch_1.pth')
        saved.append({key: checkpoint[key] for key in (
            'state_dict', 'ema_state_dict', 'optimizer')})
        (decision, ) = read_record(folder)['decisions']
        assert decision['skipped']
        aside = 'activation_checkpointing' in overrides
        assert ('step_ratio' in decision) is (rounds > 0 and not aside)
        assert ('layer1 has a forward' in log_of(folder)) is (
            rounds > 0 and aside)
    assert_equal(*saved, 'checkpoint')
    assert len(drawn[0]) == 4 and drawn[0] == drawn[1]


@MODELS.register_module(force=True)
class TickingClassifier(ToyClassifier):
    """Takes a second for each of its active attention layers."""
    seconds = 0.

    def forward(self, inputs, targets=None, mode='tensor'):
        TickingClassifier.seconds += sum(
            layer.active for layer in self.backbone.attention_layers)
        return super().forward(inputs, targets, mode)


def test_the_ratio_is_that_of_a_network_with_what_went(tmp_path, monkeypatch):
    """After the second pruning too, where the first's layers stay out."""
    monkeypatch.setattr(in_turns, 'now', lambda: TickingClassifier.seconds)
    toy_runner(tmp_path, max_epochs=2, windows=[(1, 1), (2, 2)],
               hook=dict(timing_rounds=4, criterion=dict(type='fixed', n=3)),
               **{'model.type': 'TickingClassifier'}).train()
    decisions = read_record(tmp_path)['decisions']
    assert [d['active'] for d in decisions] == [13, 10]
    for decision in decisions:
        expected = decision['active'] / (decision['active'] + 3)
        assert decision['step_ratio'] == pytest.approx([expected] * 3)
        assert decision['step_ratio_rounds'] == 4
    assert 'a step takes 0.812 times as long' in log_of(tmp_path)
    said = ' '.join(summarize(read_run(str(tmp_path))))
    assert 'After epoch 1 a step took 0.812 times as long' in said
    assert 'After epoch 2 a step took 0.769 times as long' in said
    # Of the medians there is nothing to say: an epoch has four steps.
    assert 'The median training step' not in said


@pytest.mark.parametrize('name, said', [
    ('get_world_size', 'there are several ranks'),
    ('step_ratios', 'RuntimeError: out of memory'),
])
def test_it_steps_aside_with_a_sentence(tmp_path, monkeypatch, name, said):

    def stand_in(*args):
        if name == 'get_world_size':
            return 2
        raise RuntimeError('out of memory')

    monkeypatch.setattr(in_turns, name, stand_in)
    runner = toy_runner(tmp_path, max_epochs=2, hook=dict(timing_rounds=3))
    runner.train()
    assert runner.epoch == 2
    assert f'not timed in turns (timing_rounds=3): {said}' in log_of(tmp_path)
    assert 'step_ratio' not in read_record(tmp_path)['decisions'][0]


def test_what_a_copy_would_not_tell():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 1.))

    def reason(compiled=False, wrapper=wrapper):
        return in_turns.why_not(SimpleNamespace(
            model=model, optim_wrapper=wrapper,
            cfg=Config(dict(compile=compiled))))

    assert reason() is None
    assert 'compiled' in reason(compiled=True)
    assert 'compiled' in reason(compiled=dict(mode='default'))
    assert 'several optimizers' in reason(wrapper=OptimWrapperDict(a=wrapper))
    model[0].forward = model[0].forward
    assert reason().startswith('0 has a forward')


def test_too_few_rounds_are_refused():
    with pytest.raises(UsageError, match='timing_rounds=2: expected 0, or at'):
        ELAPruneHook(windows=[(1, 1)], timing_rounds=2)


# --- over the training -------------------------------------------------------


def test_a_point_has_the_quartiles_of_an_epoch():
    line = Timeline()
    for seconds in (3., 1., 2., 5., 4.):
        line.add(seconds)
    line.end(1)
    assert line.points == [(1, 2., 3., 4.)]
    line.end(2)  # an epoch without a step
    assert len(line.points) == 1
    line.add(9.)
    line.begin()  # it was cut off, and starts over
    line.add(7.)
    line.end(1)
    assert line.points == [(1, 7., 7., 7.)]


def test_stretches_of_iterations_are_long_enough():
    line = Timeline()
    ends = []
    for iteration in range(1, 10 * STRETCH + 1):
        line.add(1.)
        if line.end_if_long(iteration, last=500):
            ends.append(iteration)
    assert ends == [STRETCH * i for i in range(1, 11)]
    line.add(1.)
    assert not line.end_if_long(501, last=160_000)
    for _ in range(399):
        line.add(1.)
    assert line.end_if_long(900, last=160_000)  # 400 points in all


def test_a_pruning_ends_a_stretch_unless_it_has_begun_just_now():
    line = Timeline()
    for _ in range(9):
        line.add(1.)
    line.end(9, least=10)
    assert not line.points
    line.add(11.)
    line.end(10, least=10)
    assert line.points == [(10, 1., 1., 1.)]


def test_quartiles_are_those_between_the_ordered_values():
    assert quartiles([4., 1., 3., 2.]) == (1.75, 2.5, 3.25)
    assert quartiles([7.]) == (7., 7., 7.)


def test_the_run_records_the_median_of_every_epoch(tmp_path):
    runner = toy_runner(tmp_path / 'a', max_epochs=3, windows=[(1, 1)])
    runner.train()
    points = read_record(tmp_path / 'a')['step_times']
    assert [point[0] for point in points] == [1, 2, 3]
    assert all(0 < first <= median <= third
               for _, first, median, third in points)
    run = read_run(str(tmp_path / 'a'))
    assert run.step_times == [(x, median) for x, _, median, _ in points]
    assert run.step_quartiles == [(x, q, p) for x, q, _, p in points]
    # Resumed, the earlier ones are those of the checkpoint.
    toy_runner(tmp_path / 'b', max_epochs=3, windows=[(1, 1)], resume=True,
               load_from=str(tmp_path / 'a' / 'epoch_2.pth')).train()
    again = read_record(tmp_path / 'b')['step_times']
    assert again[:2] == points[:2] and again[2][0] == 3


def test_steps_of_two_processes_are_not_compared_without_a_word(tmp_path):
    """Those before a pruning and, once resumed, those after it."""
    make = partial(toy_runner, tmp_path, max_epochs=2, windows=[(1, 1)],
                   hook=dict(criterion=dict(type='fixed', n=1)),
                   **{'model.backbone.depth': 18})
    make().train()
    (whole, ) = read_run(str(tmp_path)).decisions
    make(resume=True, load_from=str(tmp_path / 'epoch_1.pth')).train()
    (resumed, ) = read_run(str(tmp_path)).decisions
    said = 'the run was resumed in between'
    assert whole.times.after and said not in whole.times.medians()
    assert resumed.times.after and said in resumed.times.medians()
    assert resumed.times.before == whole.times.before


@pytest.mark.parametrize('least, ends', [(3, [3, 6]), (2, [2, 5])])
def test_and_of_stretches_where_iterations_count(tmp_path, monkeypatch, least,
                                                 ends):
    """A pruning ends one, if it has steps enough."""
    monkeypatch.setattr(gain_module, 'STRETCH', 3)
    monkeypatch.setattr(step_clock, 'LEAST_STEPS', least)
    toy_runner(
        tmp_path, windows=[(1, 2)], hook=dict(by_epoch=False),
        train_cfg=ConfigDict(
            _delete_=True, type='IterBasedTrainLoop', max_iters=7),
        train_dataloader=dict(sampler=dict(type='InfiniteSampler'))).train()
    assert [x for x, _ in read_run(str(tmp_path)).step_times] == ends
