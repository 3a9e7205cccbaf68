"""Measures which layers a layer attends to, and how redundant it is."""
from typing import Dict, Iterable, List, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..apis.data import network_inputs
from ..engine.sanity import check_finite
from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import LayerAttentionMixin, find_backbone
from ..models.backbones.stages import AttentionLayerInfo
from ..pruning import KLStatistics, LayerKL


class AttentionRow(NamedTuple):
    """The attention weights of one layer, P of equation 4.

    Attributes:
        name (str): Name of the layer.
        stage (int): Number of its stage, from 1.
        sources (List[str]): n names of the layers whose values it sums, its
            own last.
        mean (np.ndarray): (n, ), mean over images and heads; sums to 1.
        std (np.ndarray): (n, ), standard deviation over images and heads.
    """
    name: str
    stage: int
    sources: List[str]
    mean: np.ndarray
    std: np.ndarray


class Measured(NamedTuple):
    """Attention weights and redundancy of a network on some images.

    Attributes:
        images (int): Number of images.
        layers (List[AttentionLayerInfo]): All attention layers of the network.
        rows (List[AttentionRow]): Weights of the active layers.
        kl (Dict[str, LayerKL]): KL divergences by name, of layers with a
            predecessor.
    """
    images: int
    layers: list
    rows: List[AttentionRow]
    kl: Dict[str, LayerKL]


class _Sums:
    """Sums of a layer's weights and of their squares, in float64."""

    def __init__(self) -> None:
        self.total, self.squares, self.count = 0., 0., 0

    def add(self, weights: Tensor) -> None:
        flat = weights.detach().double().flatten(0, 1).cpu()  # (B h, n)
        self.total = self.total + flat.sum(0)  # (n, )
        self.squares = self.squares + flat.square().sum(0)  # (n, )
        self.count += len(flat)

    def mean(self) -> np.ndarray:
        return (self.total / self.count).numpy()

    def std(self) -> np.ndarray:
        variance = self.squares / self.count - (self.total / self.count)**2
        return variance.clamp(min=0).sqrt().numpy()


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[dict]) -> Measured:
    """Run images through a network and measure its attention weights.

    Args:
        model (nn.Module): Model of any host with one ELA backbone; it is set
            to eval mode.
        batches (Iterable[dict]): Batches of images, see
            :mod:`ela_mm.apis.data`.

    Returns:
        Measured: The measurements, in eval mode.

    Raises:
        UsageError: If there are no images, no layer attention, or weights
            that are not finite.
    """
    check_finite(model)
    backbone = find_backbone(model)
    model.eval()
    statistics, sums = KLStatistics(), {}
    handles = [
        layer.module.register_forward_hook(
            _watch(sums.setdefault(layer.name, _Sums())))
        for layer in backbone.attention_layers if layer.active
    ]
    backbone.observe(statistics.update)
    images = 0
    try:
        for batch in batches:
            inputs = network_inputs(model, batch)
            backbone(inputs)
            images += len(inputs)
    finally:
        backbone.observe(None)
        for handle in handles:
            handle.remove()
    if not images:
        raise UsageError('no picture to look at: the dataset is empty, or its '
                         'batch_sampler drops a batch that is not full')
    layers = backbone.attention_layers
    active = [layer for layer in layers if layer.active]
    rows = [
        AttentionRow(layer.name, layer.stage, _sources(backbone, layer),
                     sums[layer.name].mean(), sums[layer.name].std())
        for layer in active
    ]
    kl = statistics.reduce([layer.name for layer in active])
    return Measured(images, layers, rows, kl)


def _watch(sums: _Sums):

    def hook(module, args, output) -> None:
        sums.add(args[1].weights)

    return hook


def _sources(backbone: LayerAttentionMixin,
             layer: AttentionLayerInfo) -> List[str]:
    """List the layers in memory when this one attends."""
    visible = backbone.attention_stages[layer.stage - 1].visible
    return [
        other.name for other in backbone.attention_layers
        if other.stage == layer.stage and other.index <= layer.index
        and visible[other.index]
    ]
