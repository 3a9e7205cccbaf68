"""Adds the CKA-SR regulariser to the losses of a training."""
import logging
from typing import Dict, Optional, Sequence, Set

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop
from torch import Tensor

from ...compat.compiling import disable
from ...errors import UsageError, check_numbers
from ...sparsity.cka import MIN_SAMPLES, aug_cka_sr, cka_sr, pooled
from ...sparsity.stages import Stages, block_features, find_stages
from ..lifetime import is_another_run, when_over
from ..ranks import unwrapped

LOSS = 'loss_cka'
# For each variant: its function, and whether it uses the unbiased HSIC.
VARIANTS = {'CKA-SR': (cka_sr, True), 'AugCKA-SR': (aug_cka_sr, False)}


@HOOKS.register_module()
class CKARegularizationHook(Hook):
    """Adds the similarity of a backbone's blocks to the model's losses.

    While the model trains, the hook collects the outputs of its blocks and adds
    ``loss_cka`` to the dictionary of losses. It is logged, summed and
    differentiated like every other loss: within the forward pass that DDP
    wraps, and scaled by gradient accumulation and AMP. It is computed in
    float64 outside of autocast. If activation checkpointing runs a block again
    in the backward pass, only its first output counts. Nothing enters the state
    dict, and nothing stays in the model when training ends, also by an
    exception.

    The feature of a block is its output, after its last relu. In a stage with
    layer attention that is before the attention term is added. The paper
    compares residual blocks; besides, the term is retrieved from the outputs of
    other blocks, so that the loss would penalise attention for its very
    purpose. If a block runs several times in a step, as in siamese networks,
    its first output counts.

    Args:
        weight (float): Weight of the loss. Defaults to 1e-4, the paper's value
            for CIFAR (ImageNet 1e-5). A good value depends on depth, see
            :func:`~ela_mm.sparsity.cka.cka_sr`.
        samples (int): Number of samples of each batch to use, the first ones
            on each rank; -1 uses all. Defaults to 8, the paper's value for
            CIFAR.
        interval (int): Interval in batches at which the loss is added; other
            batches have no ``loss_cka``. Defaults to 5, the paper's value for
            CIFAR.
        variant (str): ``'CKA-SR'`` compares pairs of blocks within stages,
            ``'AugCKA-SR'`` all pairs. Defaults to ``'CKA-SR'``.
        max_features (int): Largest number of features per sample and block;
            larger maps, such as those of 800 x 1333 pixels in detection, are
            average-pooled first. Defaults to 2**20, which is enough for all
            maps of a ResNet-152 at 224 pixels: 8 MiB per sample and block in
            float64. This project's choice.
        stages (Sequence[str], optional): Names of the sequences of blocks in
            the model. Defaults to None: found by
            :func:`~ela_mm.sparsity.stages.find_stages`.

    Raises:
        UsageError: On wrong arguments; before training starts, on a model
            without stages of two blocks, on batches with fewer than 4 samples
            (``'AugCKA-SR'``: 3), and on a second hook of this type; in its
            first iteration, on a block whose output is no tensor and on a
            model whose training step does not call ``forward(mode='loss')``.
    """

    def __init__(self,
                 weight: float = 1e-4,
                 samples: int = 8,
                 interval: int = 5,
                 variant: str = 'CKA-SR',
                 max_features: int = 2**20,
                 stages: Optional[Sequence[str]] = None) -> None:
        check_numbers(weight=weight)
        check_numbers(whole=True, samples=samples, interval=interval,
                      max_features=max_features)
        if not isinstance(variant, str) or variant not in VARIANTS:
            raise UsageError(f'variant={variant!r}: expected one of '
                             f'{", ".join(VARIANTS)}')
        if not 0 < weight < float('inf'):
            raise UsageError(f'weight={weight}: expected a positive number; '
                             'leave the hook out to train without it')
        self.regularizer, unbiased = VARIANTS[variant]
        self.least = MIN_SAMPLES[unbiased]
        if samples != -1 and samples < self.least:
            raise UsageError(f'samples={samples}: {variant} needs at least '
                             f'{self.least}, or -1 for all of a batch')
        for name, value in dict(interval=interval,
                                max_features=max_features).items():
            if value < 1:
                raise UsageError(f'{name}={value}: expected at least 1')
        self.weight = weight
        self.samples = samples
        self.interval = interval
        self.variant = variant
        self.max_features = max_features
        self.stages = stages
        self._blocks: Stages = {}
        self._handles: list = []
        self._due = False  # whether this iteration gets the loss
        self._asked = False  # whether the model was called for its losses
        # Features of the running forward pass by block; None: not collecting.
        self._features: Optional[Dict[str, Tensor]] = None
        self._said: Set[str] = set()

    # --- around the training -------------------------------------------------

    def before_run(self, runner) -> None:
        """Check model and batches."""
        if not isinstance(runner._train_loop, BaseLoop):
            return  # validation or test only
        if is_another_run(self, runner):
            self._said.clear()
        if sum(isinstance(hook, type(self)) for hook in runner.hooks) > 1:
            raise UsageError('two CKARegularizationHooks: expected one, whose '
                             'loss is weighted by its weight')
        self._check_batches(runner.train_dataloader)
        model = unwrapped(runner.model)
        stages = find_stages(model, self.stages)
        if self.variant == 'AugCKA-SR':  # knows no stages
            every = {k: v for blocks in stages.values()
                     for k, v in blocks.items()}
            stages = {'the network': every}
        single = [name for name, blocks in stages.items() if len(blocks) < 2]
        for name in single:
            del stages[name]
        if not stages:
            raise UsageError(
                f'{type(model).__name__} has no stage of two blocks '
                f'({", ".join(single)} have one each): nothing to compare')
        self._blocks = stages
        described = ', '.join(f'{name} ({len(blocks)})'
                              for name, blocks in stages.items())
        runner.logger.info(
            f'{self.variant} compares the blocks of {described}' +
            (f'; left out, with a single block: {", ".join(single)}'
             if single else ''))
        when_over(runner.train_loop, lambda error: self._remove())

    def _check_batches(self, loader) -> None:
        sampler = getattr(loader, 'batch_sampler', None)
        size = getattr(sampler, 'batch_size', None)
        if size is not None and size < self.least:
            raise UsageError(
                f'train_dataloader.batch_size={size}: {self.variant} compares '
                f'at least {self.least} samples of one process; raise it to '
                f'{self.least}' + (", or to 3 with variant='AugCKA-SR'"
                                   if self.least == 4 else ''))

    def before_train(self, runner) -> None:
        """Register hooks on the model, after others have copied it."""
        # Functions, not methods: copying the model later would copy the object
        # of a method as well.
        def watch(name):
            return lambda block, args, output: self._see(name, output)

        for blocks in self._blocks.values():
            for name, block in blocks.items():
                self._handles.append(block.register_forward_hook(watch(name)))
        model = unwrapped(runner.model)
        self._handles += [
            model.register_forward_pre_hook(
                lambda model, args, kwargs: self._begin(kwargs),
                with_kwargs=True),
            model.register_forward_hook(
                lambda model, args, kwargs, losses: self._end(kwargs, losses),
                with_kwargs=True)
        ]

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._due, self._features = False, None

    # --- around an iteration -------------------------------------------------

    def before_train_iter(self,
                          runner,
                          batch_idx: int,
                          data_batch=None) -> None:
        """Note whether this batch gets the loss."""
        self._due = runner.iter % self.interval == 0
        self._asked = False

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch=None,
                         outputs: Optional[dict] = None) -> None:
        """Check that the model was called for its losses."""
        if self._due and not self._asked:
            name = type(unwrapped(runner.model)).__name__
            raise UsageError(
                f'the training step of {name} '
                "does not call forward(mode='loss'), as mmengine's BaseModel "
                'does: CKARegularizationHook has no losses to add to')
        self._due = False

    # --- within the model's forward pass -------------------------------------

    def _begin(self, kwargs: dict) -> None:
        if self._due and kwargs.get('mode') == 'loss':
            self._asked = True
            self._features = {}

    def _see(self, name: str, output: Tensor) -> None:
        if self._features is None or name in self._features:
            return
        output = block_features(output)
        if not isinstance(output, Tensor):
            raise UsageError(
                f'block {name} returns a {type(output).__name__}: expected a '
                'tensor; name the sequences of blocks by stages=[...]')
        samples = len(output) if self.samples == -1 else self.samples
        self._features[name] = output[:samples]

    def _end(self, kwargs: dict, losses: dict) -> Optional[dict]:
        if self._features is None or kwargs.get('mode') != 'loss':
            return None
        features, self._features = self._features, None
        loss = self._loss(features)
        return losses if loss is None else {**losses, LOSS: loss}

    @disable
    def _loss(self, seen: Dict[str, Tensor]) -> Optional[Tensor]:
        """Compute the weighted loss; if impossible, warn and return None."""
        stages = []
        for stage, blocks in self._blocks.items():
            features = [seen[name] for name in blocks if name in seen]
            if any(feature.requires_grad for feature in features):
                stages.append(features)
            elif torch.is_grad_enabled():
                self._say(f'{stage}, whose features carry no gradient: frozen, '
                          'or recomputed by a reentrant checkpoint around it')
        features = [feature for stage in stages for feature in stage]
        if not features:
            return None
        if len(features[0]) < self.least:
            self._say(f'batches of {len(features[0])} samples, fewer than '
                      f'{self.least}')
            return None
        finite = torch.stack([x.isfinite().all() for x in features]).all()
        if not finite:
            bad = next(n for n, x in seen.items() if not x.isfinite().all())
            self._say(f'iterations with NaN or infinite features (in {bad})')
            return None
        with torch.autocast(features[0].device.type, enabled=False):
            similarity = self.regularizer([[
                pooled(x, self.max_features) for x in stage
            ] for stage in stages])
        return (self.weight * similarity).float()

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            print_log(f'{LOSS} leaves out {what}', 'current',
                      logging.WARNING)

