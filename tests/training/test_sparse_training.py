"""SparseTrainingHook in a Runner."""
import copy
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS, OPTIMIZERS
from mmengine.runner import Runner, load_checkpoint
from support import ROOT
from support.toy import ToyDataset, toy_config, toy_runner
from support.training import log_of
from torch.nn.utils import prune

import ela_mm.engine.hooks.cka_regularization_hook  # noqa: F401  registers
from ela_mm.engine.hooks.sparse_training_hook import SparseTrainingHook
from ela_mm.errors import UsageError
from ela_mm.sparsity.state import read_state

RIGL = dict(type='RigL', interval=2, fraction=.5, until=1.)
SGD = dict(type='SGD', lr=.05, momentum=.9, nesterov=True, weight_decay=.05)


def sparse_config(folder, optimizer=None, hooks=(), scheme=None, density=.1,
                  sparse=None, **kwargs):
    """The toy with the hook; 2 iterations of 4 pictures an epoch."""
    kwargs.setdefault('max_epochs', 2)
    cfg = toy_config(folder, windows=None, **{
        'model.backbone.depth': 18, 'train_dataloader.batch_size': 4,
        # Else blocks have no gradient at first, and SNIP says so.
        'model.backbone.zero_init_residual': False, **kwargs})
    cfg.custom_hooks = [dict(type='SparseTrainingHook', density=density,
                             **({} if scheme is None else dict(scheme=scheme)),
                             **(sparse or {})), *hooks]
    cfg.optim_wrapper.optimizer = dict(optimizer or SGD)
    return cfg


def hook_of(runner):
    return next(hook for hook in runner.hooks
                if isinstance(hook, SparseTrainingHook))


class Spy(Hook):
    """After each iteration: what every weight and its momentum are."""
    priority = 'LOWEST'

    def __init__(self) -> None:
        self.masks, self.weights, self.batches, self.momenta = [], [], [], []
        self.start = None

    def before_train(self, runner):
        self.start = copy.deepcopy(runner.model)

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        hook = hook_of(runner)
        state = runner.optim_wrapper.optimizer.state
        parameters = {n: runner.model.get_parameter(n) for n in hook.masks}
        self.masks.append({n: m.clone() for n, m in hook.masks.items()})
        self.weights.append({n: p.detach().clone()
                             for n, p in parameters.items()})
        self.momenta.append({
            n: [t.clone() for t in state[p].values()
                if isinstance(t, torch.Tensor) and t.shape == p.shape]
            for n, p in parameters.items()})
        self.batches.append(data_batch)


def train(cfg):
    runner, spy = Runner.from_cfg(cfg), Spy()
    runner.register_hook(spy)
    runner.train()
    return runner, spy


def assert_sparse(spy):
    for masks, weights, momenta in zip(spy.masks, spy.weights, spy.momenta):
        for name, mask in masks.items():
            assert not weights[name][~mask].any(), name
            assert not any(m[~mask].any() for m in momenta[name]), name
            assert weights[name].any()


