"""Averaged models: they are pruned with the model, validated and saved so."""
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint
from support.toy import (
    energy,
    small_network,
    toy_config,
    toy_runner,
    validation,
)
from support.training import ValidationSpy
from torch.optim.swa_utils import AveragedModel

from ela_mm.engine.journal.record import read_record


def fresh_model(work_dir):
    return MODELS.build(toy_config(work_dir).model)


# Momenta that let the average differ visibly from the model in few steps.
AVERAGES = dict(
    ema=dict(type='EMAHook', momentum=0.1),
    ema_buffers=dict(type='EMAHook', momentum=0.1, update_buffers=True),
    annealing=dict(type='EMAHook', ema_type='MomentumAnnealingEMA', gamma=4),
    exp_momentum=dict(
        type='EMAHook', ema_type='mmdet.ExpMomentumEMA', gamma=4,
        update_buffers=True),
    swa=dict(type='EMAHook', ema_type='StochasticWeightAverage', interval=2),
    from_epoch_2=dict(
        type='EMAHook', momentum=0.1, begin_epoch=2, update_buffers=True),
    from_iter_7=dict(type='EMAHook', momentum=0.1, begin_iter=7),
    mmpretrain=dict(
        type='mmpretrain.EMAHook', momentum=0.1, evaluate_on_origin=True),
)


@pytest.mark.parametrize('name', AVERAGES)
def test_validation_and_checkpoints_use_the_pruned_average(tmp_path, name):
    runner = toy_runner(
        tmp_path, windows=[(1, 1), (2, 2)], max_epochs=2,
        hooks=[AVERAGES[name]], **validation())
    spy = ValidationSpy()
    runner.register_hook(spy)
    runner.train()

    first, second = (d['active'] for d in read_record(tmp_path)['decisions'])
    assert second < first < 16
    if name == 'mmpretrain':  # which validates the model itself beside it
        assert spy.active == spy.mask == [first] * 2 + [second] * 2
        assert spy.energy[1] != energy(runner.model)
        assert runner.message_hub.get_scalar('val/energy_origin').current(
        ) == energy(runner.model)
    else:
        assert spy.active == spy.mask == [first, second]

    for epoch, active in ((1, first), (2, second)):
        path = str(tmp_path / f'epoch_{epoch}.pth')
        checkpoint = torch.load(path)
        masks = (checkpoint['state_dict']['backbone.active'],
                 checkpoint['ema_state_dict']['module.backbone.active'])
        for mask in masks:
            assert mask.dtype == torch.bool and mask.sum() == active
        # The average alone, in a network that knows of no pruning.
        averaged = fresh_model(tmp_path)
        load_checkpoint(averaged, path, strict=True)
        assert energy(averaged) == spy.energy[epoch - 1]
        assert sum(layer.active for layer in
                   averaged.backbone.attention_layers) == active

    changed = (~torch.isclose(a, b).all() for a, b in zip(
        averaged.parameters(), runner.model.parameters()) if b.requires_grad)
    assert all(changed), 'an average of different weights'
    ema = next(h for h in runner.hooks if hasattr(h, 'ema_model'))
    assert (ema.ema_model.module.backbone.attention_layers ==
            runner.model.backbone.attention_layers)


def test_the_mask_is_never_averaged_while_buffers_are(tmp_path):
    """The average lags far behind; its mask does not."""
    runner = toy_runner(
        tmp_path, max_epochs=1,
        hooks=[dict(type='EMAHook', momentum=1e-6, update_buffers=True)])
    runner.train()
    (ema, ) = (h for h in runner.hooks if hasattr(h, 'ema_model'))
    averaged, model = ema.ema_model.module.backbone, runner.model.backbone
    assert not torch.allclose(averaged.bn1.running_mean,
                              model.bn1.running_mean)
    assert torch.equal(averaged.active, model.active)
    assert torch.equal(averaged.visible, model.visible)
    assert averaged.layer3.active == model.layer3.active


