import os
from pathlib import Path

# Before torch reads it. The networks are too small for more threads, which only
# wait for each other on a busy machine. Processes that tests start inherit it.
os.environ.setdefault('OMP_NUM_THREADS', '1')

from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import base_dataset

import ela_mm  # noqa: F401  registers, and makes mmcv-lite enough
from ela_mm.datasets.digits import make_digits

os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')  # the same run everywhere
# For every dataset, which takes half a second in a process of this size.
base_dataset.gc = SimpleNamespace(collect=lambda: None)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def digits_root(tmp_path_factory) -> Path:
    """A few pictures of digits, in COCO's format."""
    root = tmp_path_factory.mktemp('data') / 'digits'
    make_digits(str(root), num_train=12, num_val=4, size=64, seed=1)
    return root
