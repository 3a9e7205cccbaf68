"""Pruning by the loss that skipping a layer adds, in a real Runner."""
import copy
import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.hooks import Hook
from mmengine.runner import runner as mmengine_runner
from mmengine.runner.loops import IterBasedTrainLoop, _InfiniteDataloaderIterator
from support.pictures import ToyPictures
from support.toy import ToyClassifier, toy_runner
from support.training import log_of
from torch.utils.data import DataLoader

from ela_mm import ELAPruneHook
from ela_mm.engine.held_out import HeldOut
from ela_mm.engine.journal.record import read_record
from ela_mm.engine.trial import Trial, copy_of, loss_of
from ela_mm.engine.verdict import verdict_of
from ela_mm.errors import UsageError
from ela_mm.pruning import LayerKL, decide
from ela_mm.pruning.build import build_criterion
from ela_mm.pruning.decision import Moment
from ela_mm.pruning.trust import Rules

IMAGES = 6
VERDICT = 'ela_mm.engine.verdict'
HELD = [0, 2, 5, 8, 10, 13]  # of 16, evenly spaced
BACKBONE = dict(type='mmpretrain.ELAResNet', depth=18, base_channels=16,
                stem_channels=16, drop_path_rate=.5)


def runner_of(folder, criterion, hooks=(), **overrides):
    return toy_runner(folder, **{
        'max_epochs': 2, 'windows': [(1, 1)],
        'hook': dict(criterion=dict(criterion)), 'hooks': list(hooks),
        'model.backbone': dict(BACKBONE, _delete_=True),
        'train_dataloader.dataset': dict(type='ToyPictures', _delete_=True),
        'train_dataloader.batch_size': 4, **overrides})


def numbers(dataset):
    return [dataset.get_data_info(i)['number'] for i in range(len(dataset))]


def held_out_of(runner):
    return next(h for h in runner.hooks
                if isinstance(h, ELAPruneHook)).held_out


class Keep(Hook):
    """Keeps the network as it is when the hook decides, and what drew."""
    priority = 'VERY_HIGH'

    def after_train_epoch(self, runner):
        if runner.epoch == 0:
            self.state = copy.deepcopy(runner.model.state_dict())


BY_LOSS = dict(type='ablation', n=1, budget=10., images=IMAGES)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('by_loss')
    runner = runner_of(folder, BY_LOSS, windows=[(1, 1), (2, 2)])
    keep = Keep()
    runner.register_hook(keep)
    runner.train()
    return runner, keep, folder


def cross_entropy(model, data):
    """Of a batch, by hand."""
    logits = model.head(model.backbone(data['inputs'])[-1].mean((2, 3)))
    log_p = logits.double() - logits.double().exp().sum(1, keepdim=True).log()
    return -log_p.gather(1, data['targets'][:, None]).mean().item()


@torch.no_grad()
def test_the_record_has_what_each_layer_costs(run):
    """Against networks built anew, with the weights of that moment."""
    runner, keep, folder = run
    decision, _ = read_record(folder)['decisions']
    batches = list(held_out_of(runner))
    sizes = [len(batch['targets']) for batch in batches]
    assert sizes == [4, 2]

    def loss(names=()):
        model = ToyClassifier(dict(BACKBONE)).eval()
        model.load_state_dict(keep.state)
        model.backbone.skip_layers(names)
        return np.average([cross_entropy(model, b) for b in batches],
                          weights=sizes)

    whole = loss()
    costs = {x['name']: x['mapped'] for x in decision['layers']
             if x['kl'] is not None}
    assert len(costs) == 4 and len(set(costs.values())) == 4
    for name, cost in costs.items():
        assert cost == pytest.approx(loss([name]) - whole, abs=1e-6)
    assert sorted(decision['skipped']) == sorted(
        sorted(costs, key=costs.get)[:1])
    assert decision['criterion'] == BY_LOSS
    assert all(x['stability'] is None for x in decision['layers'])
    log = log_of(folder)
    assert '6 pictures of the training set are held out of it' in log
    # Each alone, and with a budget the one that goes: it is known already.
    assert 'tried without 4 choices of layers, on 6 pictures' in log


def test_held_out_pictures_are_not_trained_on(run):
    runner, _, _ = run
    dataset = runner.train_dataloader.dataset
    assert len(dataset) == 16
    expected = [i + 1 if i in HELD else i for i in range(16)]
    assert numbers(dataset) == expected
    (part, ) = held_out_of(runner)._parts
    assert numbers(part) == HELD
    assert not set(HELD) & set(numbers(dataset))