@OPTIMIZERS.register_module(force=True)
class Restless(torch.optim.SGD):
    """Moves every weight, with a gradient or without."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group['params']:
                    parameter += 1e-3


@pytest.mark.parametrize('scheme', [
    None, dict(type='uniform'), dict(type='SNIP', batches=2), RIGL],
    ids=['ERK', 'uniform', 'SNIP', 'RigL'])
@pytest.mark.parametrize('optimizer', [
    SGD, dict(type='AdamW', lr=1e-3, weight_decay=.1),
    dict(type='Restless', lr=.01)], ids=lambda o: o['type'])
def test_what_does_not_exist_is_0(tmp_path, scheme, optimizer):
    runner, spy = train(sparse_config(tmp_path, optimizer, scheme=scheme))
    assert_sparse(spy)
    exist = sum(int(mask.sum()) for mask in spy.masks[-1].values())
    total = sum(mask.numel() for mask in spy.masks[-1].values())
    assert exist / total == pytest.approx(.1, rel=1e-2)
    assert all(mask.any() for mask in spy.masks[-1].values())
    # What exists has learnt.
    before = dict(spy.start.named_parameters())
    assert any(not torch.equal(before[n], w)
               for n, w in spy.weights[-1].items())
    moved = spy.masks[0].keys() == spy.masks[-1].keys() and any(
        not torch.equal(spy.masks[0][n], m) for n, m in spy.masks[-1].items())
    assert moved == (scheme is RIGL)


def test_trains_what_torchs_own_pruning_trains(tmp_path):
    """By hand with torch.nn.utils.prune, clipped by the norm of gradients."""
    # Which does not reach weights that are used past their module's call, as
    # layer attention uses its own.
    cfg = sparse_config(tmp_path, max_epochs=3,
                        **{'model.backbone.attention': None})
    cfg.optim_wrapper.clip_grad = dict(max_norm=.5)
    runner, spy = train(cfg)
    model = spy.start
    for name, mask in spy.masks[0].items():
        module = model.get_submodule(name[:-len('.weight')])
        prune.custom_from_mask(module, 'weight', mask)
    options = dict(SGD)
    options.pop('type')
    optimizer = torch.optim.SGD(model.parameters(), **options)
    for batch in spy.batches:
        optimizer.zero_grad()
        model(**batch, mode='loss')['loss'].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), .5)
        optimizer.step()
    for name, mask in spy.masks[0].items():
        module = model.get_submodule(name[:-len('.weight')])
        torch.testing.assert_close(
            spy.weights[-1][name], (module.weight_orig * mask).detach(),
            rtol=1e-4, atol=1e-6)


def test_accumulation(tmp_path):
    cfg = sparse_config(tmp_path, scheme=RIGL, max_epochs=4)
    cfg.optim_wrapper.accumulative_counts = 3
    _, spy = train(cfg)
    assert_sparse(spy)


def test_checkpointed_blocks(tmp_path):
    _, plain = train(sparse_config(tmp_path / 'a', scheme=RIGL))
    _, checkpointed = train(sparse_config(
        tmp_path / 'b', scheme=RIGL, **{'model.backbone.with_cp': True}))
    for name, mask in plain.masks[-1].items():
        assert torch.equal(mask, checkpointed.masks[-1][name]), name


# --- checkpoints --------------------------------------------------------------


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize('scheme', [dict(type='ERK'), dict(type='SNIP'), RIGL],
                         ids=lambda s: s['type'])
def test_resumes_bit_for_bit(tmp_path, scheme):
    hooks = [dict(type='EMAHook', momentum=.1)]
    whole, spy = train(sparse_config(tmp_path / 'a', scheme=scheme,
                                     hooks=hooks, max_epochs=4))
    cfg = sparse_config(tmp_path / 'b', scheme=scheme, hooks=hooks,
                        max_epochs=4)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'a' / 'epoch_2.pth')
    resumed, again = train(cfg)
    assert_equal_states(whole.model.state_dict(), resumed.model.state_dict())
    for ours, theirs in zip(spy.masks[4:], again.masks):
        assert_equal_states(ours, theirs)
    last = [torch.load(tmp_path / x / 'epoch_4.pth')
            for x in 'ab']
    assert_equal_states(last[0]['ema_state_dict'], last[1]['ema_state_dict'])
    assert (last[0]['sparse_training_hook']['updates'] ==
            last[1]['sparse_training_hook']['updates'])
    records = [json.loads((tmp_path / x / 'sparse_training.json').read_text())
               for x in 'ab']
    assert records[0] == records[1]


def test_masks_do_not_depend_on_the_run_that_goes_on(tmp_path):
    """They come from the checkpoint, whatever the seed is now."""
    _, spy = train(sparse_config(tmp_path / 'a', max_epochs=1))
    cfg = sparse_config(tmp_path / 'b', max_epochs=2)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'a' / 'epoch_1.pth')
    cfg.randomness = dict(seed=5)
    _, again = train(cfg)
    assert_equal_states(spy.masks[-1], again.masks[-1])


@pytest.mark.parametrize('changed, message', [
    (dict(density=.2), 'another density .*0.1, now 0.2'),
    (dict(scheme=dict(type='uniform')), "another scheme .*'ERK'.*'uniform'"),
    (dict(sparse=dict(leave_out=['head'])), 'another layers'),
], ids=['density', 'scheme', 'layers'])
def test_other_settings_are_refused_on_resume(tmp_path, changed, message):
    train(sparse_config(tmp_path / 'a', max_epochs=1))
    cfg = sparse_config(tmp_path / 'b', **changed)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'a' / 'epoch_1.pth')
    with pytest.raises(UsageError, match=message):
        Runner.from_cfg(cfg).train()


@pytest.fixture(scope='module')
def sparse_checkpoint(tmp_path_factory):
    """With RigL, whose state has updates."""
    folder = tmp_path_factory.mktemp('sparse')
    train(sparse_config(folder, scheme=dict(RIGL, interval=1), max_epochs=1))
    return torch.load(folder / 'epoch_1.pth')


@pytest.mark.parametrize('change', [
    lambda state: 5,
    lambda state: [1],
    lambda state: dict(masks={}),
    lambda state: dict(state, masks=5),
    lambda state: dict(state, masks={n: 1. * m for n, m in
                                     state['masks'].items()}),
    lambda state: dict(state, scheme=torch.ones(2)),
    lambda state: dict(state, density='0.1'),
    lambda state: dict(state, updates=5),
    lambda state: dict(state, updates=[5]),
    lambda state: dict(state, updates=[dict(iter=torch.ones(2))]),
])
def test_a_state_of_wrong_types_ends_the_run_in_one_line(
        sparse_checkpoint, change):
    state = sparse_checkpoint['sparse_training_hook']
    weights, scheme = state['masks'], dict(RIGL, interval=1)
    masks, updates = read_state(state, .1, scheme, weights)
    assert_equal_states(masks, weights)
    assert [update['iter'] for update in updates] == [1]
    with pytest.raises(UsageError, match='cannot be read') as error:
        read_state(change(state), .1, scheme, weights)
    assert '\n' not in str(error.value)


def test_weights_of_a_sparse_run_that_new_masks_take_away(
        sparse_checkpoint, tmp_path):
    """load_from takes the weights alone."""
    path = tmp_path / 'sparse.pth'
    torch.save(sparse_checkpoint, path)
    cfg = sparse_config(tmp_path / 'run', max_epochs=1, sparse=dict(seed=1))
    cfg.load_from = str(path)
    _, spy = train(cfg)
    assert_sparse(spy)
    exist = sum(int(sparse_checkpoint['state_dict'][name].count_nonzero())
                for name in spy.masks[0])
    lost = sum(int(sparse_checkpoint['state_dict'][name][~mask].count_nonzero())
               for name, mask in spy.masks[0].items())
    assert f'{lost} of its {exist} weights become 0' in log_of(
        tmp_path / 'run')


def test_a_dense_run_may_go_on_sparse(tmp_path):
    toy_runner(tmp_path / 'a', windows=None, max_epochs=1, **{
        'model.backbone.depth': 18, 'train_dataloader.batch_size': 4,
        'optim_wrapper.optimizer.type': 'AdamW'}).train()
    cfg = sparse_config(
        tmp_path / 'b', dict(type='AdamW', lr=1e-3, weight_decay=.1))
    cfg.resume, cfg.load_from = True, str(tmp_path / 'a' / 'epoch_1.pth')
    _, spy = train(cfg)
    assert_sparse(spy)
    assert 'is of a run without SparseTrainingHook' in log_of(tmp_path / 'b')


def test_any_checkpoint_holds_the_sparse_network(tmp_path):
    """Under the names of the dense one; an average, too, as masks move."""
    cfg = sparse_config(tmp_path, scheme=RIGL, max_epochs=3, hooks=[
        dict(type='EMAHook', momentum=.1)])
    runner, spy = train(cfg)
    checkpoint = torch.load(tmp_path / 'epoch_3.pth')
    state = checkpoint['state_dict']  # the average, for deployment
    assert state.keys() == MODELS.build(cfg.model).state_dict().keys()
    for name, mask in spy.masks[-1].items():
        assert not state[name][~mask].any(), name
        assert not checkpoint['ema_state_dict'][f'module.{name}'][~mask].any()
        assert not torch.equal(state[name], spy.weights[-1][name])
    network = MODELS.build(cfg.model)
    load_checkpoint(network, str(tmp_path / 'epoch_3.pth'), strict=True)
    zeros = sum(int((network.get_parameter(n) == 0).sum())
                for n in spy.masks[-1])
    assert zeros >= sum(int((~m).sum()) for m in spy.masks[-1].values())


# --- SNIP ---------------------------------------------------------------------


def test_snip_ranks_by_the_runs_first_batches_and_disturbs_nothing(
        tmp_path, monkeypatch):
    get = ToyDataset.__getitem__

    def draw(self, index):  # as random transforms do
        return random.random(), np.random.rand(), torch.rand(1), get(self, index)

    monkeypatch.setattr(ToyDataset, '__getitem__',
                        lambda *args: draw(*args)[-1])
    cfg = sparse_config(tmp_path, scheme=dict(type='SNIP', batches=2),
                        **{'train_dataloader.sampler.shuffle': False})
    runner = Runner.from_cfg(cfg)
    before, after = {}, {}

    class Look(Hook):

        def __init__(self, priority, into) -> None:
            self.priority, self.into = priority, into

        def before_train(self, runner):
            self.into.update(
                model=copy.deepcopy(runner.model),
                random=random.getstate(), numpy=np.random.get_state()[1],
                torch=torch.get_rng_state(),
                grads=[p.grad for p in runner.model.parameters()])

    runner.register_hook(Look('VERY_HIGH', before))
    runner.register_hook(Look('LOWEST', after))
    runner.train()
    assert before['random'] == after['random']
    assert (before['numpy'] == after['numpy']).all()
    assert torch.equal(before['torch'], after['torch'])
    assert after['grads'] == [None] * len(after['grads'])
    assert_equal_states(dict(before['model'].named_buffers()),
                        dict(after['model'].named_buffers()))
    # By hand: both batches of the data set, in order.
    model = before['model'].train()
    images = runner.train_dataloader.dataset.images
    for part in (slice(0, 4), slice(4, 8)):
        model(images[part], torch.arange(8)[part] % 2, mode='loss')[
            'loss'].backward()
    masks = hook_of(runner).masks
    scores = {n: (p * p.grad).abs().detach()
              for n, p in model.named_parameters() if n in masks}
    every = torch.cat([s.flatten() for s in scores.values()])
    bound = every.sort(descending=True).values[round(.1 * len(every)) - 1]
    for name, mask in masks.items():
        expected = scores[name] >= bound
        expected.view(-1)[scores[name].argmax()] = True
        assert torch.equal(mask, expected), name


def test_snip_does_not_remove_what_zero_norms_hide(tmp_path):
    cfg = sparse_config(tmp_path, scheme=dict(type='SNIP'),
                        **{'model.backbone.zero_init_residual': True})
    with pytest.raises(UsageError, match='set zero_init_residual=False'):
        Runner.from_cfg(cfg).train()


# --- RigL ---------------------------------------------------------------------


def test_rigl_moves_masks_by_the_whole_gradient(tmp_path):
    cfg = sparse_config(tmp_path, dict(type='SGD', lr=.01), scheme=RIGL,
                        max_epochs=3)
    runner, spy = Runner.from_cfg(cfg), Spy()
    runner.register_hook(spy)
    models = []

    class Before(Hook):

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            models.append(copy.deepcopy(runner.model))

    runner.register_hook(Before())
    runner.train()
    assert [u['iter'] for u in hook_of(runner).updates] == [2, 4]
    assert all(u['exchanged'] for u in hook_of(runner).updates)
    # The first update, by hand: f(1/3) = .5 / 2 (1 + cos(pi / 3)).
    model = models[1]
    model(**spy.batches[1], mode='loss')['loss'].backward()
    for name, old in spy.masks[0].items():
        parameter = model.get_parameter(name)
        # The optimizer's step comes first, on what exists.
        weight = parameter.detach() - .01 * parameter.grad * old
        count = int(old.sum())
        exchanged = min(int(.375 * count), old.numel() - count)
        order = torch.where(old, weight.abs(), -1.).flatten().argsort(
            descending=True)
        kept = torch.zeros_like(old).flatten()
        kept[order[:count - exchanged]] = True
        order = torch.where(kept, -1., parameter.grad.abs().flatten()).argsort(
            descending=True)
        expected = kept.clone()
        expected[order[:exchanged]] = True
        agree = (spy.masks[1][name].flatten() == expected).float().mean()
        assert agree > .999, name  # but for ties of tiny gradients
        new = spy.masks[1][name] & ~old
        assert not spy.weights[1][name][new].any(), 'grown at 0'
    for i in (2, 4):  # between updates they stay
        for name, mask in spy.masks[i].items():
            assert torch.equal(mask, spy.masks[i - 1][name])


def test_rigl_waits_out_gradients_that_are_not_finite(tmp_path):
    runner, spy = Runner.from_cfg(sparse_config(tmp_path, scheme=RIGL)), Spy()

    class Overflow(Hook):

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 1:
                runner.model.head.bias.data.fill_(float('nan'))

    runner.register_hook(Overflow())
    runner.register_hook(spy)
    runner.train()
    assert_equal_states(spy.masks[0], spy.masks[1])
    assert ('masks stay as they are in iteration 2: gradients are not finite'
            in log_of(tmp_path))


# --- what is said and written -------------------------------------------------


def test_log_and_record(tmp_path):
    runner, spy = train(sparse_config(
        tmp_path, sparse=dict(leave_out=['head']), scheme=dict(type='ERK'),
        **{'model.backbone.frozen_stages': 1}))
    record = json.loads((tmp_path / 'sparse_training.json').read_text())
    masks = spy.masks[-1]
    assert record['scheme'] == dict(type='ERK') and record['density'] == .1
    assert [layer['name'] for layer in record['layers']] == list(masks)
    for layer in record['layers']:
        mask = masks[layer['name']]
        assert layer['weights'] == mask.numel()
        assert layer['exist'] == int(mask.sum())
        assert layer['density'] == layer['exist'] / layer['weights']
    assert record['density_reached'] == pytest.approx(.1, rel=1e-2)
    assert record['dense']['head.weight'] == 'left out'
    assert record['dense']['backbone.layer1.0.conv1.weight'] == 'frozen'
    assert record['dense']['backbone.layer2.attention.0.query.weight'] == (
        'one channel')
    assert not [n for n in masks if 'layer1' in n or 'head' in n]
    log = log_of(tmp_path)
    dense = [x for x in record['layers'] if x['density'] == 1]
    assert f'{len(dense)} of them are dense, as they cannot have fewer' in log
    assert '1 layers are not masked (left out)' in log
    for layer in record['layers']:
        line = next(x for x in log.splitlines() if len(x.split()) == 4
                    and x.startswith(layer['name'] + ' '))
        assert line.split()[1:] == [str(layer['weights']), str(layer['exist']),
                                    f'{layer["density"]:.4f}']


def test_nothing_stays_in_the_model(tmp_path):
    runner, _ = train(sparse_config(tmp_path / 'a'))
    assert not any(p._backward_hooks for p in runner.model.parameters())

    class Raise(Hook):

        def after_train_iter(self, runner, batch_idx, data_batch=None,
                             outputs=None):
            assert any(p._backward_hooks for p in runner.model.parameters())
            raise RuntimeError('a fault for the test')

    runner = Runner.from_cfg(sparse_config(tmp_path / 'b'))
    runner.register_hook(Raise())
    with pytest.raises(RuntimeError, match='a fault for the test'):
        runner.train()
    assert not any(p._backward_hooks for p in runner.model.parameters())


def test_a_record_that_cannot_be_written_ends_no_training(tmp_path):
    cfg = sparse_config(tmp_path)
    (tmp_path / 'sparse_training.json').mkdir()
    train(cfg)
    assert 'the record of sparse training was not written' in log_of(tmp_path)


# --- bad input ----------------------------------------------------------------


@pytest.mark.parametrize('options, message', [
    (dict(density=0.), 'density=0.0'),
    (dict(density=.1, scheme=dict(type='GraSP')), "'GraSP'"),
])
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        SparseTrainingHook(**options)


def test_two_hooks_are_refused(tmp_path):
    cfg = sparse_config(tmp_path, hooks=[
        dict(type='SparseTrainingHook', density=.5)])
    with pytest.raises(UsageError, match='two SparseTrainingHooks'):
        Runner.from_cfg(cfg).train()


def test_a_place_after_the_checkpoint_is_refused(tmp_path):
    cfg = sparse_config(tmp_path, sparse=dict(priority='LOWEST'))
    with pytest.raises(UsageError, match='priority LOWEST, .* weights are 0'):
        Runner.from_cfg(cfg).train()


def test_a_model_with_nothing_to_mask_is_refused(tmp_path):
    cfg = sparse_config(tmp_path, sparse=dict(leave_out=['backbone', 'head']))
    with pytest.raises(UsageError, match='no convolution or linear layer'):
        Runner.from_cfg(cfg).train()


def test_sharding_wrappers_are_refused(tmp_path):
    from mmengine.registry import MODEL_WRAPPERS

    @MODEL_WRAPPERS.register_module(force=True)
    class Shards(torch.nn.Module):

        def __init__(self, module) -> None:
            super().__init__()
            self.module = module

    runner = Runner.from_cfg(sparse_config(tmp_path))
    assert runner.train_loop  # built
    runner.model = Shards(runner.model)
    with pytest.raises(UsageError, match='cannot mask what Shards shards'):
        hook_of(runner).before_run(runner)


# --- beside the others --------------------------------------------------------


@pytest.mark.parametrize('scheme', [dict(type='ERK'), RIGL],
                         ids=lambda s: s['type'])
def test_with_ela_and_cka_in_one_run(tmp_path, scheme):
    hooks = [dict(type='SparseTrainingHook', density=.2, scheme=scheme),
             dict(type='CKARegularizationHook', weight=1e-3, interval=1),
             dict(type='EMAHook', momentum=.1)]

    def config(name):
        return toy_config(tmp_path / name, max_epochs=4, hooks=hooks,
                          windows=[(1, 1), (3, 3)],
                          **{'train_dataloader.batch_size': 4})

    runner, spy = train(config('a'))
    assert_sparse(spy)
    active = [layer.active for layer in runner.model.backbone.attention_layers]
    assert not all(active)
    skipped = [i for i, x in enumerate(active) if not x]
    assert skipped
    assert all('loss_cka' in line for line in log_of(tmp_path / 'a').splitlines()
               if 'Epoch(train)' in line)
    cfg = config('b')
    cfg.resume, cfg.load_from = True, str(tmp_path / 'a' / 'epoch_2.pth')
    resumed, _ = train(cfg)
    assert_equal_states(runner.model.state_dict(), resumed.model.state_dict())


@pytest.mark.slow
def test_compiled_with_cka(tmp_path, caplog):
    """The same run, compiled once for steps with and once for those without."""
    outputs = []
    for name in ('plain', 'compiled'):
        cfg = sparse_config(
            tmp_path / name, scheme=RIGL, max_epochs=3, hooks=[
                dict(type='CKARegularizationHook', weight=.1, interval=2)],
            **{'model.backbone.attention': None})
        if name == 'compiled':
            cfg.compile = dict(backend='eager')
        runner, spy = train(cfg)
        assert_sparse(spy)
        outputs.append(runner.message_hub.get_scalar('train/loss_cka').data[0])
    assert outputs[0] == pytest.approx(outputs[1], rel=1e-5)
    assert 'recompile_limit' not in caplog.text


def test_two_ranks_share_masks(tmp_path):
    """RigL's gradients differ between them, and the start as well."""
    if torch.__version__ < '2.1':
        pytest.skip('MMDistributedDataParallel on CPUs')
    cfg = sparse_config(
        tmp_path, scheme=RIGL, max_epochs=2, hooks=[
            dict(type='CKARegularizationHook', weight=.1, interval=1),
            dict(type='SparseWitness')],
        **{'train_dataloader.dataset.size': 16})
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', device_ids=None)
    cfg.randomness = dict(seed=0, diff_rank_seed=True)
    cfg.custom_imports = dict(imports=['support.toy', 'support.sparse_toy'])
    cfg.dump(tmp_path / 'toy.py')
    environment = {
        **os.environ, 'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join(filter(None, [
            str(ROOT / 'tests'), os.environ.get('PYTHONPATH')]))}
    process = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc_per_node=2', str(ROOT / 'tools' / 'train.py'),
         str(tmp_path / 'toy.py'), '--launcher', 'pytorch'],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr[-3000:]
    first, second = (torch.load(tmp_path / f'rank{i}.pth') for i in (0, 1))
    for key in ('start', 'masks'):
        assert_equal_states(first[key], second[key])
    assert first['updates'] == second['updates'] != []
    assert any(not torch.equal(first['start'][n], m)
               for n, m in first['masks'].items())
    assert first['losses'] != second['losses'], 'each its own samples'
    for run in (first, second):
        for name, mask in run['masks'].items():
            assert not run['state'][name][~mask].any()
    for name, value in first['state'].items():
        if 'running_' not in name:
            assert torch.equal(value, second['state'][name]), name
