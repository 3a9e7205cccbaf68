"""Pruning under the options that real configs train with."""
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.registry import (
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
)
from mmengine.runner import Runner
from support.toy import ToyClassifier, toy_config, toy_runner, validation
from support.training import ValidationSpy
from support.versions import needs_torch_2_1
from torch.utils.checkpoint import checkpoint

from ela_mm import ELAPruneHook, adjacent_kl, ebqm
from ela_mm.engine.journal.record import read_record


def decision_of(work_dir, number=0) -> dict:
    return read_record(work_dir)['decisions'][number]


def measured(decision) -> dict:
    return {x['name']: (x['kl'], x['kl_std']) for x in decision['layers']
            if x['kl'] is not None}


# --- what a skipped parameter must not feel ----------------------------------


class Snapshot(Hook):
    """Remembers the skipped parameters as they were when they went."""
    priority = 'LOWEST'

    def __init__(self):
        self.values = {}
        self.trained = {}

    def after_train_epoch(self, runner):
        if self.values:
            return
        for name, parameter in runner.model.backbone.named_parameters():
            store = self.trained if parameter.requires_grad else self.values
            store[name] = parameter.detach().clone()

    def after_train_iter(self, runner, *args, **kwargs):
        for name in self.values:
            parameter = runner.model.backbone.get_parameter(name)
            assert parameter.grad is None, name


def stages(*numbers):
    return [f'backbone.layer{n}' for n in numbers]


def optimizer(**kwargs) -> dict:
    return dict(optim_wrapper=ConfigDict(_delete_=True, optimizer=kwargs))


SGD = dict(type='SGD', lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1)
ADAMW = dict(type='AdamW', lr=1e-3, weight_decay=0.1)

# Options that do not meet share a run.
OPTIONS = dict(
    sgd_clipped_by_norm={
        **optimizer(**SGD), 'optim_wrapper.clip_grad': dict(max_norm=0.1)
    },
    adamw_clipped_by_value_paramwise={
        **optimizer(**ADAMW, amsgrad=True),
        'optim_wrapper.clip_grad': dict(type='value', clip_value=0.01),
        'optim_wrapper.paramwise_cfg': dict(
            norm_decay_mult=0., bias_decay_mult=0., dwconv_decay_mult=5.,
            flat_decay_mult=2., bypass_duplicate=True)
    },
    lamb_custom_keys={
        **optimizer(type='mmpretrain.Lamb', lr=1e-3, weight_decay=0.1),
        'optim_wrapper.paramwise_cfg': dict(custom_keys={
            '.attention.': dict(lr_mult=2., decay_mult=5.),
            'backbone.layer4': dict(lr_mult=0.1)
        })
    },
    rmsprop_accumulated={
        **optimizer(
            type='RMSprop', lr=1e-3, momentum=0.9, weight_decay=0.1),
        'optim_wrapper.accumulative_counts': 3
    },
    norm_eval_frozen_stages={
        'model.backbone.norm_eval': True,
        'model.backbone.frozen_stages': 2
    },
    with_cp_activation_checkpointing={
        'model.backbone.with_cp': True,
        'activation_checkpointing': stages(1, 2, 3, 4)
    },
    retrieval=dict(hook=dict(skip='retrieval')),
)


@pytest.mark.parametrize('name', OPTIONS)
def test_skipped_parameters_stay_bit_equal(tmp_path, name):
    """No gradient, no weight decay, no momentum; the others train on."""
    runner = toy_runner(tmp_path, max_epochs=2, **dict(OPTIONS[name]))
    spy = Snapshot()
    runner.register_hook(spy)
    runner.train()

    decision = decision_of(tmp_path)
    frozen = runner.model.backbone.frozen_stages
    skipped = {
        f'{stage}.attention.{i}' for stage, i in
        (layer.split('.') for layer in decision['skipped'])
    }
    assert len(skipped) >= 2
    ours = [n for n in spy.values
            if any(n.startswith(prefix + '.') for prefix in skipped)]
    # query, key, value and norm; key and value may stay visible.
    whole = 5 if name != 'retrieval' else 3
    assert len(ours) >= whole * len(skipped)
    state = runner.optim_wrapper.optimizer.state
    for key, value in spy.values.items():
        parameter = runner.model.backbone.get_parameter(key)
        assert torch.equal(parameter, value), key
        assert parameter not in state, key
    for key, value in spy.trained.items():
        if '.attention.0.query' in key:
            continue  # weighs one entry, whose softmax is constant
        assert not torch.equal(
            runner.model.backbone.get_parameter(key), value), key
    if frozen > 0:
        assert not any(n.startswith(('layer1', 'layer2')) for n in spy.trained)


