"""Runs of one seed see the same batches, whatever attention they have."""
import random

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner
from support.noisy import NoisyDataset  # noqa: F401  registers it
from support.toy import toy_config

from ela_mm import ReseedHook

KINDS = dict(
    plain=dict(attention=None), MRLA=dict(attention='base'),
    light=dict(attention='light'), ELA=dict(attention='base'))


class Witness(Hook):
    """Keeps every batch, and what would be drawn next in each step."""
    priority = 'LOWEST'

    def __init__(self):
        self.batches, self.draws = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append(data_batch['inputs'].clone())

    def before_train_epoch(self, runner):
        state = torch.get_rng_state(), np.random.get_state(), random.getstate()
        self.draws.append((float(torch.rand(())), np.random.rand(),
                           random.random()))
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])
        random.setstate(state[2])


def run_of(work_dir, kind, max_epochs=3, workers=0, **overrides):
    cfg = toy_config(
        work_dir, max_epochs=max_epochs,
        windows=[(1, 1)] if kind == 'ELA' else None,
        **{'train_dataloader.dataset.type': 'NoisyDataset',
           'train_dataloader.num_workers': workers,
           'train_dataloader.persistent_workers': workers > 0, **overrides})
    # Drop path draws as often as there are layers.
    cfg.model.backbone = ConfigDict(
        type='mmpretrain.ELAResNet', depth=34, base_channels=32,
        stem_channels=16, drop_path_rate=.5, **KINDS[kind])
    cfg.model.type = 'WideToy'
    if kind != 'ELA':
        cfg.custom_hooks = [dict(type='ReseedHook')]
    runner = Runner.from_cfg(cfg)
    witness = Witness()
    runner.register_hook(witness)
    runner.train()
    return runner, witness


@pytest.fixture(autouse=True)
def wide_toy():
    from mmengine.registry import MODELS
    from support.toy import ToyClassifier

    @MODELS.register_module(force=True)
    class WideToy(ToyClassifier):

        def __init__(self, backbone):
            super().__init__(backbone)
            self.head = torch.nn.Linear(256, 2)


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_twins_see_the_same_batches(tmp_path, loop):
    """Augmented by every generator, after networks that draw differently."""
    seen = {}
    for kind in KINDS:
        options = {} if loop == 'epochs' else {
            'train_cfg': ConfigDict(
                _delete_=True, type='IterBasedTrainLoop', max_iters=9),
            'train_dataloader.sampler.type': 'InfiniteSampler',
            'hook': dict(by_epoch=False)}
        runner, seen[kind] = run_of(tmp_path / kind, kind, **options)
    assert not runner.model.backbone.active.all()
    for witness in seen.values():
        assert len(witness.batches) == len(seen['plain'].batches) > 8
        for ours, theirs in zip(witness.batches, seen['plain'].batches):
            assert torch.equal(ours, theirs)
        if loop == 'epochs':  # else each batch is seeded, not the epoch
            assert witness.draws == seen['plain'].draws
    assert not torch.equal(*seen['plain'].batches[:2])


def test_a_plain_run_resumes_bit_for_bit(tmp_path):
    """Without ELAPruneHook, drop path and augmentation included."""
    whole, _ = run_of(tmp_path / 'a', 'MRLA')
    resumed, _ = run_of(tmp_path / 'b', 'MRLA', resume=True,
                        load_from=str(tmp_path / 'a' / 'epoch_1.pth'))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_fresh_norms_survive_a_resume_without_the_prune_hook(tmp_path):
    """The decision is in the network's own state."""

    def start(name, **overrides):
        cfg = toy_config(tmp_path / name, max_epochs=2, windows=None,
                         **overrides)
        cfg.model.backbone.norm_eval = True
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner.model

    whole = start('a')
    resumed = start('b', resume=True,
                    load_from=str(tmp_path / 'a' / 'epoch_1.pth'))
    assert len(resumed.backbone.fresh_norms) == 16
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize('shared', ['hook', 'loader'])
def test_a_hook_or_a_loader_of_an_earlier_run(tmp_path, shared):
    """As an object, which no config shares between runs."""
    cfg = toy_config(tmp_path, max_epochs=1, windows=None)
    cfg.train_dataloader.dataset.type = 'NoisyDataset'
    hook, seen = ReseedHook(), []
    for name in 'ab':
        if not seen or shared == 'hook':
            loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        if shared == 'loader':
            hook = ReseedHook()
        runner = Runner(
            cfg.model, str(tmp_path / name), loader, train_cfg=cfg.train_cfg,
            optim_wrapper=cfg.optim_wrapper, randomness=cfg.randomness,
            experiment_name=f'{tmp_path}_{name}')
        seen.append(Witness())
        for each in (hook, seen[-1]):
            runner.register_hook(each)
        runner.train()
    assert len(seen[0].batches) == 4
    for ours, theirs in zip(*(witness.batches for witness in seen)):
        assert torch.equal(ours, theirs)


def test_the_prune_hook_registers_it_where_nobody_has(tmp_path):
    runner, _ = run_of(tmp_path / 'a', 'ELA', max_epochs=1)
    assert sum(isinstance(h, ReseedHook) for h in runner.hooks) == 1
    cfg = toy_config(tmp_path / 'b', max_epochs=1,
                     hooks=[dict(type='ReseedHook')])
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert sum(isinstance(h, ReseedHook) for h in runner.hooks) == 1
