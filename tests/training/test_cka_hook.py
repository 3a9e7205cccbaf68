"""CKARegularizationHook in a Runner."""
import copy
import itertools
import math

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from support.toy import ToyClassifier, toy_config, toy_runner
from support.training import log_of

from ela_mm.engine.hooks.cka_regularization_hook import CKARegularizationHook
from ela_mm.errors import UsageError

SGD = dict(type='SGD', lr=1.)


def cka_config(folder, cka=None, batch=4, **kwargs):
    """The toy with the hook alone, on every batch; 8 pictures an epoch."""
    kwargs.setdefault('max_epochs', 1)
    overrides = {
        'custom_hooks': [dict(type='CKARegularizationHook', **{
            'weight': .1, 'interval': 1, **(cka or {})})],
        'train_dataloader.batch_size': batch,
        **kwargs
    }
    return toy_config(folder, windows=None, **overrides)


class Spy(Hook):
    """The model before each step, its batch, and what it said of its losses."""
    priority = 'LOWEST'

    def __init__(self) -> None:
        self.before, self.batches, self.outputs, self.iters = [], [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = copy.deepcopy(runner.model)
        for module in model.modules():  # the hook's own
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        self.before.append(model)
        self.batches.append(data_batch)

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.iters.append(runner.iter)
        self.outputs.append({k: float(v) for k, v in outputs.items()})


def train(cfg):
    runner, spy = Runner.from_cfg(cfg), Spy()
    runner.register_hook(spy)
    runner.train()
    return runner, spy


def hook_of(runner):
    return next(hook for hook in runner.hooks
                if isinstance(hook, CKARegularizationHook))


def watched(runner):
    """Modules of the model with any hook."""
    return [name for name, module in runner.model.named_modules()
            if module._forward_hooks or module._forward_pre_hooks]


def cka(x, y, biased=False):
    """By the definition, in float64."""
    x, y = x.double().flatten(1), y.double().flatten(1)
    n = len(x)
    if biased:
        h = torch.eye(n).double() - 1 / n
        hsic = lambda k, l: (k @ h @ l @ h).trace()  # noqa: E731, E741
    else:
        off = 1 - torch.eye(n).double()
        hsic = lambda k, l: (  # noqa: E731, E741
            ((k * off) @ (l * off)).trace() + (k * off).sum() *
            (l * off).sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) *
            ((k * off) @ (l * off)).sum())
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()


def losses_by_hand(model, batch, samples=8, biased=False):
    """The task's loss and the regulariser, from the blocks' outputs."""
    stages = []
    for name in model.backbone.res_layers:
        stages.append([])
        for block in getattr(model.backbone, name):
            block.register_forward_hook(
                lambda m, a, out, to=stages[-1]: to.append(out[:samples]))
    task = model(**batch, mode='loss')['loss']
    if biased:
        pairs = list(itertools.combinations(sum(stages, []), 2))
        return task, sum(cka(x, y, True) for x, y in pairs) / len(pairs)
    return task, sum(cka(x, y) for stage in stages for x in stage for y in stage)


@pytest.mark.parametrize('variant', ['CKA-SR', 'AugCKA-SR'])
@pytest.mark.parametrize('samples', [8, 5])
def test_loss_and_gradients_are_by_the_definition(tmp_path, variant, samples):
    """Of a plain SGD step: the weights' difference is the gradient."""
    cfg = cka_config(tmp_path, dict(samples=samples, variant=variant), batch=8)
    cfg.optim_wrapper.optimizer = SGD
    runner, spy = train(cfg)
    (model, ), (batch, ) = spy.before, spy.batches
    task, similarity = losses_by_hand(model, batch, samples,
                                      biased=variant != 'CKA-SR')
    assert spy.outputs[0]['loss_cka'] == pytest.approx(.1 * similarity.item())
    parameters = dict(model.named_parameters())
    total = torch.autograd.grad(task + .1 * similarity, parameters.values(),
                                allow_unused=True, retain_graph=True)
    alone = torch.autograd.grad(task, parameters.values(), allow_unused=True)
    difference = 0.
    for (name, before), gradient, without in zip(parameters.items(), total,
                                                 alone):
        if gradient is not None:
            after = runner.model.get_parameter(name)
            torch.testing.assert_close(before - after, gradient, rtol=1e-3,
                                       atol=1e-5)
            difference = max(difference, (gradient - without).abs().max())
    assert difference > 1e-3, 'the regulariser has a say'


