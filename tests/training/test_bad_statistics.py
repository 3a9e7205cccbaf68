"""Windows whose statistics cannot be trusted: nothing is pruned on them."""
import json
import math

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, MODELS, OPTIM_WRAPPERS
from support.toy import ToyClassifier, ToyDataset, toy_runner

from ela_mm.engine.journal.record import FILE_NAME, read_record
from ela_mm.errors import UsageError
from ela_mm.pruning import KLStatistics


def log_of(work_dir) -> str:
    return ''.join(p.read_text() for p in work_dir.glob('*/*.log'))


def decisions_of(work_dir) -> list:
    text = (work_dir / FILE_NAME).read_text()
    json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity
    return read_record(work_dir)['decisions']


@DATASETS.register_module(force=True)
class SpoiltDataset(ToyDataset):
    """Picture 3 is infinite while ``spoilt``."""
    spoilt = True

    def __getitem__(self, index):
        data = super().__getitem__(index)
        if self.spoilt and index == 3:
            data['inputs'] = torch.full((3, 32, 32), math.inf)
        return data


@OPTIM_WRAPPERS.register_module(force=True)
class Guarded(OptimWrapper):
    """Leaves out steps whose loss is not finite, as careful users do."""

    def update_params(self, loss, *args, **kwargs):
        if loss.isfinite():
            super().update_params(loss, *args, **kwargs)


class Repair(Hook):
    """From the second epoch on the data is good."""

    def before_train_epoch(self, runner):
        runner.train_dataloader.dataset.spoilt = runner.epoch == 0


def test_one_bad_iteration_spoils_its_window_alone(tmp_path):
    runner = toy_runner(
        tmp_path, windows=[(1, 1), (3, 3)],
        train_dataloader=dict(dataset=dict(type='SpoiltDataset')),
        optim_wrapper=dict(type='Guarded'))
    runner.register_hook(Repair())
    runner.train()
    first, second = decisions_of(tmp_path)
    assert first['skipped'] == [] and first['active'] == 16
    assert 'layer1.1 in 1 of 4 iterations, layer1.2 in 1' in first['note']
    assert f'nothing pruned on epoch 1: {first["note"]}' in log_of(tmp_path)
    assert first['iterations'] == 4 and first['samples'] == 8
    for layer in first['layers']:
        if layer['index']:
            assert layer['kl'] is layer['kl_std'] is None
            assert layer['bad_iterations'] == 1
            assert layer['kl_iterations'].count(None) == 1
            assert len(layer['kl_iterations']) == 4
    assert second['skipped'] and second['note'] is None
    assert not any(x['bad_iterations'] for x in second['layers'])
    assert runner.iter == 12
    assert all(p.isfinite().all() for p in runner.model.parameters())


class Poison(Hook):
    """Puts NaN into one query of the last layer before some iterations."""

    def before_train_iter(self, runner, *args, **kwargs):
        query = runner.model.backbone.layer4.attention[2].query.weight
        query.data.nan_to_num_(0.1)
        if runner.iter in (1, 2):
            query.data.fill_(math.nan)


def test_one_bad_layer_is_named(tmp_path):
    runner = toy_runner(
        tmp_path, max_epochs=1, optim_wrapper=dict(type='Guarded'))
    runner.register_hook(Poison())
    runner.train()
    (decision, ) = decisions_of(tmp_path)
    assert decision['skipped'] == []
    assert decision['note'] == ('KL divergences are not finite: layer4.2 in 2 '
                                'of 4 iterations')
    *others, last = (x for x in decision['layers'] if x['index'])
    assert all(x['kl'] is not None and not x['bad_iterations']
               and None not in x['kl_iterations'] for x in others)
    assert last['kl'] is None
    good = [x is not None for x in last['kl_iterations']]
    assert good == [True, False, False, True]


def test_a_diverged_training_goes_on_without_pruning(tmp_path):
    runner = toy_runner(
        tmp_path, windows=[(1, 1), (3, 3)],
        optim_wrapper=dict(optimizer=dict(
            _delete_=True, type='SGD', lr=1e30)))
    runner.train()
    assert runner.iter == 12
    first, second = decisions_of(tmp_path)
    for decision in (first, second):
        assert decision['skipped'] == []
        assert decision['note'].startswith('KL divergences are not finite')
    assert 'layer1.1 in 3 of 4 iterations' in first['note']
    assert 'layer1.1 in 4 of 4 iterations' in second['note']
    for n in (1, 3):
        assert f'nothing pruned on epoch {n}: KL' in log_of(tmp_path)
    state = torch.load(tmp_path / 'epoch_3.pth')
    assert state['state_dict']['backbone.active'].all()


@MODELS.register_module(force=True)
class LateDivergence(ToyClassifier):
    """Its loss turns infinite in step 4, its attention does not."""
    steps = 0

    def forward(self, inputs, targets=None, mode='tensor'):
        losses = super().forward(inputs, targets, mode)
        self.steps += 1
        return dict(loss=losses['loss'] * (math.inf if self.steps == 4 else 1))