@MODELS.register_module(force=True)
class TwoOptimizers(ToyClassifier):
    """Trains its backbone with one optimizer, its head with another."""

    def train_step(self, data, optim_wrapper):
        with optim_wrapper['backbone'].optim_context(self):
            losses = self._run_forward(
                self.data_preprocessor(data, True), mode='loss')
        loss, log_vars = self.parse_losses(losses)
        for wrapper in optim_wrapper.values():
            wrapper.zero_grad()
        loss.backward()
        for wrapper in optim_wrapper.values():
            wrapper.step()
        return log_vars


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class TwoOptimizersConstructor:

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.cfg = optim_wrapper_cfg

    def __call__(self, model):
        return OptimWrapperDict(**{
            part: build_optim_wrapper(getattr(model, part), self.cfg[part])
            for part in ('backbone', 'head')
        })


def test_two_optimizers(tmp_path):
    """Skipped parameters leave the optimizer that has them; it resumes."""
    options = {
        'model.type': 'TwoOptimizers',
        'optim_wrapper': ConfigDict(
            _delete_=True, constructor='TwoOptimizersConstructor',
            backbone=dict(optimizer=ADAMW), head=dict(optimizer=SGD)),
    }
    runner = toy_runner(tmp_path / 'a', **options)
    spy = Snapshot()
    runner.register_hook(spy)
    runner.train()
    state = runner.optim_wrapper['backbone'].optimizer.state
    assert decision_of(tmp_path / 'a')['skipped'] and spy.values
    for name, value in spy.values.items():
        parameter = runner.model.backbone.get_parameter(name)
        assert torch.equal(parameter, value) and parameter not in state
    assert len(runner.optim_wrapper['head'].optimizer.state) == 2

    again = toy_runner(tmp_path / 'b', resume=True, **options,
                       load_from=str(tmp_path / 'a' / 'epoch_2.pth'))
    again.train()
    for name, value in runner.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


# --- every sample counts once ------------------------------------------------


class CheckpointStages(Hook):
    """Checkpoints all stages or the whole backbone, as FSDP would."""

    def __init__(self, whole, reentrant):
        self.whole, self.reentrant = whole, reentrant

    def before_train(self, runner):
        backbone = runner.model.backbone
        modules = [backbone] if self.whole else [
            getattr(backbone, name) for name in backbone.res_layers]
        for module in modules:
            module.forward = self.checkpointed(module.forward)

    def checkpointed(self, forward):
        return lambda x: checkpoint(forward, x, use_reentrant=self.reentrant)


RECOMPUTING = dict(
    mmengine=(dict(activation_checkpointing=stages(1, 2, 3, 4)), None),
    with_cp=({'model.backbone.with_cp': True}, None),
    both=({'model.backbone.with_cp': True,
           'activation_checkpointing': stages(1, 2, 3, 4)}, None),
    reentrant=({}, CheckpointStages(False, True)),
    not_reentrant=({}, CheckpointStages(False, False)),
    whole_backbone=({}, CheckpointStages(True, False)),
    accumulation=({'optim_wrapper.accumulative_counts': 4}, None),
)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """Decisions of runs without any of that, by learning rate."""
    decisions = {}
    for accumulates in (False, True):
        work_dir = tmp_path_factory.mktemp('plain')
        # Nothing is learned, so that accumulating makes no difference.
        toy_runner(work_dir, max_epochs=1, **no_learning(accumulates)).train()
        decisions[accumulates] = decision_of(work_dir)
    return decisions


def no_learning(wanted) -> dict:
    return {'optim_wrapper.optimizer.lr': 0.} if wanted else {}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=needs_torch_2_1)
    if name in ('not_reentrant', 'whole_backbone') else name
    for name in RECOMPUTING])
def test_statistics_count_every_sample_once(tmp_path, plain, name):
    options, hook = RECOMPUTING[name]
    accumulates = name == 'accumulation'
    runner = toy_runner(
        tmp_path, max_epochs=1, **options, **no_learning(accumulates))
    if hook is not None:
        runner.register_hook(hook)
    runner.train()
    ours, expected = decision_of(tmp_path), plain[accumulates]
    assert ours['samples'] == expected['samples'] == 8
    assert ours['skipped'] == expected['skipped'] and ours['skipped']
    assert measured(ours).keys() == measured(expected).keys()
    for layer, values in measured(ours).items():
        assert values == pytest.approx(measured(expected)[layer], rel=1e-4)


