"""A run of the Runner in every family: prunes, goes on, resumes, reloads."""
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint
from support import ROOT
from support.families import FAMILIES, flat
from support.toy import ToyDataset, toy_config

from ela_mm.engine.journal.record import read_record

# Families that say something of their own of a run; the others are slow.
FAST = ('convnext', 'cspnext', 'swin_det', 'vit')


@MODELS.register_module(force=True)
class FamilyClassifier(BaseModel):
    """A backbone of any family and a linear classifier of its last output."""

    def __init__(self, backbone: dict) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.backbone.eval()
        with torch.no_grad():
            out = flat(self.backbone(torch.zeros(2, 3, 32, 32)))[-1]
        self.head = torch.nn.Linear(out.shape[1], 2)

    def forward(self, inputs, targets=None, mode='tensor'):
        features = flat(self.backbone(inputs))[-1]
        # TridentNet's branches stand one after the other in the batch.
        features = features.unflatten(0, (-1, len(inputs))).mean(0)
        logits = self.head(features.flatten(2).mean(2) if features.ndim == 4
                           else features)
        if mode == 'loss':
            return dict(
                loss=torch.nn.functional.cross_entropy(logits, targets))
        return logits


def config(name, work_dir, **overrides) -> Config:
    return toy_config(
        work_dir, hooks=[dict(type='ReseedHook'),
                         dict(type='EMAHook', momentum=.1)],
        model=dict(_delete_=True, type='FamilyClassifier',
                   backbone=FAMILIES[name].config), **overrides)


def answers(path) -> torch.Tensor:
    """What a checkpoint's network says to the pictures."""
    model = MODELS.build(Config.fromfile(
        next(path.parent.glob('*.py'))).model)
    load_checkpoint(model, str(path), map_location='cpu', strict=True)
    model.eval()
    with torch.no_grad():
        return model(ToyDataset().images)


@pytest.mark.parametrize('name', [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in FAMILIES])
def test_a_run_prunes_resumes_bit_equal_and_reloads(tmp_path, name):
    first, second = tmp_path / 'first', tmp_path / 'second'
    Runner.from_cfg(config(name, first)).train()
    (decision, ) = read_record(first)['decisions']
    layers = len(MODELS.build(FAMILIES[name].config).attention_layers)
    assert 0 < decision['active'] < layers
    resumed = config(name, second, load_from=str(first / 'epoch_2.pth'),
                     resume=True)
    Runner.from_cfg(resumed).train()
    states = [torch.load(folder / 'epoch_3.pth', weights_only=True)
              for folder in (first, second)]
    for key in ('state_dict', 'ema_state_dict'):
        ours, others = (state[key] for state in states)
        assert ours.keys() == others.keys()
        assert all(torch.equal(ours[k], others[k]) for k in ours)
    mask = states[0]['state_dict']['backbone.active']
    assert int(mask.sum()) == decision['active']
    torch.save(answers(first / 'epoch_3.pth'), tmp_path / 'answers.pth')
    assert torch.equal(answers(second / 'epoch_3.pth'),
                       torch.load(tmp_path / 'answers.pth'))


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_a_pruned_network_is_the_same_in_a_fresh_process(tmp_path, name):
    Runner.from_cfg(config(name, tmp_path, max_epochs=1)).train()
    path = tmp_path / 'epoch_1.pth'
    script = (
        'import sys, torch; from pathlib import Path\n'
        'from families.test_runs import answers\n'
        'torch.save(answers(Path(sys.argv[1])), sys.argv[1] + ".answers")\n')
    subprocess.run([sys.executable, '-W', 'ignore', '-c', script, str(path)],
                   check=True, cwd=ROOT / 'tests')
    there = torch.load(f'{path}.answers')
    assert there.isfinite().all()
    assert torch.equal(there, answers(path))
