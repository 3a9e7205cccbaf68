"""Compares the features of blocks (CKA), next to their attention weights."""
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from ..apis.data import network_inputs
from ..engine.sanity import check_finite
from ..errors import UsageError
from ..models.backbones.layer_attention_mixin import LayerAttentionMixin
from ..pruning import KLStatistics
from ..sparsity.cka import MIN_SAMPLES, hsic_matrix, pooled
from ..sparsity.stages import block_features, find_stages

MAX_FEATURES = 2**18
# Fewer pairs may well be in perfect order by chance: 4 are in 1 of 24 cases.
MIN_PAIRS = 5


class Neighbours(NamedTuple):
    """A layer and its active predecessor.

    Attributes:
        name (str): Name of the layer's block.
        previous (str): Name of the predecessor's block.
        kl (float): KL divergence of their attention weights, nats.
        cka (float): CKA of the features of their blocks.
    """
    name: str
    previous: str
    kl: float
    cka: float


class Similarity(NamedTuple):
    """How similar the blocks of a backbone are on some images.

    Attributes:
        images (int): Number of images.
        stages (Dict[str, List[str]]): Names of blocks by stage, F in total.
        cka (np.ndarray): (F, F), CKA of the blocks in order; 0 for features
            that have collapsed.
        neighbours (List[Neighbours]): Neighbouring active layers; empty
            without layer attention.
    """
    images: int
    stages: Dict[str, List[str]]
    cka: np.ndarray
    neighbours: List[Neighbours]

    @property
    def blocks(self) -> List[str]:
        """Names of all F blocks, in order."""
        return [name for names in self.stages.values() for name in names]

    def rank_correlation(self) -> Optional[Tuple[float, float]]:
        """Compute Spearman's correlation of neighbours' KL and CKA.

        Returns:
            tuple | None: The correlation and its p-value; None with fewer than
            5 pairs, or if all values of one kind are equal. -1 means that the
            more similar the attention weights of layers, the more similar
            their features.
        """
        kl = [pair.kl for pair in self.neighbours]
        cka = [pair.cka for pair in self.neighbours]
        if min(len(set(kl)), len(set(cka))) < 2 or len(kl) < MIN_PAIRS:
            return None
        correlation, p_value = spearmanr(kl, cka)
        return float(correlation), float(p_value)


@torch.no_grad()
def compare_features(model: nn.Module,
                     batches: Iterable[dict],
                     max_features: int = MAX_FEATURES) -> Similarity:
    """Run images through a network and compare the outputs of its blocks.

    The feature of a block is its output before attention adds its term, as in
    CKARegularizationHook. CKA is the unbiased minibatch CKA, see
    :func:`ela_mm.sparsity.cka.hsic_matrix`.

    Args:
        model (nn.Module): Model of any host with stages of blocks, with or
            without layer attention; it is set to eval mode.
        batches (Iterable[dict]): Batches of at least 4 images; smaller ones are
            left out. See :func:`ela_mm.apis.data.dataset_batches`.
        max_features (int): Largest number of features per image and block;
            larger maps are average-pooled first. Defaults to 2**18, this
            project's choice.

    Returns:
        Similarity: The comparison, in eval mode.

    Raises:
        UsageError: Without stages of blocks, without a batch of 4 images, or
            on weights that are not finite.
    """
    stages = {
        stage: list(blocks.items())
        for stage, blocks in find_stages(model).items()
    }
    path, backbone = _backbone(model)
    check_finite(model)
    model.eval()
    seen: Dict[str, Tensor] = {}
    handles = [
        block.register_forward_hook(_keep(seen, name, max_features))
        for blocks in stages.values() for name, block in blocks
    ]
    statistics = KLStatistics()
    attention = isinstance(backbone, LayerAttentionMixin)
    if attention:
        backbone.observe(statistics.update)
    total, images = 0., 0
    try:
        for batch in batches:
            inputs = network_inputs(model, batch)
            if len(inputs) < MIN_SAMPLES[True]:
                continue
            seen.clear()
            backbone(inputs)
            names = [n for blocks in stages.values() for n, _ in blocks]
            total = total + hsic_matrix([seen[name] for name in names])
            images += len(inputs)
    finally:
        if attention:
            backbone.observe(None)
        for handle in handles:
            handle.remove()
    if not images:
        raise UsageError('no batch of 4 pictures, which CKA needs: the dataset '
                         'or the batch size is smaller')
    cka = _normalised(total)
    prefix = f'{path}.' if path else ''
    names = [name[len(prefix):] for name in names]
    kl = _kl(backbone, statistics) if attention else {}
    return Similarity(
        images, {
            stage[len(prefix):]: [name[len(prefix):] for name, _ in blocks]
            for stage, blocks in stages.items()
        }, cka, [
            Neighbours(name, previous, value,
                       float(cka[names.index(name), names.index(previous)]))
            for (name, previous), value in kl.items()
        ])


def _backbone(model: nn.Module) -> Tuple[str, nn.Module]:
    """Return name and module of the backbone that find_stages searches."""
    return next(((name, module) for name, module in model.named_modules()
                 if name.split('.')[-1] == 'backbone'), ('', model))


def _keep(seen: Dict[str, Tensor], name: str, max_features: int):

    def hook(block, args, output) -> None:
        output = block_features(output)
        if not isinstance(output, Tensor):
            raise UsageError(f'block {name} returns a {type(output).__name__}: '
                             'expected a tensor')
        seen.setdefault(name, pooled(output.float(), max_features).cpu())

    return hook


def _normalised(hsic: Tensor) -> np.ndarray:
    """Turn HSIC (F, F) into CKA; 0 where a feature has collapsed."""
    scale = hsic.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    return (hsic * inverse * inverse[:, None]).numpy()


def _kl(backbone: LayerAttentionMixin,
        statistics: KLStatistics) -> Dict[Tuple[str, str], float]:
    """Return KL divergences by the blocks of a layer and its predecessor."""
    active = [layer for layer in backbone.attention_layers if layer.active]
    measured = statistics.reduce([layer.name for layer in active])
    stages = backbone.attention_stages
    block = {layer.name: stages[layer.stage - 1].block_name(layer.index)
             for layer in active}
    return {
        (block[layer.name], block[previous.name]): measured[layer.name].mean
        for previous, layer in zip(active, active[1:])
        if layer.stage == previous.stage and layer.name in measured
    }
