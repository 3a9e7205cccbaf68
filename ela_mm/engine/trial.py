"""Measures how much a network loses without some of its layers."""
import contextlib
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from typing import Any, Callable, Dict, FrozenSet, Iterable, Iterator, List, Sequence

import numpy as np
import torch
from torch import nn

from ..errors import UsageError
from ..hosts.registration import host_of_model
from ..models.backbones.layer_attention_mixin import find_backbone
from .randomness import own_stream


class Trial:
    """Measures the loss of a network without some layers, on fixed batches.

    It works on a copy in eval mode, so that the network itself, the statistics
    of its norms and the random numbers of the training do not change. Copy and
    batches are made at the first measurement and stay in memory. Implements
    :class:`ela_mm.pruning.by_loss.Network`.

    Args:
        model (nn.Module): Model of any host, without a wrapper.
        batches (Iterable): Batches with annotations, as a data loader returns
            them.
        sizes (Sequence[int]): Number of images in each batch.
        candidates (List[str]): Names of the active layers to choose from.
        skip (str): How layers are skipped, see ``skip_layers`` of the
            backbone. Defaults to ``'layer'``.

    Attributes:
        announce (Callable): Called with the names of each set of layers right
            before it is tried. Does nothing unless it is set.
    """

    def __init__(self,
                 model: nn.Module,
                 batches: Iterable[Any],
                 sizes: Sequence[int],
                 candidates: List[str],
                 skip: str = 'layer') -> None:
        self.candidates = candidates
        self.announce: Callable[[FrozenSet[str]], Any] = lambda names: None
        self._original = model
        self._source = batches
        self._sizes = list(sizes)
        self._skip = skip
        self._losses: Dict[FrozenSet[str], np.ndarray] = {}

    @cached_property
    def _model(self) -> nn.Module:
        return copy_of(self._original).eval()

    @cached_property
    def _batches(self) -> List[Any]:
        return list(self._source)

    @property
    def tried(self) -> int:
        """Number of sets of layers that were tried so far."""
        return max(len(self._losses) - 1, 0)

    def added_loss(self, names: Sequence[str]) -> float:
        """Measure what skipping some layers together adds to the loss.

        Args:
            names (Sequence[str]): Names of the layers, out of ``candidates``.

        Returns:
            float: Loss without these layers minus loss with them, averaged
            over images.
        """
        added = self._losses_without(names) - self._losses_without(())
        return float(np.average(added, weights=self._sizes))

    def follow(self, names: Iterable[str]) -> None:
        """Try what another rank tries, whose losses count.

        Losses of detectors average their normalisers over all ranks
        (``reduce_mean``), so that no rank can compute one alone.

        Args:
            names (Iterable[str]): Names of the layers that it announced.
        """
        with contextlib.suppress(Exception):  # the other rank reports it
            self._losses_without(tuple(names))

    def _losses_without(self, names: Sequence[str]) -> np.ndarray:
        key = frozenset(names)
        if key not in self._losses:
            self.announce(key)
            with without(self._model, names, self._skip):
                self._losses[key] = np.array(
                    [loss_of(self._model, batch) for batch in self._batches])
        return self._losses[key]


@contextmanager
def without(model: nn.Module,
            names: Sequence[str],
            skip: str = 'layer') -> Iterator[None]:
    """Skip active layers within this context.

    Args:
        model (nn.Module): Model with one ELA backbone, without a wrapper.
        names (Sequence[str]): Names of active layers.
        skip (str): How to skip them, see ``skip_layers`` of the backbone.
            Defaults to ``'layer'``.
    """
    backbone = find_backbone(model)
    backbone.skip_layers(names, skip)
    try:
        yield
    finally:
        backbone.restore_layers(names)


def copy_of(model: nn.Module) -> nn.Module:
    """Copy a network in the middle of a training.

    Hooks on modules are shared with the copy, since copying one may copy the
    whole training that it refers to. Forward hooks on the model itself, which
    may change its losses, are removed from the copy.

    Args:
        model (nn.Module): Model without a wrapper.

    Returns:
        nn.Module: The copy.
    """
    shared = {
        id(hook): hook
        for module in model.modules()
        for name in ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks')
        for hook in getattr(module, name).values()
    }
    copied = deepcopy(model, shared)
    copied._forward_hooks.clear()
    copied._forward_pre_hooks.clear()
    return copied


@torch.no_grad()
def loss_of(model: nn.Module, batch: Any) -> float:
    """Compute a network's loss, with the same random numbers each time.

    Args:
        model (nn.Module): Model in eval mode.
        batch (Any): Batch as a data loader returns it, images of different
            sizes included; not changed.

    Returns:
        float: Sum of all losses of the model.

    Raises:
        UsageError: If the batch has no annotations.
    """
    data = host_of_model(model).preprocess(model, deepcopy(batch))
    device = next(model.parameters()).device
    devices = [device] if device.type == 'cuda' else []
    # Detectors sample proposals at random.
    with own_stream(0), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        try:
            losses = model._run_forward(data, mode='loss')
        except (AttributeError, KeyError, TypeError) as error:
            raise UsageError(
                f'the loss cannot be computed ({type(error).__name__}: '
                f'{error}): the pipeline of the pictures has to load '
                'annotations') from error
        return float(model.parse_losses(losses)[0])
