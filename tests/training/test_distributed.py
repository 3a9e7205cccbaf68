"""Training on several processes with gloo, as torchrun starts them.

Each process runs ``tools/train.py --launcher pytorch`` on its own share of the
data; ``ddp_toy.py`` holds what the tests add to the toy.
"""
import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.model import convert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import FlexibleRunner, Runner
from mmengine.utils import digit_version
from support import ROOT
from support.toy import toy_config, toy_runner, validation
from support.training import log_of
from tensorboard.backend.event_processing import event_accumulator
from torch.nn import BatchNorm2d, SyncBatchNorm

from ela_mm.apis.launch import set_up_distributed
from ela_mm.engine.journal.record import read_record
from ela_mm.errors import UsageError
from ela_mm.hosts.mmdet import ELAResNet


def needs_ddp_on_cpus():
    """torch 2.0's gloo does not know bool, which the masks are."""
    if digit_version(torch.__version__) < digit_version('2.1'):
        pytest.skip('gloo broadcasts no bool before torch 2.1')


def start(folder, ranks, *arguments, hooks=(), **overrides):
    """Train the toy for 4 epochs, as a user does; returns the process.

    ``ranks`` is their number, or all options of torchrun.
    """
    needs_ddp_on_cpus()
    folder.mkdir(exist_ok=True)
    if isinstance(ranks, int):
        ranks = ('--standalone', f'--nproc_per_node={ranks}')
    cfg = toy_config(
        folder, max_epochs=4, windows=[(1, 2), (3, 3), (4, 4)],
        hooks=[dict(type='Witness'), *hooks],
        **{'train_dataloader.dataset.size': 12}, **overrides)
    cfg.custom_imports = dict(imports=['support.toy', 'support.ddp_toy'])
    cfg.dump(folder / 'toy.py')
    environment = {
        **os.environ, 'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join(
            filter(None, [str(ROOT / 'tests'), os.environ.get('PYTHONPATH')]))
    }
    return subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', *ranks,
         str(ROOT / 'tools' / 'train.py'), str(folder / 'toy.py'),
         '--launcher', 'pytorch', *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=240)


def launch(folder, ranks, *arguments, **kwargs):
    """Train to the end; returns what every rank has written."""
    process = start(folder, ranks, *arguments, **kwargs)
    assert process.returncode == 0, process.stderr[-3000:]
    return [torch.load(folder / f'rank{rank}.pth') for rank in range(ranks)]


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    for name in a:
        # Norm statistics are each rank's own, as mmengine leaves them.
        if 'running_' not in name:
            assert torch.equal(a[name], b[name]), name


def what_was_decided(run):
    return [(d['layers'], d['skipped'], d['samples'], d['note'])
            for d in run['decisions']]


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ddp') / 'two'
    return folder, launch(folder, 2, visualizer=dict(
        type='Visualizer', vis_backends=[dict(type='TensorboardVisBackend')]))


@pytest.fixture(scope='module')
def three(two, tmp_path_factory):
    """Resumed on 3 ranks after the first pruning; one of them would decide
    otherwise, and one has NaN at the end."""
    folder = tmp_path_factory.mktemp('ddp') / 'three'
    return launch(folder, 3, '--resume', two[0] / 'epoch_2.pth',
                  hooks=[dict(type='Fault', kind='verdict', rank=2, at=0),
                         dict(type='Fault', kind='nan', rank=1, at=8)],
                  env_cfg=dict(dist_cfg=dict(timeout=60)))


def test_ranks_decide_and_train_alike(two, three):
    for first, *others in (two[1], three):
        for other in others:
            assert_equal_states(first['state'], other['state'])
            assert what_was_decided(first) == what_was_decided(other)
        decision = first['decisions'][0]
        assert decision['skipped']
        active = first['state']['backbone.active']
        assert active.sum() == first['decisions'][-1]['active'] < 16


def test_all_ranks_data_count(two, three):
    """Each rank sees its share; the statistics are of all shares."""
    assert [d['samples'] for d in two[1][0]['decisions']] == [24, 12, 12]
    assert [d['samples'] for d in three[0]['decisions']][:2] == [24, 12]