def test_batches_are_the_same_each_time(run):
    runner, _, _ = run
    first, second = list(held_out_of(runner)), list(held_out_of(runner))
    for a, b in zip(first, second):
        assert torch.equal(a['inputs'], b['inputs'])
    # Noise is drawn, and another in each batch.
    assert not torch.equal(first[0]['inputs'][0], first[1]['inputs'][0])


class HoldOut(Hook):
    """Holds the same pictures out of a run that does not ask the network."""

    def before_run(self, runner):
        HeldOut(runner, IMAGES)


def test_measuring_leaves_the_training_alone(run, tmp_path):
    """A run that measures and skips nothing is that of another criterion that
    skips nothing: weights, norms and averages, bit for bit, although stochastic
    depth and augmentation draw."""
    ema = dict(type='EMAHook', momentum=.1)
    states = []
    for name, criterion, hook in (
            ('a', dict(type='ablation', n=0, images=IMAGES), ()),
            ('b', dict(type='fixed', n=0), (HoldOut(), ))):
        runner = runner_of(
            tmp_path / name, criterion, hooks=[ema], max_epochs=1,
            optim_wrapper=dict(accumulative_counts=4),
            **{'hook': dict(criterion=criterion, by_epoch=False),
               'windows': [(1, 2)]})
        for extra in hook:
            runner.register_hook(extra, priority='HIGHEST')
        runner.train()
        states.append(torch.load(tmp_path / name / 'epoch_1.pth'))
        costs = [x['mapped'] for x in
                 read_record(tmp_path / name)['decisions'][0]['layers']]
        assert any(costs)
    for key in ('state_dict', 'ema_state_dict'):
        for name, value in states[0][key].items():
            assert torch.equal(value, states[1][key][name]), name


def test_resumed_it_decides_the_same(run, tmp_path):
    _, _, whole = run
    runner_of(tmp_path, BY_LOSS, windows=[(1, 1), (2, 2)], resume=True,
              load_from=str(whole / 'epoch_1.pth')).train()
    a, b = (torch.load(folder / 'epoch_2.pth')['state_dict']
            for folder in (whole, tmp_path))
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
    ours, theirs = (read_record(folder)['decisions'][1]
                    for folder in (whole, tmp_path))
    assert ours['layers'] == theirs['layers'] and any(
        x['mapped'] for x in ours['layers'])


def test_a_process_that_trains_once_more_holds_out_the_same(run):
    runner, _, _ = run
    before = numbers(runner.train_dataloader.dataset)
    hook = next(h for h in runner.hooks if isinstance(h, ELAPruneHook))
    hook.before_run(runner)
    assert numbers(runner.train_dataloader.dataset) == before


# --- the network on trial ----------------------------------------------------


def network():
    torch.manual_seed(0)
    return ToyClassifier(dict(type='mmdet.ELAResNet', depth=18,
                              base_channels=16, norm_eval=False)).train()


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return dict(inputs=torch.randn(4, 3, 32, 32, generator=generator),
                targets=torch.tensor([0, 1, 1, 0]))


def test_the_network_itself_stays_as_it_is():
    model = network()
    model(**batch(0), mode='loss')['loss'].backward()
    model.backbone.layer1.eval()  # as norm_eval or frozen stages leave it
    seen = []
    model.register_forward_hook(lambda *args: seen.append('model'))

    class Watch:
        def __init__(self):
            self.copies = 0

        def __deepcopy__(self, memo):
            self.copies += 1
            return self

        def see(self, *args):
            seen.append('block')

    watch = Watch()
    model.backbone.layer2[0].register_forward_hook(watch.see)
    model.backbone.observe(lambda *args: seen.append('weights'))
    state = copy.deepcopy(model.state_dict())
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()
                 if p.grad is not None}
    flags = [m.training for m in model.modules()]
    drawn = random.getstate(), np.random.get_state()[1], torch.get_rng_state()
    trial = Trial(model, [batch(1), batch(2)], [4, 4], ['layer1.1', 'layer2.1'])
    costs = [trial.added_loss(['layer1.1']), trial.added_loss(['layer2.1']),
             trial.added_loss(['layer1.1', 'layer2.1'])]
    assert 0 not in costs and len(set(costs)) == 3
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert {n for n, p in model.named_parameters()
            if p.grad is not None} == set(gradients)
    for name, gradient in gradients.items():
        assert torch.equal(model.get_parameter(name).grad, gradient)
    assert [m.training for m in model.modules()] == flags
    assert all(p.requires_grad for p in model.parameters())
    assert drawn[0] == random.getstate()
    assert (drawn[1] == np.random.get_state()[1]).all()
    assert torch.equal(drawn[2], torch.get_rng_state())
    assert set(seen) == {'block'} and not watch.copies


