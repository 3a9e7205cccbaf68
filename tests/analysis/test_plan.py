"""A plan says before a training what it does: compared with the training."""
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from support import ROOT
from support.running import tool
from support.toy import toy_config, toy_runner, validation
from support.versions import RESUMES_ITERATIONS

from ela_mm.analysis.plan import (
    describe_criterion,
    make_plan,
    planned_layers,
)
from ela_mm.analysis.planned_criteria import criteria_in_words, rules_in_words
from ela_mm.analysis.report.plan import (
    WIDTH_OF_LINE,
    layers_section,
    lines_of,
    plan_sections,
)
from ela_mm.analysis.schedule import Clock, Schedule, Span, read_schedule
from ela_mm.config_types import imports_package
from ela_mm.hosts.mmdet import ELAResNet
from ela_mm.pruning import ebqm

SMALL = {'model.backbone.depth': 18}
DIGITS = ROOT / 'configs' / 'ela_resnet20_digits.py'


class Witness(Hook):
    """Notes what happens after which iteration of a real training."""
    priority = 'HIGHEST'  # before the rate of the next iteration is set

    def __init__(self):
        self.rates, self.validations, self.checkpoints = [], [], []
        self.iters = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.iters += 1
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])

    def before_val(self, runner):
        self.validations.append(self.iters)

    def before_save_checkpoint(self, runner, checkpoint):
        self.checkpoints.append(self.iters)


@HOOKS.register_module()
class Prepares(Hook):
    """Does before a step what a network may need for it."""

    def before_train(self, runner):
        raise AssertionError('a plan runs no hook of others')

    def before_val(self, runner):
        self.before_train(runner)


SCHEDULERS = [
    dict(type='LinearLR', start_factor=.1, by_epoch=False, begin=0, end=6),
    dict(type='MultiStepLR', milestones=[3, 5], gamma=.1),
]


@pytest.mark.parametrize('by_epoch', [True, False])
def test_what_happens_when_is_what_a_training_does(tmp_path, by_epoch):
    cfg = toy_config(tmp_path, max_epochs=6, windows=None,
                     **{**SMALL, **validation(3)})
    cfg.train_cfg.dynamic_intervals = [(4, 2)]
    cfg.param_scheduler = SCHEDULERS
    cfg.default_hooks.checkpoint.interval = 4
    if not by_epoch:
        cfg.train_cfg = dict(by_epoch=False, max_iters=10, val_interval=4)
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=3)
        cfg.param_scheduler = [
            dict(type='ConstantLR', factor=.1, by_epoch=False, end=3),
            dict(type='StepLR', step_size=4, by_epoch=False)]
    schedule = read_schedule(cfg, 4 if by_epoch else None)
    cfg.merge_from_dict(dict(model=dict(backbone=dict(depth=18))))
    runner, witness = Runner.from_cfg(cfg), Witness()
    runner.register_hook(witness)
    runner.train()
    planned = schedule.validations
    if not by_epoch and not RESUMES_ITERATIONS:  # mmengine 0.8
        planned.pop()  # it does not validate at the end
    assert planned == witness.validations
    assert schedule.checkpoints == witness.checkpoints
    assert schedule.clock.end == witness.iters
    drops = [i for i, (a, b) in enumerate(
        zip(witness.rates, witness.rates[1:]), start=1) if b < a]
    assert schedule.lr_steps == drops
    rises = [i for i, (a, b) in enumerate(
        zip(witness.rates, witness.rates[1:]), start=1) if b > a]
    # The rate is full in the last iteration of mmengine's warm-ups.
    assert schedule.warm_up.end == rises[-1] + 1


def test_other_schedules():
    cfg = Config(dict(
        train_cfg=dict(by_epoch=True, max_epochs=10),
        param_scheduler=[
            dict(type='LinearLR', start_factor=1., end_factor=.1, end=5),
            dict(type='CosineAnnealingLR', T_max=10, by_epoch=True),
            dict(type='LinearLR', by_epoch=False, end=50)]))
    schedule = read_schedule(cfg, 10)
    assert schedule.warm_up == ('warm-up (LinearLR)', 0, 50)
    assert len(schedule.lr_others) == 2 and not schedule.validations
    assert 'CosineAnnealingLR from iteration 1 (epoch 1)' in \
        schedule.lr_others[1]
    short = read_schedule(cfg, 4)  # which does not get out of its warm-up
    assert short.warm_up == ('warm-up (LinearLR)', 0, 50)
    assert dict(lines_of(short))['warm-up'] == '~' * WIDTH_OF_LINE
    unknown = read_schedule(cfg)  # how long an epoch is
    assert unknown.warm_up is None and unknown.clock.end == 10
    assert 'LinearLR of iterations 1 to 50' in unknown.lr_others
    one = Config(dict(train_cfg=dict(by_epoch=False, max_iters=100),
                      param_scheduler=dict(type='OneCycleLR', by_epoch=False)))
    assert read_schedule(one).warm_up.end == 30