def test_buckets_hold_no_skipped_parameter(two, three):
    for run in (*two[1], *three):
        assert run['in_buckets'] == run['trainable'] == run['momenta']
        assert run['find_unused'] is False


def test_gradients_are_those_of_one_process(two, three):
    """On the union of the batches, after pruning."""
    for run in (*two[1], *three):
        assert run['gradient_error'] < 1e-4


def test_what_is_exchanged(two):
    """As docs/distributed.md says, outside of DDP's own buckets."""
    calls = json.loads(two[1][0]['calls'])
    sums = [['all_reduce', None], ['broadcast', None]]
    weights = ['extremes', None]  # whether the ranks have drifted apart
    decision = [weights, *sums, ['broadcast_object_list', None]]
    expected = [['all_gather_object', None]]  # before training
    for epoch in (1, 2, 3, 4):
        ends = epoch in (2, 3, 4)  # the last of a window
        # Of the run's first step; of the window so far, which is drawn.
        small = [] if ends else 2 * sums
        expected += [['epoch', epoch], *small, *(decision if ends else []),
                     weights, *sums]
    expected.append(['end', None])
    assert [[name, count if name == 'epoch' else None]
            for name, count in calls] == expected
    sizes = [size for name, size in calls if name in ('all_reduce',
                                                      'broadcast')]
    # Per active layer 9 numbers, and of 1,000 iterations two values and the
    # batch size.
    assert sizes[:4] == 4 * [8 * 9 * 16]
    assert sizes[4] == 8 * 3009 * 16
    left = two[1][0]['decisions'][-1]['active']
    assert sizes[-1] == 8 * 3009 * left


def test_a_curve_is_of_all_ranks(two):
    """After the first of two epochs, of 3 steps each."""
    (events, ) = two[0].glob('**/events.out.tfevents.*')
    reader = event_accumulator.EventAccumulator(str(events.parent))
    reader.Reload()
    decision = two[1][0]['decisions'][0]
    for layer in decision['layers']:
        if layer['kl'] is not None:
            points = reader.Scalars(f'ela/kl/{layer["name"]}')[:2]
            assert [point.step for point in points] == [3, 6]
            assert [point.value for point in points] == pytest.approx(
                [sum(layer['kl_iterations'][:3]) / 3, layer['kl']], rel=1e-4)


@pytest.mark.slow
def test_rank_0_asks_the_network(tmp_path):
    """Norms of the ranks differ: each would measure another loss.

    No rank can compute it alone: ranks exchange numbers for it.
    """
    runs = launch(
        tmp_path / 'asks', 2,
        hook=dict(criterion=dict(type='ablation', n=2, images=4)),
        env_cfg=dict(dist_cfg=dict(timeout=60)),
        **{'model.type': 'ReducingClassifier',
           'train_dataloader.dataset': dict(
               type='ToyPictures', size=16, _delete_=True)})
    first, second = runs
    assert_equal_states(first['state'], second['state'])
    assert what_was_decided(first) == what_was_decided(second)
    assert [len(d['skipped']) for d in first['decisions']] == [2, 2, 2]
    assert all(run['gradient_error'] < 1e-4 for run in runs)
    # The same again, from within the first window.
    resumed = launch(
        tmp_path / 'again', 2, '--resume', tmp_path / 'asks' / 'epoch_1.pth',
        hook=dict(criterion=dict(type='ablation', n=2, images=4)),
        **{'model.type': 'ReducingClassifier',
           'train_dataloader.dataset': dict(
               type='ToyPictures', size=16, _delete_=True)})
    assert_equal_states(resumed[0]['state'], first['state'])
    assert what_was_decided(resumed[1]) == what_was_decided(first)


def test_resume_inside_a_window(two, tmp_path):
    """On as many ranks: as if it had never been interrupted."""
    folder, whole = two
    resumed = launch(tmp_path / 'again', 2, '--resume', folder / 'epoch_1.pth')
    for ours, theirs in zip(resumed, whole):
        assert_equal_states(ours['state'], theirs['state'])
        assert what_was_decided(ours) == what_was_decided(theirs)
        assert ours['in_buckets'] == theirs['in_buckets']