def test_the_total_holds_it(tmp_path):
    """With a task loss of another name, mmengine logs the sum."""

    @MODELS.register_module(force=True)
    class TwoLosses(ToyClassifier):

        def forward(self, inputs, targets=None, mode='tensor'):
            out = super().forward(inputs, targets, mode)
            return dict(loss_cls=out['loss']) if mode == 'loss' else out

    cfg = cka_config(tmp_path, **{'model.type': 'TwoLosses'})
    _, spy = train(cfg)
    for out in spy.outputs:
        assert out['loss'] == pytest.approx(out['loss_cls'] + out['loss_cka'])


def test_only_every_nth_batch_counts(tmp_path):
    runner, spy = train(cka_config(tmp_path, dict(interval=3), max_epochs=4))
    assert [i for i, out in zip(spy.iters, spy.outputs)
            if 'loss_cka' in out] == [0, 3, 6]
    logged, _ = runner.message_hub.get_scalar('train/loss_cka').data
    assert len(logged) == 3 and logged.all()


def test_accumulation_divides_it_like_the_rest(tmp_path):
    cfg = cka_config(tmp_path)
    cfg.optim_wrapper = dict(optimizer=SGD, accumulative_counts=2)
    runner, spy = train(cfg)
    start = spy.before[0]
    parameters = list(start.parameters())
    gradients = [torch.zeros_like(p) for p in parameters]
    for batch, model in zip(spy.batches, spy.before):
        task, similarity = losses_by_hand(model, batch)
        for total, gradient in zip(gradients, torch.autograd.grad(
                (task + .1 * similarity) / 2, list(model.parameters()),
                allow_unused=True)):
            if gradient is not None:
                total += gradient
    for before, after, gradient in zip(
            parameters, runner.model.parameters(), gradients):
        torch.testing.assert_close(before - after, gradient, rtol=1e-3,
                                   atol=1e-5)


def assert_equal_runs(a, b, statistics=True):
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        # The hosts' checkpointing shows a batch to its norms twice.
        if statistics or not ('running_' in name or 'tracked' in name):
            assert torch.equal(ours[name], theirs[name]), name


def test_checkpointed_blocks_count_once(tmp_path):
    plain, spy = train(cka_config(tmp_path / 'a'))
    checkpointed, spy_cp = train(cka_config(
        tmp_path / 'b', **{'model.backbone.with_cp': True}))
    assert spy.outputs == spy_cp.outputs
    assert_equal_runs(plain, checkpointed, statistics=False)


@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpoints_around_blocks(tmp_path, reentrant, monkeypatch):
    """mmengine's activation_checkpointing; blocks run again in backward."""
    module = pytest.importorskip(  # mmengine 0.9
        'mmengine.runner.activation_checkpointing')
    real = module.checkpoint
    monkeypatch.setattr(module, 'checkpoint', lambda f, *args: real(
        f, *args, use_reentrant=reentrant))
    plain, spy = train(cka_config(tmp_path / 'a'))
    cfg = cka_config(tmp_path / 'b')
    cfg.activation_checkpointing = ['backbone.layer2']
    checkpointed, spy_cp = train(cfg)
    assert ('loss_cka leaves out backbone.layer2' in log_of(tmp_path / 'b')
            ) == reentrant
    if not reentrant:
        assert_equal_runs(plain, checkpointed, statistics=False)
        assert spy.outputs == spy_cp.outputs


@OPTIM_WRAPPERS.register_module(force=True)
class AutocastWrapper(OptimWrapper):
    """AMP as AmpOptimWrapper does it, which refuses CPUs."""

    def optim_context(self, model):
        return torch.autocast('cpu', dtype=torch.bfloat16)