def schedule_with(windows=(), **parts):
    values = dict(clock=Clock(50, True, 10), windows=list(windows),
                  warm_up=None, lr_steps=[], lr_others=[], validations=[],
                  checkpoints=[], earliest_stop=None)
    return Schedule(**{**values, **parts})


@pytest.mark.parametrize('window, parts, warning', [
    ((0, 50), dict(warm_up=Span('', 0, 60)), 'lies in the warm-up'),
    ((0, 50), dict(warm_up=Span('', 0, 40)), 'begins in the warm-up'),
    ((50, 100), dict(warm_up=Span('', 0, 50)), None),
    ((0, 29), {}, '29 iterations, fewer than 30'),
    ((0, 30), {}, None),
    ((350, 400), dict(earliest_stop=399), 'could end the run, at iteration '
     r'399 \(epoch 8\)'),
    ((350, 400), dict(earliest_stop=400), None),
    ((450, 500), {}, 'ends with the training: .* saves no training time'),
    ((449, 499), {}, None),
])
def test_what_is_seldom_meant_is_said(window, parts, warning):
    import re
    found = schedule_with([Span('w', *window)], **parts).warnings
    if warning is None:
        assert not found
    else:
        assert len(found) == 1 and re.search(warning, found[0])


def test_early_stopping_is_as_early_as_mmengines(tmp_path):
    """A metric that never gets better ends a run exactly then."""
    cfg = toy_config(
        tmp_path, max_epochs=9, windows=None,
        **{**SMALL, **validation(), 'custom_hooks': [dict(
            type='EarlyStoppingHook', monitor='energy', rule='greater',
            min_delta=1e9, patience=3)]})
    planned = read_schedule(cfg, 4).earliest_stop
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert planned == runner.iter < 36


def test_lines_show_what_is_where():
    schedule = schedule_with(
        [Span('', 0, 250)], warm_up=Span('', 0, 125), lr_steps=[250],
        earliest_stop=250)
    lines = dict(lines_of(schedule))
    half = WIDTH_OF_LINE // 2
    assert lines['windows'] == '#' * half + '.' * half
    assert lines['warm-up'].count('~') == half // 2
    assert lines['learning rate drops'].index('|') == half - 1
    assert lines['may have stopped'] == '.' * half + '!' * half


def test_layers_are_what_training_makes_of_them():
    net = ELAResNet(18, base_channels=16, frozen_stages=1,
                    zero_init_attention=True)
    net.skip_layers(['layer2.0'])
    layers = {x.name: x for x in planned_layers(net)}
    assert [n for n, x in layers.items() if x.frozen] == [
        n for n, x in layers.items() if x.inert] == ['layer1.0', 'layer1.1']
    # Of stage 2 the second is the first that is left.
    assert [n for n, x in layers.items() if x.prunable] == [
        'layer3.1', 'layer4.1']
    (table, ) = layers_section(list(layers.values())).tables
    assert table.header[:3] == ['stage', 'number', 'frozen']
    assert table.rows[0] == ['layer1', '2', 'all', 'all', '-', '-']
    assert table.rows[1] == ['layer2', '2', '-', '-', '-', '0']


def test_a_plan_trains_writes_and_keeps_nothing(tmp_path):
    cfg = toy_config(tmp_path / 'work', max_epochs=2, **SMALL)
    before = cfg.to_dict()
    plan = make_plan(cfg, rounds=1)
    assert cfg.to_dict() == before and not list(tmp_path.iterdir())
    assert not plan.refused and plan.schedule.clock.per_epoch == 4
    assert [x.layers for x in plan.times] == [8, 6, 6]
    assert all(x.median > 0 for x in plan.times)
    (span, ) = plan.schedule.windows
    assert (span.begin, span.end) == (0, 4)
    text = ' '.join(t for s in plan_sections(plan) for t in s.text)
    assert 'has 4 iterations' in text and 'at most 2 of 4 prunable' in text