def test_resume_on_more_ranks(two, three):
    """The mask and the decision so far are there before the model is wrapped;
    the network goes on being pruned."""
    assert what_was_decided(three[2])[0] == what_was_decided(two[1][0])[0]
    assert three[0]['decisions'][1]['window'] == [3, 3]


def test_resume_on_one_process(two, tmp_path):
    """Inside a window that two ranks began."""
    cfg = toy_config(tmp_path, max_epochs=2, windows=[(1, 2)],
                     **{'train_dataloader.dataset.size': 12})
    cfg.resume, cfg.load_from = True, str(two[0] / 'epoch_1.pth')
    Runner.from_cfg(cfg).train()
    decision, = read_record(tmp_path)['decisions']
    assert decision['samples'] == 12 + 12
    assert decision['skipped']


def test_nan_on_one_rank_prunes_nothing_on_any(three):
    for run in three:
        last = run['decisions'][-1]
        assert last['window'] == [4, 4]
        assert not last['skipped']
        assert last['note'].startswith('KL divergences are not finite: layer4')
        assert all(torch.isfinite(v).all() for v in run['state'].values())


def test_steps_are_counted_beside_every_ranks_iterations(two):
    for decision in two[1][0]['decisions']:
        steps = {len(x['kl_iterations']) for x in decision['layers']
                 if x['kl'] is not None}
        assert steps == {decision['steps']}
        assert decision['iterations'] == 2 * decision['steps']
        assert 'step_samples' not in decision  # equal batches


@pytest.mark.slow
def test_a_backbone_that_is_released_later_learns_alike(tmp_path):
    """Frozen by a hook while a window ends, then all of it released."""
    runs = launch(tmp_path, 2, hooks=[dict(type='FreezeAndWatch')],
                  find_unused_parameters=True)
    first, second = runs
    assert first['decisions'][0]['skipped']
    assert_equal_states(first['state'], second['state'])
    assert what_was_decided(first) == what_was_decided(second)
    start, end = (torch.load(tmp_path / f'epoch_{n}.pth')['state_dict']
                  for n in (2, 4))
    skipped = [name.split('.') for d in first['decisions']
               for name in d['skipped']]
    for name in first['state']:
        if 'running_' in name or 'num_batches' in name or any(
                f'{stage}.attention.{i}.' in name for stage, i in skipped):
            continue
        if name.startswith('backbone.layer') and name.endswith('weight'):
            assert not torch.equal(start[name], end[name]), name
    for run in runs:
        assert run['trainable'] == run['in_buckets'] < len(first['state'])
        # Every step, also after the wrapper was replaced, and the witness's.
        assert run['watched'] == dict(forward=12, gradients=12 + 1)


def test_ranks_that_drift_apart_end_the_run(tmp_path):
    process = start(tmp_path, 2, hooks=[
        dict(type='Fault', kind='drift', rank=1, at=1)])
    assert process.returncode != 0
    assert ('error: the ranks no longer train one network: head.bias differs '
            'by 0.001' in process.stderr)
    assert not (tmp_path / 'epoch_1.pth').exists()


def with_best_checkpoints_between() -> dict:
    return {
        'train_cfg': ConfigDict(
            _delete_=True, type='IterBasedTrainLoop', max_iters=10,
            val_interval=3),
        'train_dataloader.sampler.type': 'InfiniteSampler',
        'custom_hooks.0.by_epoch': False,
        'custom_hooks.0.windows': [(2, 8)],
        'default_hooks.checkpoint': dict(
            type='CheckpointHook', by_epoch=False, interval=4,
            save_best='score', rule='greater'),
        **{k: v for k, v in validation().items() if k.startswith('val_')},
        'val_evaluator': dict(type='Rising'),
    }


