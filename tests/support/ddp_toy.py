"""What the tests of distributed training add to the toy.

The config that they write names this module in ``custom_imports``, and
``tools/train.py`` runs it.
"""
import copy
import json
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.dataset import DefaultSampler
from mmengine.dist import get_rank, get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.registry import DATA_SAMPLERS, HOOKS, METRICS, MODELS

from ela_mm.engine import ELAPruneHook, ranks
from ela_mm.engine.hooks.ela_prune_hook import find_backbone
from ela_mm.engine.journal.record import decision_to_json
from ela_mm.pruning import statistics
from support import pictures  # noqa: F401  registers a dataset
from support.toy import ToyClassifier


class Counting:
    """Passes calls on to a module, and notes its collectives."""

    def __init__(self, module, calls) -> None:
        self._module, self._calls = module, calls

    def __getattr__(self, name):
        function = getattr(self._module, name)
        if name not in ('all_reduce', 'broadcast'):
            return function

        def noted(tensor, *args, **kwargs):
            self._calls.append([name, tensor.numel() * tensor.element_size()])
            return function(tensor, *args, **kwargs)

        return noted


@MODELS.register_module(force=True)
class ReducingClassifier(ToyClassifier):
    """Its loss has a normaliser of all ranks, as ATSS's, FCOS's or DETR's."""

    def forward(self, inputs, targets=None, mode='tensor'):
        result = super().forward(inputs, targets, mode)
        if mode == 'loss':
            count = torch.ones(1) / get_world_size()
            dist.all_reduce(count)  # mmdet's reduce_mean
            result['loss'] = result['loss'] / count.squeeze()
        return result


@HOOKS.register_module(force=True)
class Witness(Hook):
    """Every rank writes what it ended with."""
    priority = 'LOWEST'

    def __init__(self) -> None:
        self.calls = []

    def before_run(self, runner) -> None:
        statistics.dist = Counting(dist, self.calls)
        for name in ('all_gather_object', 'broadcast_object_list',
                     'all_reduce'):
            self._note(name)

    def _note(self, name) -> None:
        function = getattr(ranks, name)
        alias = 'extremes' if name == 'all_reduce' else name

        def noted(*args, **kwargs):
            self.calls.append([alias, None])
            return function(*args, **kwargs)

        setattr(ranks, name, noted)

    def before_train_epoch(self, runner) -> None:
        self.calls.append(['epoch', runner.epoch + 1])

    def after_train(self, runner) -> None:
        self.calls.append(['end', None])
        ddp, module = runner.model, runner.model.module
        torch.save(
            dict(
                state=module.state_dict(),
                decisions=[decision_to_json(d) for d in
                           find(runner).decisions],
                in_buckets=ddp._get_ddp_logging_data()
                ['num_parameter_tensors'],
                trainable=sum(p.requires_grad for p in module.parameters()),
                find_unused=ddp.find_unused_parameters,
                momenta=len(runner.optim_wrapper.optimizer.state),
                calls=json.dumps(self.calls),
                watched=next((h.calls for h in runner.hooks
                              if isinstance(h, FreezeAndWatch)), None),
                gradient_error=gradient_error(runner)),
            Path(runner.work_dir) / f'rank{get_rank()}.pth')


def find(runner) -> ELAPruneHook:
    return next(h for h in runner.hooks if isinstance(h, ELAPruneHook))


def gradient_error(runner) -> float:
    """DDP's gradients against those of one process on all ranks' pictures.

    Norms are frozen and equal, so that both compute the same thing. DDP is
    compared with the mean of what the ranks compute without it, and this mean
    with the whole in double precision: some gradients are 0 but for rounding,
    which in single precision is all that there is to compare. So is that of a
    bias before PoolFormer's pooling, which subtracts what it is given.
    """
    ddp, module = runner.model, runner.model.module
    for buffer in module.buffers():
        if buffer.is_floating_point():
            dist.broadcast(buffer, src=0)
    images = runner.train_dataloader.dataset.images[:6].to(
        next(module.parameters()).device)
    part = slice(get_rank(), None, get_world_size())
    alone, precise = copy.deepcopy(module), copy.deepcopy(module).double()
    own = gradients(alone, images, part)
    halves = gradients(precise, images.double(), part)
    for mean in (own, halves):
        for gradient in filter(torch.is_tensor, mean):
            dist.all_reduce(gradient)
            gradient /= get_world_size()
    whole = gradients(precise, images.double(), slice(None))
    return float(torch.tensor([
        relative_error(gradients(ddp, images, part), own),
        relative_error(halves, whole)]).max())