@pytest.mark.parametrize('seconds, rounds', [(1., 3), (10., 1)])
def test_slow_steps_are_timed_once(tmp_path, monkeypatch, seconds, rounds):
    """Of three variants, with a round to warm up: 12 s, or 2 minutes."""
    monkeypatch.setattr('ela_mm.analysis.plan.seconds_of', lambda step: seconds)
    plan = make_plan(toy_config(tmp_path / 'work', max_epochs=2, **SMALL))
    assert [len(x.seconds) for x in plan.times] == [rounds] * 3
    text = ' '.join(t for s in plan_sections(plan) for t in s.text)
    assert ('One round says little' in text) is (rounds == 1)


@pytest.mark.parametrize('change, reason', [
    ({'custom_hooks.0.windows': [(3, 9)]}, 'lies past the last epoch'),
    ({'custom_hooks.0.windows': [(2, 1)]}, 'is reversed'),
    ({'custom_hooks.0.windows': 1}, 'windows=1: expected a list of pairs'),
    ({'custom_hooks.0.windows': [(0, .5)]}, 'mixes a count with a share'),
    ({'custom_hooks.0.windows': [('after_warmup', 1)]}, 'has no warm-up'),
    ({'custom_hooks.0.criterion': dict(type='EBQM', mu=7)}, 'mu=7'),
    ({'custom_hooks.0.skip': 'all'}, "skip='all'"),
    ({'train_dataloader.dataset.type': 'Gone'}, 'Gone'),
    ({'param_scheduler': [dict(type='GoneLR')]}, 'GoneLR'),
    ({'load_from': 'gone.pth'}, "'gone.pth' does not exist"),
])
def test_what_would_be_refused_is_said(tmp_path, change, reason):
    cfg = toy_config(tmp_path, max_epochs=2, **SMALL)
    if 'custom_hooks.0.criterion' in change:
        cfg.custom_hooks[0].criterion = change.pop('custom_hooks.0.criterion')
    cfg.merge_from_dict(change)
    plan = make_plan(cfg, rounds=0)
    assert any(reason in text for text in plan.refused), plan.refused
    assert plan_sections(plan)[-1].text[0].startswith('REFUSED: ')


def test_what_cannot_be_timed_or_rehearsed_is_no_refusal(tmp_path, monkeypatch):
    """As too little memory, or a runner with a strategy."""

    def exhausted(step):
        raise RuntimeError('CUDA out of memory')

    monkeypatch.setattr('ela_mm.analysis.plan.seconds_of', exhausted)
    cfg = toy_config(tmp_path, max_epochs=2, **SMALL)
    cfg.model.backbone.frozen_stages = 1  # attention there stays random
    plan = make_plan(cfg, rounds=1)
    assert not plan.refused and not plan.times
    noise, unknown = plan.notes
    assert '2 attention layers lie in frozen stages with random' in noise
    assert unknown.startswith('step times are not known: ')
    cfg = toy_config(tmp_path, max_epochs=2, **SMALL)
    cfg.runner_type = 'FlexibleRunner'
    cfg.strategy = dict(type='SingleDeviceStrategy')
    plan = make_plan(cfg, rounds=1)
    assert not plan.refused
    assert plan.notes[0] == 'FlexibleRunner is built, but not rehearsed'


@pytest.mark.parametrize('change, rounds, reason', [
    (('train_dataloader', 'dataset', dict(type='ToyDataset', label=7)), 1,
     'the first training step raises IndexError: Target 7 is out of bounds.'),
    (('train_dataloader', 'collate_fn', dict(type='pseudo_collate')), 1,
     'the first training step raises '),  # the toy takes a tensor
    (('val_dataloader', 'collate_fn', dict(type='pseudo_collate')), 1,
     'the first step of validation raises '),
    (('train_dataloader', 'dataset', dict(type='ToyDataset', label='gone')), 0,
     "the first batch of training raises KeyError: 'gone'"),
    (('val_dataloader', 'dataset', dict(type='ToyDataset', label='gone')), 0,
     "the first batch of validation raises KeyError: 'gone'"),
])
def test_errors_of_the_first_batches_are_refusals(tmp_path, change, rounds,
                                                  reason):
    cfg = toy_config(tmp_path, max_epochs=2, **{**SMALL, **validation()})
    loader, part, value = change
    cfg[loader][part] = value
    plan = make_plan(cfg, rounds=rounds)
    assert len(plan.refused) == 1 and plan.refused[0].startswith(reason)
    assert not any('step times' in note for note in plan.notes)


