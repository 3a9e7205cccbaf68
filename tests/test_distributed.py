"""Pruning under DDP: two processes with gloo, as torchrun starts them."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def launch(folder, windows, *arguments):
    process = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc_per_node=2', str(HERE / 'ddp_toy.py'), str(folder),
         json.dumps(windows), *map(str, arguments)],
        cwd=HERE, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    return [torch.load(folder / f'rank{rank}.pth') for rank in (0, 1)]


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ddp')
    return folder, launch(folder, [(1, 1), (2, 2)])


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    for name in a:
        # Norm statistics are each rank's own, as mmengine leaves them.
        if 'running_' not in name:
            assert torch.equal(a[name], b[name]), name


def test_ranks_decide_and_train_alike(ranks):
    _, (first, second) = ranks
    assert_equal_states(first['state'], second['state'])
    assert 0 < first['state']['backbone.active'].sum() < 16
    for ours, theirs in zip(first['decisions'], second['decisions']):
        assert ours['layers'] == theirs['layers']
        assert ours['skipped'] == theirs['skipped']


def test_both_ranks_data_count(ranks):
    """Each rank sees half of the data; the statistics are of all of it."""
    _, (first, _) = ranks
    assert first['decisions'][0]['samples'] == 8


def test_buckets_hold_no_skipped_parameter(ranks):
    _, both = ranks
    for rank in both:
        assert rank['in_buckets'] == rank['trainable']


def test_resume_wraps_the_pruned_network(ranks, tmp_path):
    folder, (first, _) = ranks
    resumed, other = launch(tmp_path, [(1, 1), (2, 2)],
                            folder / 'epoch_2.pth')
    assert_equal_states(resumed['state'], first['state'])
    assert resumed['in_buckets'] == resumed['trainable'] == first['trainable']
    assert other['decisions'][0]['skipped'] == first['decisions'][0]['skipped']


def test_resume_inside_a_window_keeps_all_ranks_statistics(tmp_path):
    for name in 'ab':
        (tmp_path / name).mkdir()
    whole, _ = launch(tmp_path / 'a', [(1, 2)])
    resumed, _ = launch(tmp_path / 'b', [(1, 2)], tmp_path / 'a/epoch_1.pth')
    ours, theirs = resumed['decisions'][0], whole['decisions'][0]
    assert ours['samples'] == theirs['samples'] == 16
    assert ours['layers'] == theirs['layers']