def gradients(model, images, part) -> list:
    """Of every parameter, from some of the pictures; None where it has none."""
    model.eval()
    for layer in model.modules():
        if hasattr(layer, 'attention_biases'):
            # LeViT's and TinyViT's are constants in evaluation, and DDP waits
            # for all gradients that it has in training.
            layer.training = True
    model.zero_grad()
    targets = torch.arange(len(images), device=images.device) % 2
    model(images[part], targets[part], mode='loss')['loss'].backward()
    return [None if p.grad is None else p.grad.clone()
            for p in model.parameters()]


def relative_error(ours: list, theirs: list) -> float:
    """The largest, each relative to its parameter's largest gradient."""
    assert [x is None for x in ours] == [x is None for x in theirs]
    pairs = [(a, b) for a, b in zip(ours, theirs) if a is not None]
    least = 1e-6 * max(b.abs().max() for _, b in pairs)
    return float(torch.stack([  # in which a NaN counts
        (a - b).abs().max() / b.abs().max().clamp(min=least)
        for a, b in pairs]).max())


class Opposite:
    """A criterion that would skip what another keeps."""

    def __init__(self, criterion) -> None:
        self.config, self._criterion = criterion.config, criterion

    def __call__(self, values):
        skip, mapped = self._criterion(values)
        return [not gone for gone in skip], mapped


@HOOKS.register_module(force=True)
class Fault(Hook):
    """Something goes wrong on one rank, before one iteration (from 0).

    A mask or a verdict of its own it has before training starts.
    """
    priority = 'LOWEST'

    def __init__(self, kind: str, rank: int, at: int) -> None:
        self.kind, self.rank, self.at = kind, rank, at

    def before_run(self, runner) -> None:
        if get_rank() != self.rank:
            return
        if self.kind == 'mask':
            find_backbone(runner.model).skip_layers(['layer1.1'])
        if self.kind == 'verdict':
            find(runner).criterion = Opposite(find(runner).criterion)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if get_rank() != self.rank or runner.iter != self.at:
            return
        if self.kind == 'exception':
            raise RuntimeError('a fault for the test')
        if self.kind == 'drift':
            runner.model.module.head.bias.data += 1e-3
        if self.kind == 'sigkill':
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == 'hang':
            time.sleep(600)
        if self.kind == 'nan':
            layers = find(runner).backbone.attention_layers
            last = [layer.name for layer in layers if layer.active][-1]
            find(runner).statistics.update(
                last, torch.full((2, 8, 1), torch.nan), torch.ones(2, 8, 2))


@HOOKS.register_module(force=True)
class FreezeAndWatch(Hook):
    """The backbone rests in the first two epochs; the wrapper is watched."""

    def __init__(self) -> None:
        self.calls = dict(forward=0, gradients=0)

    def before_train(self, runner) -> None:
        def see(module, args, output):
            self.calls['forward'] += module.training

        runner.model.register_forward_hook(see)
        runner.model.register_comm_hook(self, sum_and_count)

    def before_train_epoch(self, runner) -> None:
        runner.model.module.backbone.requires_grad_(runner.epoch >= 2)


def sum_and_count(hook: FreezeAndWatch,
                  bucket: dist.GradBucket
                  ) -> torch.futures.Future[torch.Tensor]:
    """A communication hook, which averages as DDP itself does."""
    hook.calls['gradients'] += bucket.is_last()
    buffer = bucket.buffer() / get_world_size()
    return dist.all_reduce(buffer, async_op=True).get_future().then(
        lambda future: future.value()[0])


@HOOKS.register_module(force=True)
class SaveBetween(Hook):
    """Saves as a user's own hook may, at any iteration (from 1)."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        if runner.iter + 1 == self.at:
            runner.save_checkpoint(runner.work_dir, 'between.pth',
                                   by_epoch=False)


@METRICS.register_module(force=True)
class Rising(BaseMetric):
    """Better with every iteration: each validation saves a best checkpoint."""

    def process(self, data_batch, data_samples) -> None:
        self.results += data_samples

    def compute_metrics(self, results) -> dict:
        iteration = MessageHub.get_current_instance().get_info('iter')
        return dict(score=float(iteration))


@DATA_SAMPLERS.register_module(force=True)
class UnevenSampler(DefaultSampler):
    """Gives rank 1 fewer pictures than the others."""

    def __len__(self) -> int:
        return self.num_samples - 2 * (self.rank == 1)

    def __iter__(self):
        return iter(list(super().__iter__())[:len(self)])