def test_blocks_that_run_twice_count_with_the_first_time(tmp_path):

    @MODELS.register_module(force=True)
    class Twice(ToyClassifier):

        def forward(self, inputs, targets=None, mode='tensor'):
            first = super().forward(inputs, targets, mode)
            super().forward(inputs.flip(3), targets, mode)
            return first

    _, spy = train(cka_config(tmp_path, **{'model.type': 'Twice'}))
    model, batch = spy.before[0], spy.batches[0]
    model.__class__ = ToyClassifier
    _, similarity = losses_by_hand(model, batch)
    assert spy.outputs[0]['loss_cka'] == pytest.approx(.1 * similarity.item())


def test_autocast_does_not_reach_it(tmp_path):
    """From the very features that the network computed in 16 bits."""
    seen = {}

    class Keep(Hook):

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            for name, module in runner.model.named_modules():
                if name.count('.') == 2 and name.split('.')[2].isdigit():
                    module.register_forward_hook(
                        lambda m, a, out, name=name: seen.update({name: out}))

    cfg = cka_config(tmp_path, batch=8)
    cfg.optim_wrapper.type = 'AutocastWrapper'
    runner, spy = Runner.from_cfg(cfg), Spy()
    runner.register_hook(Keep())
    runner.register_hook(spy)
    runner.train()
    stages = {}
    for name, out in seen.items():
        stages.setdefault(name.split('.')[1], []).append(out.detach())
    assert any(out.dtype == torch.bfloat16 for out in seen.values())
    expected = sum(cka(x, y) for stage in stages.values()
                   for x in stage for y in stage)
    assert spy.outputs[0]['loss_cka'] == pytest.approx(.1 * expected.item(),
                                                       rel=1e-6)


def test_resumes_as_if_never_interrupted(tmp_path):
    whole, spy = train(cka_config(tmp_path / 'a', dict(interval=3),
                                  max_epochs=3))
    cfg = cka_config(tmp_path / 'b', dict(interval=3), max_epochs=3)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'a' / 'epoch_1.pth')
    resumed, spy_2 = train(cfg)
    assert_equal_runs(whole, resumed)
    assert spy.outputs[2:] == spy_2.outputs


def test_nothing_enters_a_checkpoint_nor_an_average(tmp_path):
    cfg = cka_config(tmp_path)
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=.1))
    runner, _ = train(cfg)
    checkpoint = torch.load(tmp_path / 'epoch_1.pth')
    plain = MODELS.build(cfg.model).state_dict()
    assert checkpoint['state_dict'].keys() == plain.keys()
    assert {key[len('module.'):] for key in checkpoint['ema_state_dict']
            if key != 'steps'} == set(plain)
    assert not [key for key in checkpoint if 'cka' in key]
    averaged = next(h for h in runner.hooks if hasattr(h, 'ema_model'))
    assert not any(m._forward_hooks for m in averaged.ema_model.modules())


def test_other_modes_are_left_alone(tmp_path):
    runner, _ = train(cka_config(tmp_path))
    hook = hook_of(runner)
    hook.before_train(runner)
    batch = dict(inputs=torch.randn(4, 3, 32, 32),
                 targets=torch.tensor([0, 1, 0, 1]))
    assert set(runner.model(**batch, mode='loss')) == {'loss'}  # not training
    hook.before_train_iter(runner, 0)
    assert isinstance(runner.model(**batch, mode='tensor'), torch.Tensor)
    assert set(runner.model(**batch, mode='loss')) == {'loss', 'loss_cka'}
    hook._remove()


# --- coming and going ---------------------------------------------------------


class Raise(Hook):

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        raise RuntimeError('a fault for the test')


def test_nothing_stays_after_training(tmp_path):
    runner, _ = train(cka_config(tmp_path))
    assert not watched(runner)
    assert runner.train_loop.run.__func__ is type(runner.train_loop).run


