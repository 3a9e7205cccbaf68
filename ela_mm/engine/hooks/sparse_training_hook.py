"""Sparse training: a share of the weights exists, all others stay 0."""
import json
import os.path as osp
import random
from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional, Sequence

import numpy as np
import torch
import torch.distributed as dist
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...compat.compiling import disable
from ...errors import UsageError
from ...sparsity.build import build_scheme
from ...sparsity.layers import sparse_layers
from ...sparsity.scheme import Tensors, check_density
from ...sparsity.state import count_lost, form_state, read_state
from ...sparsity.summary import densities, density_table, summary
from ..journal.record import write_whole
from ..lifetime import is_another_run, when_over
from ..ranks import unwrapped
from ..sanity import check_place
from ..surgery import optimizer_states

# Where the hook keeps its state in mmengine's checkpoints.
STATE_KEY = 'sparse_training_hook'
FILE_NAME = 'sparse_training.json'
FORMAT = 1


@HOOKS.register_module()
class SparseTrainingHook(Hook):
    """Trains a network of which only a share of the weights exists.

    A mask says which weights of convolutions and linear layers exist (see
    :func:`~ela_mm.sparsity.layers.sparse_layers`). All others are exactly 0
    before the first step and after every step, also in averaged models, so
    every checkpoint holds the sparse network and needs no conversion. Gradients
    are masked before DDP, clipping and the optimiser see them. Weights are
    masked again after the step, for optimisers that change weights without a
    gradient. Masks are saved in checkpoints, and a resumed run equals an
    uninterrupted one bit for bit. All ranks use the masks of rank 0.

    torch.nn.utils.prune and parametrisations are not used: they rename
    ``weight`` to ``weight_orig`` or ``parametrizations.weight.original`` in the
    state dict, the optimiser and every averaged copy. Checkpoints of the dense
    network would not load, nor those of the sparse network elsewhere, and
    weights that do not exist would keep values.

    The density per layer is logged and written to ``sparse_training.json`` in
    the work dir.

    Args:
        density (float): Share of the weights of masked layers that exists, in
            (0, 1]; a sparsity of 0.95 is a density of 0.05.
        scheme (dict, optional): ``type`` and parameters of the scheme:
            ``ERK`` or ``uniform``, fixed random masks; ``SNIP``, with
            ``batches``; ``RigL``, with ``interval``, ``fraction`` and
            ``until``. Defaults to ``dict(type='ERK')``.
        leave_out (Sequence[str]): Names of modules that stay dense, such as
            ``'head.fc'``. Defaults to ().
        seed (int, optional): Seed of random masks. Defaults to None: the seed
            of the run.

    Raises:
        UsageError: On wrong arguments; before training starts, on a model
            with nothing to mask, on a second hook of this type, on a model
            wrapper other than DistributedDataParallel, on a checkpoint of a
            run with other settings, and on gradients by which SNIP cannot
            rank.
    """

    # Before EMAHook (NORMAL) and CheckpointHook, after ELAPruneHook.
    priority = 45

    def __init__(self,
                 density: float,
                 scheme: Optional[dict] = None,
                 leave_out: Sequence[str] = (),
                 seed: Optional[int] = None) -> None:
        self.density = check_density(density)
        self.scheme = build_scheme(scheme)
        self.scheme_config = dict(scheme or dict(type='ERK'))
        self.leave_out = leave_out
        self.seed = seed
        self.masks: Tensors = {}
        self.updates: List[dict] = []
        self._weights: Dict[str, nn.Parameter] = {}
        self._dense: Dict[str, str] = {}
        self._absent: Tensors = {}  # complements of the masks
        self._handles: list = []
        self._resumed_state: Optional[dict] = None
        self._were_sparse = False  # weights of another run
        # Unmasked gradients of the running iteration; None: not needed.
        self._gradients: Optional[Tensors] = None

    # --- before training -----------------------------------------------------

    def before_run(self, runner) -> None:
        """Check the model and find what is to be masked."""
        if not isinstance(runner._train_loop, BaseLoop):
            return  # validation or test only
        if is_another_run(self, runner):
            self.masks, self.updates = {}, []
        if sum(isinstance(hook, type(self)) for hook in runner.hooks) > 1:
            raise UsageError('two SparseTrainingHooks: expected one, with one '
                             'density for the whole network')
        check_place(self, runner, 'before absent weights are 0 again')
        model = runner.model
        if is_model_wrapper(model) and not isinstance(
                model, DistributedDataParallel):
            raise UsageError(
                f'SparseTrainingHook cannot mask what {type(model).__name__} '
                'shards: expected no model wrapper or '
                'MMDistributedDataParallel')
        self._weights, self._dense = sparse_layers(unwrapped(model),
                                                   self.leave_out)
        when_over(runner.train_loop, lambda error: self._remove())

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the state for before_train; the weights are not loaded yet."""
        if runner._resume:
            self._resumed_state = checkpoint.get(STATE_KEY, {})
        else:
            self._were_sparse = STATE_KEY in checkpoint

    def before_train(self, runner) -> None:
        """Choose the masks, or restore those of a resumed run."""
        state, self._resumed_state = self._resumed_state, None
        if state:
            self.masks, self.updates = read_state(
                state, self.density, self.scheme_config, self._weights)
        elif not self.masks:  # else this process trains a second time
            if state is not None:
                runner.logger.warning(
                    'the checkpoint is of a run without SparseTrainingHook: '
                    'masks are chosen now')
            self.masks = self._choose(runner)
            self._warn_of_lost_weights(runner)
        for mask in self.masks.values():
            _from_main_rank(mask)
        self._absent = {name: ~mask for name, mask in self.masks.items()}
        self._apply(runner)
        for name, weight in self._weights.items():
            if weight.requires_grad:  # not in layers that are skipped by now
                self._handles.append(weight.register_hook(self._masking(name)))
        said = summary(self.masks, self.density, self._dense)
        runner.logger.info(f'{self.scheme_config["type"]}: {said}\n'
                           f'{density_table(self.masks)}')
        self._write_record(runner)

    def _warn_of_lost_weights(self, runner) -> None:
        lost, total = count_lost(self.masks, self._weights)
        if self._were_sparse and lost:
            runner.logger.warning(
                'the weights are of a sparse run, but only resume=True restores '
                f'its masks: new ones are chosen, and {lost} of its {total} '
                'weights become 0')

    def _choose(self, runner) -> Tensors:
        gradients = {}
        if self.scheme.batches:
            with _undisturbed(unwrapped(runner.model)):
                gradients = self._first_gradients(runner)
        seed = runner.seed if self.seed is None else self.seed
        return self.scheme.start(self._weights, self.density,
                                 torch.Generator().manual_seed(seed), gradients)

    def _first_gradients(self, runner) -> Tensors:
        """Compute mean gradients over some training batches of all ranks."""
        # Use a new loader if the config has one: a sampler of the run's own
        # loader would not start from the beginning again.
        loader = runner.cfg.get('train_dataloader')
        if isinstance(loader, dict):
            loader = runner.build_dataloader(loader, seed=runner.seed)
        else:
            loader = runner.train_dataloader
        model = unwrapped(runner.model)
        model.train()
        model.zero_grad()
        for _, data in zip(range(self.scheme.batches), loader):
            data = model.data_preprocessor(data, True)
            losses = model._run_forward(data, mode='loss')
            model.parse_losses(losses)[0].backward()
        gradients = {
            name: torch.zeros_like(weight)
            if weight.grad is None else weight.grad.clone()
            for name, weight in self._weights.items()
        }
        model.zero_grad(set_to_none=True)
        _mean_over_ranks(gradients)
        return gradients

    # --- while training ------------------------------------------------------

    def _masking(self, name: str):

        @disable  # else torch.compile compiles it once for each weight
        def mask_gradient(gradient: Tensor) -> Tensor:
            if self._gradients is not None:
                before = self._gradients.get(name, 0)
                self._gradients[name] = before + gradient.detach()
            return gradient.masked_fill(self._absent[name], 0)

        return mask_gradient

    def before_train_iter(self,
                          runner,
                          batch_idx: int,
                          data_batch=None) -> None:
        """Keep unmasked gradients if this iteration ends with an update."""
        self._gradients = {} if self._fraction(runner) else None

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch=None,
                         outputs: Optional[dict] = None) -> None:
        """Zero absent weights; exchange weights if an update is due."""
        for name, weight in self._weights.items():
            weight.data.masked_fill_(self._absent[name], 0)
        gradients, self._gradients = self._gradients, None
        if gradients is not None:
            self._update(runner, gradients)

    def _fraction(self, runner) -> float:
        """Return the share that this iteration exchanges, 0 if none is due."""
        interval, done = self.scheme.interval, runner.iter + 1
        if not interval or done % interval:
            return 0.
        return self.scheme.fraction(done / runner.max_iters)

    def _update(self, runner, gradients: Tensors) -> None:
        gradients = {  # skipped layers have no gradients
            name: gradients.get(name, torch.zeros_like(weight))
            for name, weight in self._weights.items()
        }
        _mean_over_ranks(gradients)
        if not all(g.isfinite().all() for g in gradients.values()):
            runner.logger.warning(
                f'masks stay as they are in iteration {runner.iter + 1}: '
                'gradients are not finite')
            return
        fraction, exchanged = self._fraction(runner), 0
        for name, weight in self._weights.items():
            if not gradients[name].any():
                continue
            mask = self.masks[name]
            new = self.scheme.update(weight, gradients[name], mask, fraction)
            _from_main_rank(new)
            exchanged += int((new & ~mask).sum())
            mask.copy_(new)
            self._absent[name].copy_(~new)
        self._apply(runner)
        self.updates.append(
            dict(iter=runner.iter + 1, fraction=fraction, exchanged=exchanged))
        runner.logger.info(f'{self.scheme_config["type"]}: exchanged '
                           f'{exchanged} weights, {fraction:.3g} of each layer')
        self._write_record(runner)

    def _apply(self, runner) -> None:
        """Zero absent weights, in averaged models and optimizer state too.

        Gradients that are being accumulated are masked as well.
        """
        networks = [unwrapped(runner.model)]
        for hook in runner.hooks:
            averaged = getattr(hook, 'ema_model', None)
            if averaged is not None:
                networks.append(averaged.module)
        state = {}
        for part in optimizer_states(runner.optim_wrapper):
            state.update(part)
        for name, absent in self._absent.items():
            tensors = [net.get_parameter(name) for net in networks]
            tensors += state.get(self._weights[name], {}).values()
            tensors.append(self._weights[name].grad)
            for tensor in tensors:
                if isinstance(tensor, Tensor) and tensor.shape == absent.shape:
                    tensor.data.masked_fill_(absent, 0)

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._gradients = None

    # --- reporting -----------------------------------------------------------

    def _write_record(self, runner) -> None:
        if not is_main_process():
            return
        record = dict(
            format=FORMAT, scheme=self.scheme_config, density=self.density,
            **densities(self.masks), dense=self._dense, updates=self.updates)
        try:
            write_whole(
                json.dumps(record, indent=1, allow_nan=False),
                osp.join(runner.work_dir, FILE_NAME))
        except OSError as error:  # checkpoints hold the masks as well
            runner.logger.warning(
                f'the record of sparse training was not written: {error}')

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add the masks."""
        if not self.masks:
            return  # the checkpoint is of no training
        checkpoint[STATE_KEY] = form_state(
            self.density, self.scheme_config, self.masks, self.updates)


def _from_main_rank(mask: Tensor) -> None:
    """Overwrite a mask with that of rank 0."""
    if is_distributed():
        numbers = mask.to(torch.uint8)  # older versions of gloo lack bool
        dist.broadcast(numbers, src=0)
        mask.copy_(numbers)


def _mean_over_ranks(tensors: Tensors) -> None:
    if is_distributed():
        for tensor in tensors.values():
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore a model's buffers and all random states afterwards."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    states = random.getstate(), np.random.get_state()
    device = next(model.parameters()).device
    devices = [device] if device.type == 'cuda' else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
