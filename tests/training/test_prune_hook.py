"""ELAPruneHook in a real Runner, on a small model."""

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from mmpretrain.utils import load_json_log
from support.toy import toy_config, toy_runner
from support.training import log_of, tensorboard_of, without_times

from ela_mm import ELAPruneHook, ebqm
from ela_mm.engine.journal.record import read_record
from ela_mm.pruning.build import build_criterion
from ela_mm.pruning.windows import check_windows, window_of


class Spy(Hook):
    """Writes down which layers are active in each training step."""
    priority = 'LOWEST'

    def __init__(self):
        self.active = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = getattr(runner.model, 'module', runner.model)
        self.active.append(int(model.backbone.active.sum()))


def prune_hook(runner) -> ELAPruneHook:
    return next(h for h in runner.hooks if isinstance(h, ELAPruneHook))


# --- a run -------------------------------------------------------------------


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run of 4 epochs (4 steps each) with windows in epochs 1 and 3."""
    work_dir = tmp_path_factory.mktemp('run')
    runner = toy_runner(
        work_dir, max_epochs=4, windows=[(1, 1), (3, 3)],
        hook=dict(timing_steps=2))
    spy = Spy()
    runner.register_hook(spy)
    runner.train()
    return runner, spy, work_dir


def test_prunes_at_the_ends_of_its_windows(run):
    runner, spy, work_dir = run
    decisions = read_record(work_dir)['decisions']
    assert [d['epoch'] for d in decisions] == [1, 3]
    assert [d['iter'] for d in decisions] == [4, 12]
    first, second = (d['active'] for d in decisions)
    assert second <= first < 16
    assert spy.active == [16] * 4 + [first] * 8 + [second] * 4


def test_record_holds_what_the_decision_rests_on(run):
    runner, _, work_dir = run
    record = read_record(work_dir)
    decision = record['decisions'][0]
    measured = [x for x in decision['layers'] if x['kl'] is not None]
    assert len(measured) == 12
    assert decision['samples'] == 8
    skip = ebqm([x['kl'] for x in measured], alpha=5., beta=1., mu=0.3)
    names = [x['name'] for x, gone in zip(measured, skip) if gone]
    assert names == decision['skipped'] and names
    assert [x['name'] for x in decision['layers']
            if x['status'] == 'skipped'] == names
    assert decision['criterion'] == dict(
        type='EBQM', gamma=0.75, alpha=5.0, beta=1.0, mu=0.3)
    assert decision['step_time_before'] > 0 < decision['step_time_after']
    assert set(record['layers']) - set(record['active']) == {
        name for d in record['decisions'] for name in d['skipped']}
    later = {x['name']: x['status'] for x in record['decisions'][1]['layers']}
    assert all(later[name] == 'skipped before' for name in names)


def test_log_has_a_table_and_a_sentence(run):
    _, _, work_dir = run
    log, decision = log_of(work_dir), read_record(work_dir)['decisions'][0]
    row = next(line for line in log.splitlines() if decision['skipped'][0]
               in line and '│' in line)
    layer = next(x for x in decision['layers']
                 if x['name'] == decision['skipped'][0])
    assert f'{layer["kl"]:.4f}' in row and f'{layer["mapped"]:.4f}' in row
    assert row.rstrip().endswith('skipped                   │')
    gone, left = len(decision['skipped']), decision['active']
    assert (f'skipped {gone}: {left} of 16 attention layers active; steps are '
            'not compared: 2 before and 2 after it were timed' in log)


def test_the_hosts_find_training_and_validation_in_scalars_json(run):
    """mmpretrain takes a line without lr for a validation's."""
    _, _, work_dir = run
    paths = list(work_dir.glob('*/vis_data/*.json'))
    assert len(paths) == 2
    for path in paths:
        logs = load_json_log(path)
        assert logs['train'] and all('loss' in x for x in logs['train'])
        assert not any(key.startswith('ela/') for kind in logs.values()
                       for log in kind for key in log)


def test_scalars_reach_tensorboard(tmp_path):
    reader = tensorboard_of(tmp_path)
    decision = read_record(tmp_path)['decisions'][0]
    (active, ) = reader.Scalars('ela/active')
    assert (active.step, active.value) == (4, decision['active'])
    measured = next(x for x in decision['layers'] if x['kl'] is not None)
    (kl, ) = reader.Scalars(f'ela/kl/{measured["name"]}')
    assert kl.value == pytest.approx(measured['kl'], rel=1e-5)
    for layer in decision['layers']:
        tag = f'ela/kl/{layer["name"]}'
        assert (tag in reader.Tags()['scalars']) is (layer['kl'] is not None)