def test_nothing_stays_after_an_exception(tmp_path):
    runner = Runner.from_cfg(cka_config(tmp_path / 'a'))
    runner.register_hook(Raise())
    with pytest.raises(RuntimeError, match='a fault for the test'):
        runner.train()
    assert not watched(runner)
    runner._hooks = [h for h in runner.hooks if not isinstance(h, Raise)]
    spy = Spy()
    runner.register_hook(spy)
    runner.train()
    task, similarity = losses_by_hand(spy.before[0], spy.batches[0])
    assert spy.outputs[0]['loss_cka'] == pytest.approx(.1 * similarity.item())
    assert not watched(runner)


def test_two_hooks_are_refused(tmp_path):
    cfg = cka_config(tmp_path)
    cfg.custom_hooks.append(dict(type='CKARegularizationHook'))
    runner = Runner.from_cfg(cfg)
    with pytest.raises(UsageError, match='two CKARegularizationHooks'):
        runner.train()
    assert not watched(runner)


# --- bad input ----------------------------------------------------------------


@pytest.mark.parametrize('options, message', [
    (dict(weight=0), 'weight=0: .* leave the hook out'),
    (dict(weight=math.nan), 'weight=nan'),
    (dict(samples=3), 'samples=3: CKA-SR needs at least 4'),
    (dict(samples=2, variant='AugCKA-SR'), 'AugCKA-SR needs at least 3'),
    (dict(interval=0), 'interval=0'),
    (dict(weight='1e-4'), "weight='1e-4': expected a number .* 1.0e-4"),
    (dict(samples=4.5), 'samples=4.5: expected a whole number'),
    (dict(interval=None), 'interval=None: expected a whole number'),
    (dict(max_features=0), 'max_features=0'),
    (dict(variant='CCA'), "'CCA': expected one of CKA-SR, AugCKA-SR"),
])
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        CKARegularizationHook(**options)


def test_batches_of_two_are_refused_before_training(tmp_path):
    runner = Runner.from_cfg(cka_config(tmp_path, batch=2))
    with pytest.raises(UsageError, match='batch_size=2: .*at least 4 samples'):
        runner.train()
    assert runner.iter == 0
    train(cka_config(tmp_path, dict(variant='AugCKA-SR'), batch=3))


def test_a_short_last_batch_is_left_out_and_said_once(tmp_path):
    """In each run, if the hook is an object that several runs share."""
    short = {'train_dataloader.dataset.size': 6}
    runner, spy = train(cka_config(tmp_path / 'a', max_epochs=2, **short))
    assert ['loss_cka' in out for out in spy.outputs] == [True, False] * 2
    again = Runner.from_cfg(cka_config(
        tmp_path / 'b', max_epochs=1, custom_hooks=None, **short))
    again.register_hook(hook_of(runner))
    again.train()
    for name in 'ab':
        assert log_of(tmp_path / name).count(
            'leaves out batches of 2 samples, fewer than 4') == 1


def test_a_model_without_stages_is_refused(tmp_path):

    @MODELS.register_module(force=True)
    class Stageless(ToyClassifier):

        def __init__(self, backbone) -> None:
            super().__init__(backbone)
            self.backbone = torch.nn.Conv2d(3, 2, 1)

    runner = Runner.from_cfg(cka_config(tmp_path, **{
        'model.type': 'Stageless'}))
    with pytest.raises(UsageError, match='Stageless has no stages of blocks'):
        runner.train()


def test_stages_of_one_block(tmp_path):
    """Said before training; if there are no others, refused."""
    cfg = cka_config(tmp_path / 'a', dict(stages=[
        'backbone.layer1', 'backbone.layer2.0.downsample']))
    cfg.model.backbone.depth = 18
    train(cfg)
    assert ('CKA-SR compares the blocks of backbone.layer1 (2), '
            'backbone.layer2.0.downsample (2)') in log_of(tmp_path / 'a')

    @MODELS.register_module(force=True)
    class Single(ToyClassifier):

        def __init__(self, backbone) -> None:
            super().__init__(backbone)
            for name in self.backbone.res_layers[self.keep:]:
                stage = getattr(self.backbone, name)
                setattr(self.backbone, name, torch.nn.Sequential(stage[0]))

    for keep in (1, 0):
        Single.keep = keep
        cfg = cka_config(tmp_path / str(keep), **{
            'model.type': 'Single', 'model.backbone.attention': None})
        if keep:
            train(cfg)
            assert ('CKA-SR compares the blocks of backbone.layer1 (3); left '
                    'out, with a single block: backbone.layer2, '
                    'backbone.layer3, backbone.layer4') in log_of(tmp_path / '1')
        else:
            with pytest.raises(UsageError, match='Single has no stage of two '
                               r'blocks \(backbone.layer1, .* one each\)'):
                Runner.from_cfg(cfg).train()


