"""A run of the Runner in every family: prunes, goes on, resumes, reloads."""
import os
import subprocess
import sys

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner
from support import ROOT
from support.families import FAMILIES, TWINS
from support.family_runs import answers, config, write_answers
from support.running import in_a_fresh_process

from ela_mm.engine.journal.record import read_record

# Families that say something of their own of a run; the others are slow.
FAST = ('convnext', 'cspnext', 'swin_det', 'vit')


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
    states = [torch.load(folder / 'epoch_3.pth')
              for folder in (first, second)]
    for key in ('state_dict', 'ema_state_dict'):
        ours, others = (state[key] for state in states)
        assert ours.keys() == others.keys()
        assert all(torch.equal(ours[k], others[k]) for k in ours)
    mask = states[0]['state_dict']['backbone.active']
    assert int(mask.sum()) == decision['active']
    there = tmp_path / 'answers.pth'
    in_a_fresh_process(write_answers, first / 'epoch_3.pth', there)
    here = answers(second / 'epoch_3.pth')
    assert here.isfinite().all() and torch.equal(here, torch.load(there))


@pytest.mark.slow
def test_two_processes_prune_alike_and_go_on(tmp_path):
    """DDP is wrapped anew around what is left."""
    names = [name for name in FAMILIES if name not in TWINS]
    environment = {
        **os.environ, 'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join(filter(None, [
            str(ROOT / 'tests'), str(ROOT), os.environ.get('PYTHONPATH')]))
    }
    process = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc_per_node=2', '-m', 'support.family_runs', str(tmp_path),
         *names],
        env=environment, capture_output=True, text=True, timeout=1800)
    assert process.returncode == 0, process.stderr[-3000:]
    for name in names:
        ranks = [torch.load(tmp_path / name / f'rank{rank}.pth')
                 for rank in range(2)]
        for rank in ranks:
            assert rank['decisions'][0]['skipped'], name
            assert rank['in_buckets'] == rank['trainable'], name
            assert rank['gradient_error'] < 1e-6, name
        for key, value in ranks[0]['state'].items():
            if 'running_' not in key:  # each rank's own
                assert torch.equal(value, ranks[1]['state'][key]), (name, key)