def test_skipped_parameters_leave_the_optimizer(run):
    runner, _, work_dir = run
    skipped = [p for p in runner.model.parameters() if not p.requires_grad]
    state = runner.optim_wrapper.optimizer.state
    assert skipped
    assert all(p.grad is None and p not in state for p in skipped)
    # No weight decay either: as they were when they were skipped.
    last = read_record(work_dir)['decisions'][0]['skipped'][0]
    stage, index = last.split('.')
    key = f'backbone.{stage}.attention.{index}.value.weight'
    early = torch.load(work_dir / 'epoch_1.pth')['state_dict'][key]
    assert torch.equal(runner.model.state_dict()[key], early)


def test_checkpoint_of_the_epoch_is_pruned_already(run):
    _, _, work_dir = run
    checkpoint = torch.load(work_dir / 'epoch_1.pth')
    active = checkpoint['state_dict']['backbone.active']
    assert active.sum() == read_record(work_dir)['decisions'][0]['active']


# --- resume ------------------------------------------------------------------


def test_resume_goes_on_with_the_decisions(run, tmp_path):
    """The toy has no randomness but the data's order: bit-equal."""
    whole, _, work_dir = run
    runner = toy_runner(
        tmp_path, max_epochs=4, windows=[(1, 1), (3, 3)], resume=True,
        load_from=str(work_dir / 'epoch_2.pth'))
    spy = Spy()
    runner.register_hook(spy)
    runner.train()
    ours, theirs = (read_record(d)['decisions'] for d in (tmp_path, work_dir))
    assert spy.active[0] == ours[0]['active']
    assert [*map(without_times, ours)] == [*map(without_times, theirs)]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(runner.model.state_dict()[name], value), name


def test_resume_inside_a_window_keeps_its_statistics(tmp_path):
    whole = toy_runner(tmp_path / 'a', windows=[(1, 3)])
    whole.train()
    runner = toy_runner(
        tmp_path / 'b', windows=[(1, 3)], resume=True,
        load_from=str(tmp_path / 'a' / 'epoch_2.pth'))
    runner.train()
    a, b = (read_record(tmp_path / d)['decisions'][0] for d in 'ab')
    assert a['samples'] == b['samples'] == 24
    assert a['layers'] == b['layers']


def test_resume_without_a_record_says_which_windows_are_lost(tmp_path):
    toy_runner(tmp_path / 'a', windows=None, max_epochs=2).train()
    runner = toy_runner(
        tmp_path / 'b', windows=[(1, 1), (3, 3)], resume=True,
        load_from=str(tmp_path / 'a' / 'epoch_2.pth'))
    runner.train()
    assert 'window (1, 1) ended before' in log_of(tmp_path / 'b')
    decisions = read_record(tmp_path / 'b')['decisions']
    assert [d['window'] for d in decisions] == [[3, 3]]


def test_fine_tuning_starts_from_the_pruned_network(run, tmp_path):
    _, _, work_dir = run
    before = read_record(work_dir)['active']
    runner = toy_runner(
        tmp_path, max_epochs=1, load_from=str(work_dir / 'epoch_4.pth'))
    spy = Spy()
    runner.register_hook(spy)
    runner.train()
    assert spy.active[0] == len(before)
    assert read_record(tmp_path)['decisions'][0]['window'] == [1, 1]


# --- other loops, other hooks ------------------------------------------------


def test_windows_of_iterations(tmp_path):
    runner = toy_runner(
        tmp_path,
        windows=[(2, 3), (6, 6)],
        hook=dict(by_epoch=False, skip='retrieval'),
        train_cfg=ConfigDict(
            _delete_=True, type='IterBasedTrainLoop', max_iters=8),
        train_dataloader=dict(sampler=dict(type='InfiniteSampler')))
    spy = Spy()
    runner.register_hook(spy)
    runner.train()
    first, second = read_record(tmp_path)['decisions']
    assert (first['iter'], second['iter']) == (3, 6)
    assert first['samples'] == 4
    assert spy.active == [16] * 3 + [first['active']] * 3 + [second['active']
                                                             ] * 2
    backbone = runner.model.backbone
    assert not torch.equal(backbone.active, backbone.visible)


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaged_models_are_pruned_too(tmp_path, update_buffers):
    runner = toy_runner(
        tmp_path, hooks=[dict(type='EMAHook', update_buffers=update_buffers)])
    runner.train()
    checkpoint = torch.load(tmp_path / 'epoch_3.pth')
    active = runner.model.backbone.active
    assert 0 < active.sum() < 16
    assert torch.equal(checkpoint['state_dict']['backbone.active'], active)
    averaged = checkpoint['ema_state_dict']['module.backbone.active']
    assert averaged.dtype == torch.bool and torch.equal(averaged, active)
    ema = next(h for h in runner.hooks if hasattr(h, 'ema_model'))
    assert (ema.ema_model.module.backbone.attention_layers ==
            runner.model.backbone.attention_layers)