def test_layers_are_skipped_as_the_run_does():
    model = network()
    with torch.no_grad():
        for layer in (1, ):
            model.backbone.layer3.attention[layer].norm.weight.normal_()
    trials = {
        skip: Trial(model, [batch(1)], [4], ['layer3.1'], skip)
        for skip in ('layer', 'retrieval')
    }
    for skip, trial in trials.items():
        other = copy_of(model).eval()
        whole = loss_of(other, batch(1))
        other.backbone.skip_layers(['layer3.0'], skip)
        assert trial.added_loss(['layer3.0']) == pytest.approx(
            loss_of(other, batch(1)) - whole)
    assert (trials['layer'].added_loss(['layer3.0'])
            != trials['retrieval'].added_loss(['layer3.0']))


def test_each_set_of_layers_is_tried_once(monkeypatch):
    calls = []
    monkeypatch.setattr('ela_mm.engine.trial.loss_of',
                        lambda *args: calls.append(args) or 1.)
    trial = Trial(network(), [batch(1)], [4], ['layer1.1', 'layer2.1'])
    assert not calls
    for names in (['layer1.1'], ['layer1.1', 'layer2.1'],
                  ['layer2.1', 'layer1.1'], ['layer1.1']):
        assert trial.added_loss(names) == 0.
    assert len(calls) == 3  # the whole, one, both


def test_pictures_without_labels_are_a_note():
    model = network()
    layers = model.backbone.attention_layers
    measured = {x.name: LayerKL(.1 * i, .01, 8, 4, 0, [])
                for i, x in enumerate(layers) if x.index}
    trial = Trial(model, [dict(inputs=batch(1)['inputs'])], [4], list(measured))
    criterion = build_criterion(BY_LOSS)
    decision = decide(layers, measured, criterion, criterion.config,
                      Moment((1, 1), 1, 4), network=trial)
    assert not decision.skipped
    assert 'has to load annotations' in decision.note


@pytest.mark.parametrize('fails', [False, True])
def test_ranks_try_the_network_in_step(fails):
    """All of them each set of layers once, and rank 0's decision is theirs."""
    model, trials, told = network(), [], []
    measured = {x.name: LayerKL(.1 * i, .01, 8, 4, 0, [])
                for i, x in enumerate(model.backbone.attention_layers) if x.index}
    pictures = dict(inputs=batch(1)['inputs']) if fails else batch(1)

    def trial(*args):
        trials.append(Trial(args[0], [pictures], [4], *args[1:]))
        return trials[-1]

    criterion = build_criterion(dict(BY_LOSS, n=2))
    hook = SimpleNamespace(
        held_out=SimpleNamespace(trial=trial), criterion_of=lambda _: criterion,
        backbone=model.backbone, skip='layer', rules=Rules(), images=IMAGES,
        redundancy='paper', first_kl={}, by_epoch=True)
    runner = SimpleNamespace(model=model, epoch=0, iter=4,
                             logger=logging.getLogger('none'))

    def verdict(main, exchange):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f'{VERDICT}.is_main_process', lambda: main)
            patch.setattr(f'{VERDICT}.from_main_rank', exchange)
            return verdict_of(hook, runner, (1, 1), measured)

    decision = verdict(True, lambda value: told.append(value) or value)
    assert told[-1] is decision and len(decision.skipped) == (0 if fails else 2)
    left = iter(told)
    assert verdict(False, lambda value: next(left)) is decision
    assert next(left, None) is None
    first, second = trials
    assert first._losses.keys() == second._losses.keys()
    assert len(told) == 1 + (1 if fails else len(first._losses))


# --- what can be held out ----------------------------------------------------


def held_out(dataset, images, size=4):
    loader = SimpleNamespace(
        dataset=dataset, num_workers=0, collate_fn=list,
        batch_sampler=SimpleNamespace(batch_size=size))
    return HeldOut(
        SimpleNamespace(train_dataloader=loader, seed=0, train_loop=None),
        images)