def test_every_way_to_a_checkpoint_keeps_all_ranks_samples(tmp_path):
    """A best one between two regular ones is the last; killed, resumed."""
    process = start(
        tmp_path, 2, hooks=[
            dict(type='SaveBetween', at=5),
            dict(type='Fault', kind='sigkill', rank=1, at=7)
        ], **with_best_checkpoints_between())
    assert process.returncode != 0
    log = log_of(tmp_path)
    assert log.count('at a point where the ranks do not meet') == 1
    assert '(iteration 5)' in log
    sums = torch.load(tmp_path / 'iter_6.pth')['ela_prune_hook']['statistics']
    assert {layer['samples'] for layer in sums.values()} == {2 * 2 * 5}
    first, second = launch(tmp_path, 2, '--resume',
                           **with_best_checkpoints_between())
    (decision, ) = first['decisions']
    assert decision['samples'] == 2 * 2 * 7
    assert decision['steps'] == 7
    assert_equal_states(first['state'], second['state'])


def assert_ends_with_error(process, began, folder):
    assert process.returncode != 0
    assert time.monotonic() - began < 120
    assert not list(folder.glob('rank*.pth')), 'a rank finished'


def test_a_killed_rank_ends_the_run(tmp_path):
    began = time.monotonic()
    process = start(tmp_path, 2, hooks=[
        dict(type='Fault', kind='sigkill', rank=1, at=2)])
    assert_ends_with_error(process, began, tmp_path)
    assert f'exitcode  : -{signal.SIGKILL.value}' in process.stderr


@pytest.mark.slow
def test_an_exception_on_one_rank_ends_the_run(tmp_path):
    began = time.monotonic()
    process = start(tmp_path, 2, hooks=[
        dict(type='Fault', kind='exception', rank=1, at=2)])
    assert_ends_with_error(process, began, tmp_path)
    assert 'a fault for the test' in process.stderr


@pytest.mark.slow
def test_a_hanging_rank_ends_the_run(tmp_path):
    """After env_cfg.dist_cfg.timeout; mmengine's default is 30 minutes."""
    began = time.monotonic()
    process = start(
        tmp_path, 2,
        hooks=[dict(type='Fault', kind='hang', rank=1, at=2)],
        env_cfg=dict(dist_cfg=dict(timeout=10)))
    assert_ends_with_error(process, began, tmp_path)
    assert 'Timed out' in process.stderr or 'timeout' in process.stderr