# --- half precision ----------------------------------------------------------


@OPTIM_WRAPPERS.register_module(force=True)
class BFloat16OptimWrapper(OptimWrapper):
    """What AmpOptimWrapper does, on the CPU too, which that one refuses."""

    def optim_context(self, model):
        return torch.autocast('cpu', dtype=torch.bfloat16)


def test_half_precision_decides_as_float32(tmp_path):
    """On the same weights, whatever dtype computes the network."""
    seen = {}

    class Record(Hook):
        priority = 'LOWEST'  # after ELAPruneHook has set its observer

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            for stage in runner.model.backbone.attention_stages:
                observer = stage.observer

                def both(name, prev, curr, observer=observer):
                    observer(name, prev, curr)
                    seen.setdefault(name, []).append((prev, curr))

                stage.observer = both

        def after_train_iter(self, runner, *args, **kwargs):
            dtype = runner.model.backbone.layer1.attention[0].value(
                torch.zeros(1, 16, 4, 4)).dtype
            assert dtype == torch.float32, 'parameters stay in float32'

    runner = toy_runner(
        tmp_path, max_epochs=1,
        **{'optim_wrapper.type': 'BFloat16OptimWrapper'})
    runner.register_hook(Record())
    runner.train()

    decision = decision_of(tmp_path)
    assert decision['skipped'] and len(seen) == 12
    kl = {}
    for name, pairs in seen.items():
        assert len(pairs) == 4
        assert all(p.dtype == torch.float32 for pair in pairs for p in pair)
        values = []
        for prev, curr in pairs:  # equation 11 in float64
            prev, curr = (p.detach().double().numpy() for p in (prev, curr))
            prev = np.concatenate(
                [prev, np.zeros((*prev.shape[:2], 1))], -1).clip(1e-8)
            values.append(
                (prev * np.log(prev / curr.clip(1e-8))).sum(-1).mean())
        kl[name] = np.mean(values)
    for name, (value, _) in measured(decision).items():
        assert value == pytest.approx(kl[name], abs=1e-6)
    skip = ebqm(list(kl.values()), alpha=5., beta=1., mu=0.3)
    assert [n for n, gone in zip(kl, skip) if gone] == decision['skipped']


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half])
def test_half_precision_weights_give_float32_divergences(dtype):
    """Weights of half precision are read as they are, under autocast too."""
    prev = torch.randn(2, 4, 3).mul(3).softmax(-1).to(dtype)
    curr = torch.randn(2, 4, 4).mul(3).softmax(-1).to(dtype)
    expected = adjacent_kl(prev.float(), curr.float())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        kl = adjacent_kl(prev, curr)
    assert kl.dtype == torch.float32 and torch.equal(kl, expected)


def test_the_hosts_amp_refuses_the_cpu_before_training(tmp_path):
    runner = toy_runner(tmp_path, **{'optim_wrapper.type': 'AmpOptimWrapper'})
    with pytest.raises(AssertionError, match='only available training'):
        runner.train()
    assert not list(tmp_path.glob('*.pth'))


# --- loops -------------------------------------------------------------------


def test_dynamic_intervals_of_iterations(tmp_path):
    """Validation in the middle of a window neither counts nor disturbs."""
    overrides = validation()
    overrides.pop('train_cfg.val_interval')
    runner = toy_runner(
        tmp_path, windows=[(3, 6), (8, 9)], hook=dict(by_epoch=False),
        train_cfg=ConfigDict(
            _delete_=True, type='IterBasedTrainLoop', max_iters=10,
            val_interval=4, dynamic_intervals=[(5, 1)]),
        train_dataloader=dict(sampler=dict(type='InfiniteSampler')),
        **overrides)
    spy = ValidationSpy()
    runner.register_hook(spy)
    runner.train()
    first, second = read_record(tmp_path)['decisions']
    assert (first['iter'], second['iter']) == (6, 9)
    assert (first['samples'], second['samples']) == (8, 4)
    assert spy.iters == [4, 5, 6, 7, 8, 9, 10]
    # Pruned at the end of iteration 6, before the validation that follows it.
    assert spy.mask == spy.active == [16] * 2 + [first['active']] * 3 + [
        second['active']] * 2
    assert second['active'] < first['active'] < 16