def test_frozen_layers_without_effect_go_first(tmp_path):
    cfg = toy_config(tmp_path, max_epochs=1)
    cfg.model.backbone.update(
        frozen_stages=1, zero_init_attention=True, norm_eval=True)
    runner = Runner.from_cfg(cfg)
    spy = Spy()
    runner.register_hook(spy)
    runner.train()
    assert spy.active == [13] * 4
    log = log_of(tmp_path)
    assert '3 attention layers lie in frozen stages' in log
    assert 'norms of 13 attention layers have seen no data' in log
    # All fresh norms but the frozen stage's have learned their statistics.
    means = [layer.norm.running_mean.abs().sum().item()
             for stage in (1, 2, 3, 4) for layer in
             getattr(runner.model.backbone, f'layer{stage}').attention]
    assert not any(means[:3]) and all(means[3:])


@pytest.mark.parametrize('changes, loads, said', [
    (dict(frozen_stages=1), False, True),
    (dict(frozen_stages=1), True, False),
    (dict(frozen_stages=1, zero_init_attention=True), False, False),
    (dict(), False, False)])
def test_random_attention_that_cannot_learn_is_told_of(
        tmp_path, changes, loads, said):
    cfg = toy_config(tmp_path, max_epochs=1)
    cfg.model.backbone.update(changes)
    cfg.train_dataloader.dataset.size = 2
    runner = Runner.from_cfg(cfg)
    if loads:  # attention that was trained elsewhere
        runner.model.load_state_dict(runner.model.state_dict())
    runner.train()
    assert ('3 attention layers lie in frozen stages with random first weights'
            in log_of(tmp_path)) == said


def test_fresh_norms_survive_a_resume(tmp_path):
    def start(name, **kwargs):
        cfg = toy_config(tmp_path / name, max_epochs=2, windows=[(2, 2)],
                         **kwargs)
        cfg.model.backbone.norm_eval = True
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner.model.state_dict()

    whole = start('a')
    resumed = start(
        'b', resume=True, load_from=str(tmp_path / 'a' / 'epoch_1.pth'))
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


# --- bad statistics ----------------------------------------------------------


class Poison(Hook):
    """Puts NaN into one query, in the first epoch alone."""

    def before_train_epoch(self, runner):
        query = runner.model.backbone.layer2.attention[1].query.weight
        self.saved = query.detach().clone()
        if runner.epoch == 0:
            query.data.fill_(float('nan'))

    def after_train_iter(self, runner, *args, **kwargs):
        for parameter in runner.model.parameters():
            parameter.data.nan_to_num_(0.1)
        if runner.epoch == 0 and runner.iter < 3:
            runner.model.backbone.layer2.attention[1].query.weight.data.fill_(
                float('nan'))


def test_nan_prunes_nothing_and_says_so(tmp_path):
    runner = toy_runner(tmp_path, max_epochs=1)
    runner.register_hook(Poison(), priority='HIGHEST')
    runner.train()
    assert runner.model.backbone.active.all()
    decision = read_record(tmp_path)['decisions'][0]
    assert decision['skipped'] == []
    assert 'layer2.1 in 4 of 4 iterations' in decision['note']
    assert decision['layers'][4]['kl'] is None
    assert ('nothing pruned on epoch 1: KL divergences are not finite'
            in log_of(tmp_path))


def test_a_criterion_that_fails_does_not_end_the_training(tmp_path):

    @FUNCTIONS.register_module(force=True)
    def fails_later(kl):
        if len(kl) > 4:
            raise RuntimeError('no fit')
        return np.zeros(len(kl), bool)

    cfg = toy_config(tmp_path, max_epochs=2)
    cfg.custom_hooks[0].criterion = dict(type='fails_later')
    Runner.from_cfg(cfg).train()
    assert read_record(tmp_path)['decisions'][0]['note'] == (
        'RuntimeError: no fit')


def test_a_network_without_active_layers_trains_on(tmp_path):
    runner = toy_runner(tmp_path, max_epochs=1)
    backbone = runner.model.backbone
    backbone.skip_layers(layer.name for layer in backbone.attention_layers)
    runner.save_checkpoint(
        str(tmp_path), 'untrained.pth', save_optimizer=False,
        save_param_scheduler=False)
    runner.train()
    assert '0 layers were measured' in read_record(tmp_path)['decisions'][0][
        'note']