@pytest.mark.parametrize('name, windows, resume_at', [
    ('ema', [(1, 1)], 1),  # right after a pruning
    ('exp_momentum', [(1, 1), (2, 3)], 2),  # inside a later window
    ('from_iter_7', [(1, 1), (3, 3)], 1),  # before averaging begins
])
def test_resumed_averages_are_bit_equal(tmp_path, name, windows, resume_at):
    hooks = [AVERAGES[name]]
    toy_runner(tmp_path / 'a', windows=windows, hooks=hooks).train()
    toy_runner(
        tmp_path / 'b', windows=windows, hooks=hooks, resume=True,
        load_from=str(tmp_path / 'a' / f'epoch_{resume_at}.pth')).train()
    whole, resumed = (torch.load(
        tmp_path / run / 'epoch_3.pth') for run in 'ab')
    assert whole['state_dict']['backbone.active'].sum() < 16
    for part in ('state_dict', 'ema_state_dict'):
        assert whole[part].keys() == resumed[part].keys()
        for key, value in whole[part].items():
            assert torch.equal(resumed[part][key], value), (part, key)


def test_an_averaged_checkpoint_serves_everywhere(tmp_path):
    """Loaded alone, averaged on, tested without EMAHook, fine-tuned with."""
    runner = toy_runner(
        tmp_path / 'a', max_epochs=2, hooks=[AVERAGES['ema_buffers']],
        **validation())
    spy = ValidationSpy()
    runner.register_hook(spy)
    runner.train()
    path = str(tmp_path / 'a' / 'epoch_2.pth')
    checkpoint = torch.load(path)
    layers = runner.model.backbone.attention_layers

    # ema_state_dict goes into an averaged model, and there is the source.
    averaged = ExponentialMovingAverage(fresh_model(tmp_path))
    averaged.load_state_dict(checkpoint['ema_state_dict'], strict=True)
    assert averaged.module.backbone.attention_layers == layers
    assert energy(averaged.module) == energy(runner.model)
    averaged.update_parameters(runner.model)
    assert averaged.module.backbone.attention_layers == layers

    # Validated by another Runner, with and without EMAHook.
    for number, hooks in enumerate(([], [AVERAGES['ema_buffers']])):
        cfg = toy_config(tmp_path / f'val{number}', hooks=hooks,
                         load_from=path, **validation())
        for key in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
            cfg.pop(key)
        assert Runner.from_cfg(cfg).val()['energy'] == spy.energy[-1]

    # Fine-tuning that averages starts from it, and prunes both further.
    # (mmpretrain's hook takes the average out of the checkpoint itself.)
    for name in ('ema_buffers', 'mmpretrain'):
        cfg = toy_config(tmp_path / name, max_epochs=1, load_from=path,
                         hooks=[AVERAGES[name]])
        runner = Runner.from_cfg(cfg)
        runner.train()
        before = sum(layer.active for layer in layers)
        after = runner.model.backbone.attention_layers
        assert sum(layer.active for layer in after) < before
        (ema, ) = (h for h in runner.hooks if hasattr(h, 'ema_model'))
        assert ema.ema_model.module.backbone.attention_layers == after


# --- torch's own, which knows of no hook -------------------------------------


def test_torchs_average_follows_the_mask(tmp_path):
    """It copies buffers, and nobody tells the network that it did."""

    class Average(Hook):

        def before_train(self, runner):
            self.average = AveragedModel(runner.model)

        def after_train_epoch(self, runner):
            self.average.update_parameters(runner.model)

    runner = toy_runner(tmp_path, max_epochs=2)
    hook = Average()
    runner.register_hook(hook)
    runner.train()
    averaged = hook.average.module
    assert not runner.model.backbone.active.all()
    images = torch.randn(4, 3, 32, 32)
    fresh = fresh_model(tmp_path)
    fresh.load_state_dict(averaged.state_dict())
    with torch.no_grad():
        assert torch.equal(averaged.eval()(images), fresh.eval()(images))
    assert (averaged.backbone.attention_layers ==
            runner.model.backbone.attention_layers)


def test_torchs_average_of_buffers_cannot_average_a_decision():
    """It subtracts them; torch has no difference of bools, and says so."""
    net = small_network()
    average = AveragedModel(net, use_buffers=True)
    average.update_parameters(net)  # copies
    with pytest.raises(RuntimeError, match='two bool tensors'):
        average.update_parameters(net)
    ours = ExponentialMovingAverage(net, momentum=.5, update_buffers=True)
    for _ in range(3):
        net(torch.randn(2, 3, 32, 32))
        ours.update_parameters(net)
    assert ours.module.active.dtype == torch.bool
    assert ours.module.fresh_norm_mask.dtype == torch.int8