class MultiImageMixDataset:
    """As that of the hosts: transforms of its own, and other pictures."""

    def __init__(self, dataset):
        self.dataset, self.num_samples = dataset, len(dataset)
        self.pipeline = [dict(cache=[])]

    def __len__(self):
        return self.num_samples

    def __getitem__(self, index):
        other = len(self.dataset) - 1 - index
        self.pipeline[0]['cache'].append(index)
        return [self.dataset[index], self.dataset[other]]


def served_by(held):
    """Numbers of all pictures that loading the batches has touched."""
    parts = [getattr(part, 'dataset', part) for part in held._parts]
    for part in parts:
        part.served = []
    batches = list(held)
    assert list(map(len, batches)) == held.sizes
    return sorted({n for part in parts for n in part.served})


@pytest.mark.parametrize('wrap', [
    lambda x: x, lambda x: RepeatDataset(x, 3), MultiImageMixDataset,
    lambda x: mmengine_runner._SlicedDataset(x, len(x))],
    ids=['plain', 'repeated', 'mixed', 'sliced'])
def test_sets_in_wrappers(wrap):
    base = ToyPictures(10, serialize=wrap is MultiImageMixDataset)
    dataset = wrap(base)
    length = len(dataset)
    held = held_out(dataset, 4)
    assert served_by(held) == [0, 2, 5, 7] and held.sizes == [4]
    assert numbers(base) == [1, 1, 3, 3, 4, 6, 6, 8, 8, 9]
    assert len(dataset) == length
    # Transforms that keep pictures keep none of these for the training.
    assert base.pipeline.transforms[0].calls == 0
    if isinstance(dataset, MultiImageMixDataset):
        assert not dataset.pipeline[0]['cache']


def test_workers_that_run_already_start_anew():
    """An iteration-based loop starts them before any hook runs."""
    base = ToyPictures(8)
    base.pipeline.transforms = [lambda data: data['number']]
    loader = DataLoader(base, num_workers=1, persistent_workers=True)
    loop = object.__new__(IterBasedTrainLoop)
    loop.dataloader_iterator = _InfiniteDataloaderIterator(loader)
    HeldOut(SimpleNamespace(train_dataloader=loader, train_loop=loop, seed=0), 2)
    assert [int(next(loop.dataloader_iterator)) for _ in range(8)] == [
        1, 1, 2, 3, 5, 5, 6, 7]


def test_every_member_of_a_joined_set_gives_its_share():
    first, second = ToyPictures(6), ToyPictures(12)
    held = held_out(ConcatDataset([first, second]), 6)
    assert [numbers(part) for part in held._parts] == [[0, 3], [0, 3, 6, 9]]
    assert numbers(second)[:5] == [1, 1, 2, 4, 4]


@settings(max_examples=25, deadline=None)
@given(total=st.integers(2, 40), data=st.data())
def test_any_size(total, data):
    images = data.draw(st.integers(1, total // 2))
    base = ToyPictures(total)
    held = held_out(base, images)
    (part, ) = held._parts
    out = numbers(part)
    assert len(set(out)) == images and len(base) == total
    assert set(numbers(base)) == set(range(total)) - set(out)
    gaps = np.diff([*out, total + out[0]])
    assert gaps.max() - gaps.min() <= 1  # evenly spaced
    assert sum(held.sizes) == images


def test_what_cannot_be_held_out(tmp_path):
    with pytest.raises(UsageError, match='images=6 .* of 8: expected 4'):
        held_out(ToyPictures(8), 6)
    with pytest.raises(UsageError, match='all 1 pictures'):
        held_out(ConcatDataset([ToyPictures(1), ToyPictures(9)]), 3)
    runner = toy_runner(tmp_path, hook=dict(criterion=BY_LOSS))
    with pytest.raises(UsageError, match='ToyDataset does not offer'):
        runner.train()


def test_single_steps_do_not_say_what_the_network_costs():
    with pytest.raises(UsageError, match='min_stability=0.5: expected 0'):
        ELAPruneHook([(1, 1)], criterion=BY_LOSS, min_stability=.5)
    with pytest.raises(UsageError, match='min_stability'):
        ELAPruneHook([dict(first=1, last=1, criterion=BY_LOSS)],
                     min_stability=.5)
    # A criterion that no window uses holds nothing out.
    hook = ELAPruneHook(
        [dict(first=1, last=1, criterion=dict(type='EBQM'))], BY_LOSS,
        min_stability=.5)
    assert not hook.images