def test_dynamic_intervals_of_epochs(tmp_path):
    runner = toy_runner(
        tmp_path, max_epochs=4, windows=[(1, 2), (4, 4)],
        **validation(interval=3),
        **{'train_cfg.dynamic_intervals': [(2, 1)]})
    spy = ValidationSpy()
    runner.register_hook(spy)
    runner.train()
    first, second = read_record(tmp_path)['decisions']
    assert first['samples'] == 16
    # The first one lies within the window.
    assert spy.iters == [4, 8, 12, 16]
    assert spy.mask == spy.active == [16] + [first['active']] * 2 + [
        second['active']]


def test_a_pruning_amid_accumulated_gradients(tmp_path):
    """Half-collected gradients of what goes are dropped, others are kept."""
    runner = toy_runner(
        tmp_path, windows=[(2, 3)], hook=dict(by_epoch=False),
        train_cfg=ConfigDict(
            _delete_=True, type='IterBasedTrainLoop', max_iters=8),
        train_dataloader=dict(sampler=dict(type='InfiniteSampler')),
        **{'optim_wrapper.accumulative_counts': 4})
    kept = {}

    class Gradients(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, *args, **kwargs):
            kept[runner.iter] = {
                name: parameter.grad is not None for name, parameter in
                runner.model.backbone.named_parameters()
            }

    runner.register_hook(Gradients())
    runner.train()
    skipped = {n for n, p in runner.model.backbone.named_parameters()
               if not p.requires_grad}
    assert skipped and all(kept[1].values())
    assert {n for n, has in kept[2].items() if not has} == skipped
    assert decision_of(tmp_path)['samples'] == 4
    hook = next(h for h in runner.hooks if isinstance(h, ELAPruneHook))
    assert hook.backbone is runner.model.backbone


def test_frozen_stages_with_trained_attention_are_measured(tmp_path):
    """Not fresh: their layers are candidates, though they learn nothing."""
    toy_runner(tmp_path / 'a', windows=None, max_epochs=1).train()
    cfg = toy_config(
        tmp_path / 'b', max_epochs=2,
        load_from=str(tmp_path / 'a' / 'epoch_1.pth'))
    cfg.model.backbone.update(frozen_stages=2, norm_eval=True)
    runner = Runner.from_cfg(cfg)
    before = {n: p.clone() for n, p in torch.load(
        tmp_path / 'a' / 'epoch_1.pth')['state_dict'].items()}
    runner.train()
    decision = decision_of(tmp_path / 'b')
    assert len(measured(decision)) == 12 and decision['skipped']
    for name, value in runner.model.state_dict().items():
        if name.startswith(('backbone.layer1', 'backbone.layer2')):
            assert torch.equal(value, before[name]), name


# --- compiling ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch, 'compiler'), reason='torch 2.0')
def test_a_compiled_run_prunes_averages_and_validates_alike(tmp_path):
    """``compile=`` of the config."""
    runs = []
    for name in ('eager', 'compiled'):
        torch._dynamo.reset()
        cfg = toy_config(
            tmp_path / name, windows=[(1, 1), (2, 2)], max_epochs=3,
            hooks=[dict(type='EMAHook', momentum=.1, update_buffers=True)],
            **validation(), **{
                'model.backbone.depth': 18,
                # Two numbers a channel are normalised to their sign alone.
                'train_dataloader.batch_size': 8,
                'train_dataloader.dataset.size': 16,
                'optim_wrapper.optimizer': dict(
                    _delete_=True, type='SGD', lr=1e-3)})
        if name == 'compiled':
            cfg.compile = dict(backend='eager')
        runner = Runner.from_cfg(cfg)
        runner.train()
        checkpoint = torch.load(tmp_path / name / 'epoch_3.pth')
        runs.append((
            [d['skipped'] for d in read_record(tmp_path / name)['decisions']],
            list(runner.message_hub.get_scalar('val/energy').data[0]),
            checkpoint['state_dict'], checkpoint['ema_state_dict']))
    (skipped, energies, *states), (others, compiled, *other_states) = runs
    assert skipped == others and all(skipped)
    assert len(energies) == 3 and compiled == pytest.approx(energies, rel=1e-3)
    for ours, theirs in zip(other_states, states):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-4)