def test_divergence_in_the_last_step_of_a_window(tmp_path):
    """Its statistics are finite, but describe a network that is gone."""
    toy_runner(tmp_path, max_epochs=2,
               **{'model.type': 'LateDivergence'}).train()
    (decision, ) = decisions_of(tmp_path)
    assert decision['skipped'] == []
    assert decision['note'].startswith('the training has diverged: backbone.')
    assert all(x['kl'] is not None for x in decision['layers'] if x['index'])


@OPTIM_WRAPPERS.register_module(force=True)
class Scaled(OptimWrapper):
    """What AmpOptimWrapper does with the loss, on the CPU."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scaler = torch.amp.GradScaler('cpu', init_scale=2.**127)

    def update_params(self, loss, *args, **kwargs):
        self.scaler.scale(loss * 10).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.zero_grad()


@pytest.mark.skipif(
    not hasattr(torch.amp, 'GradScaler'),
    reason='torch < 2.3 scales gradients on GPUs alone')
def test_steps_that_a_scaler_skips_are_measured(tmp_path):
    """Only their gradients overflow: what they show of attention is good."""
    runner = toy_runner(
        tmp_path, max_epochs=2, optim_wrapper=dict(type='Scaled'))
    runner.train()
    steps = {int(state['step'])
             for state in runner.optim_wrapper.optimizer.state.values()}
    (decision, ) = decisions_of(tmp_path)
    assert max(steps) < 8  # the first ones were skipped
    assert decision['iterations'] == 4 and decision['samples'] == 8
    assert decision['skipped']


# --- nothing to measure ------------------------------------------------------


def test_a_loader_without_batches(tmp_path):
    runner = toy_runner(
        tmp_path, windows=[(1, 1), (3, 3)],
        train_dataloader=dict(batch_size=16, drop_last=True))
    runner.train()
    assert runner.epoch == 3 and runner.iter == 0
    log = log_of(tmp_path)
    assert 'yields no batch (8 samples, batches of 16, drop_last=True)' in log
    for decision in decisions_of(tmp_path):
        assert decision['note'].startswith('no iteration was measured')
        assert decision['samples'] == decision['iterations'] == 0
        assert decision['active'] == 16
        assert f'nothing pruned on epoch {decision["window"][0]}: no iter' in log
        assert [x['status'] for x in decision['layers'][:2]] == [
            'kept (first of its stage)', 'kept (not measured)']


def test_a_window_without_an_iteration(tmp_path):
    """The data ends for one epoch, such as a stream that runs dry."""

    class Dry(Hook):

        def before_train_epoch(self, runner):
            sampler = runner.train_dataloader.batch_sampler.sampler
            sampler.num_samples = 0 if runner.epoch == 1 else 8
            sampler.total_size = sampler.num_samples

    runner = toy_runner(tmp_path, windows=[(2, 2), (3, 3)])
    runner.register_hook(Dry(), priority='HIGHEST')
    runner.train()
    first, second = decisions_of(tmp_path)
    assert first['note'].startswith('no iteration was measured')
    assert second['skipped'] and second['iterations'] == 4
    assert runner.iter == 8


def test_a_backbone_in_evaluation_mode_is_not_measured(tmp_path):
    """A hook of the user's keeps it there: its norms show no training."""

    class Frozen(Hook):

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            runner.model.backbone.eval()

    runner = toy_runner(tmp_path, max_epochs=1)
    runner.register_hook(Frozen())
    runner.train()
    (decision, ) = decisions_of(tmp_path)
    assert decision['note'].endswith('in evaluation mode in all of them')
    assert not decision['skipped']


@pytest.mark.parametrize('overrides', [
    {'train_dataloader.dataset.size': 0},
    {
        'train_dataloader.batch_size': 16,
        'train_dataloader.drop_last': True,
        'hook': dict(by_epoch=False),
        'train_cfg': ConfigDict(
            _delete_=True, type='IterBasedTrainLoop', max_iters=4)
    }
])
def test_what_can_never_train_is_said_before(tmp_path, overrides):
    runner = toy_runner(tmp_path, **overrides)
    with pytest.raises(ValueError, match='yields no batch'):
        runner.train()


def test_a_record_that_cannot_be_written_does_not_end_the_training(tmp_path):
    (tmp_path / FILE_NAME).mkdir()  # cannot be replaced by a file
    toy_runner(tmp_path, max_epochs=1).train()
    assert 'the decisions record was not written' in log_of(tmp_path)
    assert not list(tmp_path.glob('*.tmp'))
    checkpoint = torch.load(tmp_path / 'epoch_1.pth')
    assert checkpoint['ela_prune_hook']['decisions'][0]['skipped']


@pytest.mark.parametrize('change', [
    dict(sums=torch.zeros(4)), dict(sums=[1., 2., 3.]), dict(values=[1.]),
    dict(values=torch.zeros(3)), dict(batches=[1] * 2000), None])
def test_a_state_that_is_none_is_refused(change):
    statistics = KLStatistics()
    p = torch.full((2, 1, 2), .5)
    statistics.update('layer1.1', p[..., :1] * 2, p)
    state = statistics.state_dict()
    KLStatistics().load_state_dict(state, 'cpu')
    state['layer1.1'] = change and {**state['layer1.1'], **change}
    with pytest.raises(UsageError, match='statistics of layer1.1 cannot be read'):
        KLStatistics().load_state_dict(state, 'cpu')