@pytest.mark.slow
def test_two_machines(two, tmp_path):
    """An agent each, as docs/distributed.md starts them: the same result."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    agents = [('--nnodes=2', f'--node_rank={machine}', '--nproc_per_node=1',
               '--master_addr=127.0.0.1', f'--master_port={port}')
              for machine in (0, 1)]
    with ThreadPoolExecutor() as pool:
        finished = [pool.submit(start, tmp_path, agent) for agent in agents]
    for process in finished:
        assert process.result().returncode == 0, process.result().stderr
    for rank, whole in enumerate(two[1]):
        run = torch.load(tmp_path / f'rank{rank}.pth')
        assert_equal_states(run['state'], whole['state'])
        assert what_was_decided(run) == what_was_decided(whole)


@pytest.mark.slow
@pytest.mark.parametrize('difference, message', [
    ({'train_dataloader.sampler.type': 'UnevenSampler'},
     'batches per epoch: 3 on rank 0, 2 on rank 1'),
    (dict(hooks=[dict(type='Fault', kind='mask', rank=1, at=0)]),
     "active layers: ['layer1.0', 'layer1.1', 'layer1.2'"),
], ids=['batches', 'mask'])
def test_ranks_that_differ_are_refused(tmp_path, difference, message):
    """Before training, where they would hang later."""
    began = time.monotonic()
    process = start(
        tmp_path, 2, env_cfg=dict(dist_cfg=dict(timeout=30)), **difference)
    assert_ends_with_error(process, began, tmp_path)
    assert f'error: the ranks differ in {message}' in process.stderr


# --- one process that is a group of its own -----------------------------------


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A process group of one, and how to make a config of it."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    dist.init_process_group(
        'gloo', store=dist.FileStore(str(tmp_path / 'store'), 1), rank=0,
        world_size=1)
    yield dict(
        launcher='pytorch',
        model_wrapper_cfg=dict(
            type='MMDistributedDataParallel', device_ids=None))
    dist.destroy_process_group()


def test_sync_bn_covers_attention_and_survives_pruning():
    """mmengine converts when it wraps, and again after a pruning.

    DDP takes SyncBatchNorm on GPUs alone: here the conversion, and evaluation.
    """
    torch.manual_seed(0)
    backbone = ELAResNet(34, base_channels=16)
    backbone(torch.randn(4, 3, 32, 32))  # norms that differ from new ones
    trained = {id(p) for p in backbone.parameters()}
    plain = copy.deepcopy(backbone)
    layers = [layer.name for layer in backbone.attention_layers]
    for skipped in (layers[1:2], layers[1:4]):
        backbone = convert_sync_batchnorm(backbone, 'torch')
        for name, norm in backbone.named_modules():
            if name.endswith('.norm'):
                assert type(norm) is SyncBatchNorm, name
        for network in (backbone, plain):
            network.skip_layers(skipped)
        # What is trained is still what the optimizer holds.
        assert {id(p) for p in backbone.parameters()} == trained
        for layer in backbone.attention_layers:
            stage, index = layer.name.split('.')
            norm = getattr(backbone, stage).attention[int(index)].norm
            assert norm.weight.requires_grad is layer.active
    assert sum(type(m) is SyncBatchNorm for m in backbone.modules()) == sum(
        type(m) is BatchNorm2d for m in plain.modules())
    backbone.eval()
    plain.eval()
    images = torch.randn(2, 3, 32, 32)
    for ours, theirs in zip(backbone(images), plain(images)):
        assert torch.equal(ours, theirs)


def test_sync_bn_is_refused_on_cpus(monkeypatch):
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(UsageError, match="sync_bn='torch' needs GPUs"):
        set_up_distributed(Config(dict(launcher='pytorch', sync_bn='torch')))


def test_timeout_of_the_config_holds(monkeypatch):
    monkeypatch.setenv('RANK', '0')
    given = {}
    monkeypatch.setattr(dist, 'init_process_group',
                        lambda *args, **kwargs: given.update(kwargs))
    cfg = Config(dict(launcher='pytorch',
                      env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=7))))
    set_up_distributed(cfg)
    assert given['timeout'].total_seconds() == 7


@MODEL_WRAPPERS.register_module(force=True)
class Sharded(torch.nn.Module):
    """Stands for MMFullyShardedDataParallel, which refuses CPUs itself."""

    def __init__(self, module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize('wrapper', [
    dict(type='Sharded'),
    dict(type='MMSeparateDistributedDataParallel', device_ids=None)])
def test_other_wrappers_are_refused(wrapper, group, tmp_path):
    if wrapper['type'] != 'Sharded':
        needs_ddp_on_cpus()
    group['model_wrapper_cfg'] = wrapper
    runner = Runner.from_cfg(toy_config(tmp_path / 'run', **group))
    with pytest.raises(UsageError,
                       match=f'cannot prune under {wrapper["type"]}'):
        runner.train()
    assert runner.iter == 0


def flexible_config(folder, strategy, **overrides):
    cfg = toy_config(folder, windows=[(1, 1), (2, 2)], **overrides)
    cfg.strategy = dict(type=strategy)
    cfg.env_cfg = dict(dist_cfg=dict(backend='gloo'))
    return cfg


def test_flexible_runner_on_one_device(tmp_path):
    """Prunes and resumes as Runner does."""
    runner = FlexibleRunner.from_cfg(
        flexible_config(tmp_path / 'a', 'SingleDeviceStrategy'))
    runner.train()
    decisions = read_record(tmp_path / 'a')['decisions']
    assert decisions[0]['skipped']
    same = toy_runner(tmp_path / 'b', windows=[(1, 1), (2, 2)])
    same.train()
    assert [d['layers'] for d in decisions] == [
        d['layers'] for d in read_record(tmp_path / 'b')['decisions']]
    cfg = flexible_config(tmp_path / 'c', 'SingleDeviceStrategy')
    cfg.resume, cfg.load_from = True, str(tmp_path / 'a' / 'epoch_1.pth')
    resumed = FlexibleRunner.from_cfg(cfg)
    resumed.train()
    for ours in (same, resumed):
        assert_equal_states(ours.model.state_dict(),
                            runner.model.state_dict())


@pytest.mark.parametrize('strategy', ['DDPStrategy', 'FSDPStrategy'])
def test_other_strategies_are_refused(strategy, group, tmp_path, monkeypatch):
    cfg = flexible_config(tmp_path / 'run', strategy, launcher='pytorch')
    runner = FlexibleRunner.from_cfg(cfg)
    # Sharding needs a GPU: all of the strategy but that.
    monkeypatch.setattr(type(runner.strategy), '_wrap_model',
                        lambda self, model: model)
    with pytest.raises(UsageError, match=f'cannot prune under {strategy}'):
        runner.train()
    assert runner.iter == 0


def buckets_of(runner):
    return {p for bucket in runner.model.reducer._get_zeros_like_grad_buckets()
            for p in bucket.parameters()}


def trainable(runner):
    return {p for p in runner.model.module.parameters() if p.requires_grad}


def skipped_parameters(runner):
    """By name, of layers whose attention is skipped whole."""
    backbone = runner.model.module.backbone
    return {p for layer in backbone.attention_layers if not layer.active
            for p in layer.module.parameters()}


class Release(Hook):
    """Sets what it likes to learning, right before a step or training."""
    priority = 'VERY_HIGH'

    def __init__(self, part, at):
        self.part, self.at = part, at

    def before_train(self, runner):
        if self.at is None:
            self.release(runner)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            self.release(runner)

    def release(self, runner):
        backbone = runner.model.module.backbone
        backbone.frozen_stages = -1  # else mmdet freezes them again
        backbone.get_submodule(self.part).requires_grad_(True)


def ddp_runner(folder, group, **overrides):
    needs_ddp_on_cpus()
    return Runner.from_cfg(toy_config(folder / 'run', **group, **overrides))


def test_frozen_stages_stay_out_of_the_buckets(group, tmp_path):
    """Wrapped anew, DDP would wait for their gradients for good."""
    runner = ddp_runner(tmp_path, group, max_epochs=2,
                        **{'model.backbone.frozen_stages': 1})
    runner.train()
    assert read_record(tmp_path / 'run')['decisions'][0]['skipped']
    assert buckets_of(runner) == trainable(runner)
    assert not runner.model.module.backbone.conv1.weight.requires_grad


@pytest.mark.parametrize('at', [4, 6])
def test_skipped_layers_stay_out_whatever_others_set(group, tmp_path, at):
    """At the start of an epoch, and within it, before a step."""
    runner = ddp_runner(tmp_path, group, max_epochs=2)
    runner.register_hook(Release('', at))
    runner.train()
    skipped = skipped_parameters(runner)
    assert skipped and not skipped & buckets_of(runner)
    assert buckets_of(runner) == trainable(runner)
    assert all(p.grad is None for p in skipped)
    assert 'it is wrapped anew with them' not in log_of(tmp_path / 'run')


def test_a_sharded_optimizer_forgets_skipped_layers(group, tmp_path):
    needs_ddp_on_cpus()
    cfg = toy_config(tmp_path / 'run', max_epochs=1, **group)
    cfg.train_dataloader.dataset.size = 4
    cfg.optim_wrapper.optimizer = dict(
        type='ZeroRedundancyOptimizer', optimizer_type='AdamW', lr=1e-3)
    runner = Runner.from_cfg(cfg)
    runner.train()
    state = runner.optim_wrapper.optimizer.optim.state
    assert set(state) == trainable(runner)


def test_layers_that_were_skipped_before_stay_out(group, tmp_path):
    toy_runner(tmp_path / 'first', max_epochs=1).train()
    runner = ddp_runner(tmp_path, group, max_epochs=1,
                        load_from=str(tmp_path / 'first' / 'epoch_1.pth'),
                        hook=dict(criterion=dict(type='threshold', t=0.)))
    runner.register_hook(Release('', None))
    runner.train()
    skipped = skipped_parameters(runner)
    assert skipped and buckets_of(runner) == trainable(runner)
    assert not skipped & trainable(runner)


def test_what_is_released_later_comes_into_the_buckets(group, tmp_path):
    """DDP was made while it was frozen."""
    runner = ddp_runner(tmp_path, group, max_epochs=2,
                        **{'model.backbone.frozen_stages': 1})
    runner.register_hook(Release('layer1', 5))
    first = set(runner.model.module.backbone.layer1.parameters())
    runner.train()
    used = first - skipped_parameters(runner)
    assert used <= buckets_of(runner) == trainable(runner)
    assert 'it is wrapped anew with them' in log_of(tmp_path / 'run')


class Hang(Hook):
    """Hangs things on the wrapper, and takes one of them off again."""

    def __init__(self, register):
        self.register, self.seen = register, []

    def before_train(self, runner):
        self.register(runner.model)
        self.first = runner.model
        self.handles = [
            runner.model.register_forward_hook(
                lambda module, args, kwargs, output: self.seen.append('stays'),
                with_kwargs=True),
            runner.model.register_forward_pre_hook(
                lambda module, args: self.seen.append('goes'))
        ]

    def after_train_epoch(self, runner):
        if runner.epoch == 0:
            assert runner.model is not self.first
            self.first = None
            self.handles[1].remove()


def halve(state, bucket: dist.GradBucket
          ) -> torch.futures.Future[torch.Tensor]:
    state.append(bucket.index())
    future = torch.futures.Future()
    future.set_result(bucket.buffer() / 2)
    return future


def test_what_hung_on_the_wrapper_moves_to_the_new_one(group, tmp_path):
    calls = []
    hook = Hang(lambda model: model.register_comm_hook(calls, halve))
    runner = ddp_runner(tmp_path, group, max_epochs=2, windows=[(1, 1)])
    runner.register_hook(hook)
    runner.train()
    assert hook.seen.count('stays') == calls.count(0) == 8
    assert hook.seen.count('goes') == 4  # as long as it hung there


def test_builtin_communication_hooks_move_as_well(group, tmp_path):
    hook = Hang(lambda model: model._register_builtin_comm_hook(
        dist.BuiltinCommHookType.FP16_COMPRESS))
    runner = ddp_runner(tmp_path, group, max_epochs=2)
    runner.register_hook(hook)
    runner.train()
    assert (runner.model._get_ddp_logging_data()['comm_hook'] ==
            'BuiltinCommHookType.FP16_COMPRESS')


def test_a_communication_hook_that_cannot_move_is_refused(group, tmp_path):

    def register(model):
        model.register_comm_hook([], halve)
        model._comm_hooks = []  # which torch 2.0 does not keep

    runner = ddp_runner(tmp_path, group, max_epochs=2)
    runner.register_hook(Hang(register))
    with pytest.raises(UsageError, match='hook halve cannot move'):
        runner.train()


# --- who owns a flag and a momentum ------------------------------------------


class Rest(Hook):
    """Freezes the backbone's first stage for an epoch (from 0)."""

    def __init__(self, epoch):
        self.epoch = epoch

    def before_train_epoch(self, runner):
        stage = runner.model.backbone.layer1
        if runner.epoch == self.epoch:
            stage.requires_grad_(False)
        elif runner.epoch == self.epoch + 1:
            stage.requires_grad_(True)


def test_a_pruning_gives_nothing_to_what_others_have_frozen(tmp_path):
    """Keys and values of skipped layers stay visible, and frozen."""
    runner = toy_runner(tmp_path, max_epochs=2, hook=dict(skip='retrieval'))
    backbone = runner.model.backbone.requires_grad_(False)
    runner.train()
    assert not backbone.active.all()
    assert not any(p.requires_grad for p in backbone.parameters())
    before, after = (torch.load(tmp_path / f'epoch_{n}.pth')['state_dict']
                     for n in (1, 2))
    for name, _ in backbone.named_parameters():
        assert torch.equal(before[f'backbone.{name}'],
                           after[f'backbone.{name}']), name


def test_momentum_of_what_rests_survives_a_pruning(tmp_path):
    runner = toy_runner(tmp_path, max_epochs=2, windows=[(2, 2)])
    runner.register_hook(Rest(1))
    runner.train()
    state = runner.optim_wrapper.optimizer.state
    backbone = runner.model.backbone
    assert not backbone.active.all()
    skipped = {p for layer in backbone.attention_layers if not layer.active
               for p in layer.module.parameters()}
    assert not skipped & set(state)
    assert set(backbone.layer1.parameters()) - skipped <= set(state)
