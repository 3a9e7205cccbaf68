"""The toy with everything that draws random numbers, and ways to die.

Imported by the configs of test_resume.py. The environment variable FAULT says
where the process dies, such as ``iteration:6``; without it nothing happens.
"""
import os
import random
import resource
import signal
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.fileio.backends import LocalBackend
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, METRICS

from ela_mm.engine.hooks import ela_prune_hook  # noqa: F401  before a fork
from support.toy import ToyDataset


@DATASETS.register_module(force=True)
class NoisyDataset(ToyDataset):
    """Augmented by all three generators."""

    def __getitem__(self, index):
        data = super().__getitem__(index)
        noise = torch.rand(()) + np.random.rand() + random.random()
        return dict(data, inputs=data['inputs'] + noise)


@METRICS.register_module(force=True)
class NoisyMetric(BaseMetric):
    """The mean logit, with noise as of a detector that samples its boxes."""
    default_prefix = 'noisy'

    def process(self, data_batch, data_samples):
        self.results += [float(x.sum() + torch.rand(())) for x in data_samples]

    def compute_metrics(self, results):
        return dict(score=float(np.mean(results)))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module(force=True)
class Fault(Hook):
    """Dies as FAULT says. At its priority, right after a decision."""
    priority = 'ABOVE_NORMAL'

    def __init__(self):
        self.kind, _, self.where = os.environ.get('FAULT', ':').partition(':')
        if self.kind == 'write':  # in the middle of a checkpoint
            self.put = LocalBackend.put
            LocalBackend.put = self.write_half
        elif self.kind == 'name':  # in the middle of last_checkpoint
            self.put = LocalBackend.put
            LocalBackend.put = self.write_and_truncate
        elif self.kind == 'full':  # no file can grow beyond
            size = int(self.where)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    def write_half(self, content, path):
        if Path(path).name == self.where:
            Path(path).write_bytes(content[:len(content) // 2])
            die()
        self.put(LocalBackend(), content, path)

    def write_and_truncate(self, content, path):
        self.put(LocalBackend(), content, path)
        if Path(path).name == self.where:
            Path(path).with_name('last_checkpoint').write_text('')
            die()

    def after_train_iter(self, runner, *args, **kwargs):
        if (self.kind, self.where) == ('iteration', str(runner.iter + 1)):
            die()

        if (self.kind, self.where) == ('interrupt', str(runner.iter + 1)):
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does

    def after_train_epoch(self, runner):
        if (self.kind, self.where) == ('epoch', str(runner.epoch + 1)):
            die()

    def before_val_iter(self, runner, *args, **kwargs):
        if (self.kind, self.where) == ('validation', str(runner.epoch)):
            die()