@pytest.mark.parametrize('loader, step', [
    ('train_dataloader', 'the first training step'),
    ('val_dataloader', 'the first step of validation')])
def test_what_a_hook_may_prepare_is_no_refusal(tmp_path, loader, step):
    """As prototypes for validation: a plan runs no hook of others."""
    cfg = toy_config(tmp_path, max_epochs=2, **{**SMALL, **validation()})
    cfg[loader].collate_fn = dict(type='pseudo_collate')
    cfg.custom_hooks.append(dict(type='Prepares'))
    plan = make_plan(cfg, rounds=1)
    assert not plan.refused
    (note, ) = [note for note in plan.notes if step in note]
    assert 'a plan does not run Prepares, which may prepare it' in note


@pytest.mark.parametrize('imports, lacks', [
    (None, True), (['json'], True), (['ela_mm'], False), ('ela_mm', False),
    (['ela_mm.hosts.mmdet'], False),
    (['support.toy'], False),  # a user's module that imports the package
])
def test_a_config_that_only_our_tools_can_build_is_noted(imports, lacks):
    backbone = dict(type='mmdet.ELAResNet')
    cfg = Config(dict(model=dict(backbone=backbone)))
    if imports:
        cfg.custom_imports = dict(imports=imports)
    assert imports_package(cfg) is not lacks
    cfg.model.backbone.type = ELAResNet  # needs no name in a registry
    assert imports_package(cfg)


def test_the_line_that_a_config_lacks_is_said(tmp_path):
    cfg = toy_config(tmp_path, max_epochs=2, **SMALL)
    cfg.custom_imports = None
    plan = make_plan(cfg, rounds=0)
    assert not plan.refused
    assert plan.notes[0].startswith(
        "the config lacks custom_imports = dict(imports=['ela_mm']")


def test_a_resumed_run_says_where_it_goes_on(tmp_path):
    toy_runner(tmp_path, max_epochs=1, **SMALL).train()
    path = str(tmp_path / 'epoch_1.pth')
    cfg = toy_config(tmp_path, max_epochs=2, load_from=path, resume=True,
                     **SMALL)
    plan = make_plan(cfg, rounds=0)
    assert plan.notes == [f'the run goes on from {path}, after epoch 1 and '
                          'iteration 4: what lies before is done']
    skipped = torch.load(path)['state_dict']['backbone.active'].logical_not()
    assert skipped.any()
    assert [not x.active for x in plan.layers] == skipped.tolist()


def test_criteria_in_words_say_what_they_do():
    said = describe_criterion(dict(type='EBQM', gamma=.6, alpha=5., beta=1.,
                                   mu=.3))
    assert all(x in said for x in ('0.6-quantile', 'Beta(5, 1)', 'mu = 0.3'))
    assert describe_criterion(dict(type='fixed', n=3)).startswith('fixed: the 3')
    assert describe_criterion(dict(type='own', x=1)) == 'own with x = 1'
    said = describe_criterion(dict(type='ablation', n=None, budget=.05, images=9),
                              'excess')
    assert 'on 9 pictures held out' in said and 'no more than 0.05' in said
    assert 'None' not in said and 'excess' not in said  # it asks the network


def test_criteria_of_windows_and_rules_are_said():
    """Each window by the criterion and the measure that it is decided by."""
    hook = dict(
        type='ELAPruneHook', windows=[
            dict(window=(1, 1), criterion=dict(type='fixed', n=2)), (3, 3)],
        criterion=dict(type='threshold', t=.3), redundancy='conditional',
        uninformative='wait', min_stability=.8, skip='retrieval')
    run, own = criteria_in_words(hook, 7)
    assert 'threshold' in run and 'conditional part' in run
    assert '(1, 1) has its own: fixed: the 2 layers' in own
    # Of the criterion that the first window has, not of the run's.
    assert own.endswith('at most 2 of 7 prunable layers in the first window')
    rules = ' '.join(rules_in_words(hook))
    assert all(x in rules for x in ('skips none', '80%', 'still see'))
    assert 'skips none' not in ' '.join(
        rules_in_words(dict(hook, uninformative='warn')))
    assert rules_in_words(dict(hook, uninformative='prune', min_stability=0,
                               skip='layer')) == []
    # One that asks the network has no ranking by attention to doubt.
    asks = dict(hook, criterion=dict(type='ablation', n=1))
    assert 'skips none' in ' '.join(rules_in_words(asks))  # of the first window
    asks['windows'] = [(1, 1), dict(window=(3, 3))]
    assert 'skips none' not in ' '.join(rules_in_words(asks))
    only = dict(hook, windows=hook['windows'][:1])
    assert len(criteria_in_words(only, 7)) == 1  # the run's decides nothing