def test_frozen_stages_are_left_out_and_said(tmp_path):
    _, spy = train(cka_config(
        tmp_path, **{'model.backbone.frozen_stages': 1,
                     'model.backbone.attention': None}))
    assert log_of(tmp_path).count(
        'loss_cka leaves out backbone.layer1, whose features carry no '
        'gradient: frozen') == 1
    assert spy.outputs[0]['loss_cka'] > 0


def test_nan_features_are_left_out_and_said(tmp_path):
    cfg = cka_config(tmp_path)
    runner, spy = Runner.from_cfg(cfg), Spy()
    runner.register_hook(spy)

    class Poison(Hook):

        def before_train(self, runner):
            block = runner.model.backbone.layer2[1]
            block.norm2.weight.data.fill_(math.nan)

    runner.register_hook(Poison())
    runner.train()
    assert not any('loss_cka' in out for out in spy.outputs)
    assert log_of(tmp_path).count(
        'leaves out iterations with NaN or infinite features (in '
        'backbone.layer2.1)') == 1


def test_a_block_that_returns_no_tensor_is_named(tmp_path):
    cfg = cka_config(tmp_path)
    runner = Runner.from_cfg(cfg)
    hook_of(runner)._features = {}
    with pytest.raises(UsageError, match='block x returns a list'):
        hook_of(runner)._see('x', [torch.ones(4, 2)] * 2)


def test_a_training_step_of_its_own_is_named(tmp_path):

    @MODELS.register_module(force=True)
    class OwnStep(ToyClassifier):

        def train_step(self, data, optim_wrapper):
            return dict(loss=self(**data).sum())

    runner = Runner.from_cfg(cka_config(tmp_path, **{'model.type': 'OwnStep'}))
    with pytest.raises(UsageError, match='OwnStep does not call forward'):
        runner.train()
    assert not watched(runner)


# --- larger features, and ELA beside it ---------------------------------------


def test_large_maps_are_pooled(tmp_path):
    _, spy = train(cka_config(tmp_path / 'a', dict(max_features=64), batch=8))
    _, whole = train(cka_config(tmp_path / 'b', batch=8))
    model, batch = whole.before[0], whole.batches[0]
    stages = []
    for name in model.backbone.res_layers:
        stages.append([])
        for block in getattr(model.backbone, name):
            block.register_forward_hook(
                lambda m, a, out, to=stages[-1]: to.append(out))
    model(**batch, mode='loss')
    # 16 x 8 x 8, 32 x 4 x 4, 64 x 2 x 2, 128 x 1 x 1 numbers.
    sides = [2, 1, 1, 1]
    expected = sum(
        cka(*(torch.nn.functional.avg_pool2d(a, a.shape[-1] // side)
              for a in (x, y)))
        for stage, side in zip(stages, sides) for x in stage for y in stage)
    assert spy.outputs[0]['loss_cka'] == pytest.approx(.1 * expected.item())
    assert spy.outputs[0]['loss_cka'] != whole.outputs[0]['loss_cka']


def test_beside_pruning(tmp_path):
    """Whose windows skip attention while it goes on."""
    runner = toy_runner(
        tmp_path, max_epochs=2, windows=[(1, 1)],
        hooks=[dict(type='CKARegularizationHook', weight=.01, interval=1)],
        **{'train_dataloader.batch_size': 4})
    spy = Spy()
    runner.register_hook(spy)
    runner.train()
    assert not runner.model.backbone.active.all()
    for model, batch, out in zip(spy.before, spy.batches, spy.outputs):
        _, similarity = losses_by_hand(model, batch)
        assert out['loss_cka'] == pytest.approx(.01 * similarity.item())