# --- bad arguments -----------------------------------------------------------


@pytest.mark.parametrize('windows, message', [
    ([], 'windows is empty'),
    ([(1, 3), (3, 5)], r'\(1, 3\) and \(3, 5\) overlap'),
    ([(5, 6), (1, 2)], 'overlap or are out of order'),
    ([(3, 1)], r'\(3, 1\) is reversed'),
    ([(0, 1)], 'counting starts at 1'),
    ([(1, 2, 3)], 'expected a pair'),
    ([(1, 2.5)], 'whole numbers'),
    ([3], 'expected a pair'),
])
def test_bad_windows_are_named(windows, message):
    with pytest.raises(ValueError, match=message):
        ELAPruneHook(windows=windows)


def test_windows_contain_their_bounds():
    windows = check_windows([[1, 3], [5, 5]])
    assert [window_of(windows, n) for n in range(1, 7)] == [
        (1, 3), (1, 3), (1, 3), None, (5, 5), None]


@pytest.mark.parametrize('criterion, message', [
    (dict(type='EBMQ'), "unknown criterion 'EBMQ'.*EBQM"),
    (dict(mu=0.3), 'unknown criterion None'),
    ('EBQM', "criterion='EBQM': expected a dict with a type"),
    (dict(type='EBQM', mu=3), 'criterion EBQM: mu=3'),
    (dict(type='EBQM', nu=3), "criterion EBQM.*'nu'.*gamma, alpha, beta, mu"),
])
def test_bad_criteria_are_named(criterion, message):
    with pytest.raises(ValueError, match=message):
        ELAPruneHook(windows=[(1, 1)], criterion=criterion)


@pytest.mark.parametrize('argument', [dict(skip='stage'),
                                      dict(timing_steps=0),
                                      dict(timing_steps='50'),
                                      dict(timing_rounds='3'),
                                      dict(by_epoch='False')])
def test_bad_options_are_named(argument):
    name, value = next(iter(argument.items()))
    with pytest.raises(ValueError, match=f'{name}={value!r}'):
        ELAPruneHook(windows=[(1, 1)], **argument)


def test_a_users_function_is_a_criterion():

    @FUNCTIONS.register_module(force=True)
    def closest(kl, n=1):
        return np.argsort(np.argsort(kl)) < n

    criterion = build_criterion(dict(type='closest', n=2))
    skip, mapped = criterion([0.3, 0.1, 0.9, 0.2])
    assert skip.tolist() == [False, True, False, True]
    assert mapped.tolist() == [0.3, 0.1, 0.9, 0.2]
    assert criterion.config == dict(type='closest', n=2)

    def forwards(kl, factor, **others):
        return ebqm(np.asarray(kl) * factor, **others)

    criterion = build_criterion(
        dict(type=forwards, factor=2., **ConfigDict(mu=0.3)))
    assert criterion.config == dict(type='forwards', factor=2., mu=0.3)
    assert criterion([1., 2., 3., 9.])[0].any()

    with pytest.raises(ValueError, match='returned int64'):
        build_criterion(dict(type=lambda kl: np.argsort(kl)))


@pytest.mark.parametrize('overrides, message', [
    (dict(windows=[(1, 1), (4, 4)]), r'\(4, 4\) lies past the last epoch.*3'),
    (dict(windows=[(1, 13)], hook=dict(by_epoch=False)),
     r'\(1, 13\) lies past the last iteration.*12'),
    (dict(hook=dict(priority='LOWEST')),
     'ELAPruneHook has the priority LOWEST, CheckpointHook VERY_LOW'),
    ({'default_hooks.checkpoint.priority': 'HIGHEST'},
     'CheckpointHook HIGHEST: .* would never take'),
    ({'model.backbone.attention': None}, 'no layer attention to prune'),
    ({'model.backbone.attention': 'light', 'model.backbone.head_dim': 16},
     'no layer attention to prune'),
])
def test_what_cannot_be_pruned_is_said_before_training(tmp_path, overrides,
                                                       message):
    runner = toy_runner(tmp_path, **overrides)
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


def test_epoch_windows_need_epochs(tmp_path):
    runner = toy_runner(
        tmp_path,
        train_cfg=ConfigDict(
            _delete_=True, type='IterBasedTrainLoop', max_iters=4))
    with pytest.raises(ValueError, match='by_epoch=False'):
        runner.train()


def test_record_is_missing_where_nothing_was_trained(tmp_path):
    with pytest.raises(FileNotFoundError, match='trained with ELAPruneHook'):
        read_record(tmp_path)