def test_planned_steps_skip_as_the_run_does(tmp_path, monkeypatch):
    masks = []

    def noted(steps, rounds, *args):
        for step in steps.values():
            step()
        return {name: [1.] * rounds for name in steps}

    def skip_layers(self, names, skip='layer'):
        masks.append((len(names), skip))

    monkeypatch.setattr('ela_mm.analysis.plan.time_in_turns', noted)
    monkeypatch.setattr(ELAResNet, 'skip_layers', skip_layers)
    cfg = toy_config(tmp_path, max_epochs=2, hook=dict(skip='retrieval'), **SMALL)
    assert len(make_plan(cfg, rounds=1).times) == 3
    assert {skip for number, skip in masks if number} == {'retrieval'}


@pytest.mark.parametrize('gamma', [.25, .5, .75, .9, 1.])
@pytest.mark.parametrize('candidates', [2, 4, 12, 33])
def test_no_window_skips_more_than_the_most(gamma, candidates):
    from ela_mm.analysis.plan import PlannedLayer, _most
    layers = [PlannedLayer(str(i), 1, True, False, False, False)
              for i in range(candidates)]
    cfg = Config(dict(custom_hooks=[dict(
        type='ELAPruneHook', windows=[(1, 1)],
        criterion=dict(type='EBQM', gamma=gamma, mu=.999))]))
    # All but the last close to 0: as many as can be are skipped.
    kl = torch.linspace(1., 1.001, candidates).tolist()
    skipped = []
    for position in range(1, candidates):
        values = [*kl[:position], *(100. + x for x in kl[position:])]
        try:
            skipped.append(int(ebqm(values, gamma=gamma, mu=.999).sum()))
        except ValueError:  # nothing to rank
            continue
    assert max(skipped, default=0) <= _most(cfg, layers)


def test_the_tools_say_it(tmp_path):
    process = tool('analyze.py', 'plan', DIGITS, '--rounds', 0, '--out',
                   tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    assert 'iterations 67 to 88 (22), epoch 4' in process.stdout
    assert (tmp_path / 'plan.png').stat().st_size > 5_000
    process = tool('train.py', DIGITS, '--dry-run', '--work-dir',
                   tmp_path / 'work', '--cfg-options',
                   'custom_hooks.0.windows=[(40,41)]')
    assert process.returncode == 1
    assert 'error: training would be refused: ' in process.stderr
    assert not (tmp_path / 'work').exists()
    process = tool('analyze.py', 'layers', DIGITS)
    assert '6 of 6 attention layers active: 3 prunable, 3 the first' in ' '.join(
        process.stdout.split())


def test_windows_that_cannot_be_placed_yet_are_left_open():
    """Where the config does not say how long an epoch is."""
    cfg = Config(dict(
        train_cfg=dict(by_epoch=True, max_epochs=10),
        param_scheduler=[dict(type='LinearLR', by_epoch=False, end=50)],
        custom_hooks=[dict(type='ELAPruneHook',
                           windows=[('after_warmup', 1), (.5, .6)])]))
    assert read_schedule(cfg).windows == []
    assert [w[1:] for w in read_schedule(cfg, 20).windows] == [(60, 80),
                                                               (100, 120)]
    cfg.custom_hooks[0].windows = [(.5, .6)]
    assert [w[1:] for w in read_schedule(cfg).windows] == [(5, 6)]
    cfg.custom_hooks[0].update(windows=[(.5, .6)], by_epoch=False)
    assert read_schedule(cfg).windows == []
    assert read_schedule(cfg, 20).windows[0][:] == (
        'window iterations 101 to 120 (0.5, 0.6)', 100, 120)
