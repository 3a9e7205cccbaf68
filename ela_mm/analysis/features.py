"""Class activation maps of a stage's layers, pruned and with all layers.

They are computed by Score-CAM (Wang et al., CVPRW 2020), as in figures 3 and 5
of the paper, with the package grad-cam.
"""
import contextlib
import importlib.util
import io
from copy import deepcopy
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..apis.data import as_pictures, pictures_in
from ..engine.sanity import check_finite
from ..errors import UsageError
from ..hosts.registration import host_of_model
from ..models.backbones.layer_attention_mixin import find_backbone, with_all_layers
from ..pruning import KLStatistics

# Largest number of layers in one picture, as in figure 3.
AT_MOST = 6


class LayerFeatures(NamedTuple):
    """The class activation map of one layer's output.

    Attributes:
        name (str): Name of the layer.
        active (bool): Whether the layer is active.
        kl (float | None): KL divergence in nats from the previous active layer
            on this image; None for skipped layers and the first of a stage.
        cam (np.ndarray): (H, W) in [0, 1], class activation map.
    """
    name: str
    active: bool
    kl: Optional[float]
    cam: np.ndarray


class Features(NamedTuple):
    """Class activation maps of one image in one stage.

    Attributes:
        image (np.ndarray): (H, W, 3) RGB in [0, 1], image as the network sees
            it.
        target (str): What the maps explain: the class or the boxes found.
        pruned (List[LayerFeatures]): Maps of the network in the checkpoint.
        whole (List[LayerFeatures]): Maps with all layers active, where skipped
            ones have their weights from before; empty if none is skipped.
    """
    image: np.ndarray
    target: str
    pruned: List[LayerFeatures]
    whole: List[LayerFeatures]


def check_grad_cam() -> None:
    """Raise a UsageError unless grad-cam, which has Score-CAM, is installed."""
    if importlib.util.find_spec('pytorch_grad_cam') is None:
        raise UsageError('Score-CAM needs the package grad-cam: pip install '
                         "grad-cam, or pip install 'ela_mm[analyze]'")


def choose_layers(model: nn.Module,
                  stage: Optional[int] = None) -> List[str]:
    """Choose consecutive layers to look at: the last six of a stage.

    Args:
        model (nn.Module): Model with one ELA backbone.
        stage (int, optional): Number of the stage, from 1. Defaults to the
            stage with most layers.

    Returns:
        List[str]: Names of the layers.

    Raises:
        UsageError: If there is no such stage.
    """
    layers = find_backbone(model).attention_layers
    sizes: Dict[int, int] = {}
    for layer in layers:
        sizes[layer.stage] = sizes.get(layer.stage, 0) + 1
    if stage is None:
        stage = max(sizes, key=lambda s: (sizes[s], s))
    if stage not in sizes:
        raise UsageError(f'stage {stage}: expected one of {sorted(sizes)}')
    return [x.name for x in layers if x.stage == stage][-AT_MOST:]


def look(model: nn.Module,
         batch: dict,
         layers: Sequence[str],
         channels: int = 32,
         put_back: bool = True,
         progress: Callable = iter,
         wanted: Optional[str] = None) -> Features:
    """Compute the class activation maps of some layers for one image.

    Args:
        model (nn.Module): Model of any host; not changed.
        batch (dict): Batch whose first image is used, see
            :mod:`ela_mm.apis.data`.
        layers (Sequence[str]): Names of the layers, usually of one stage.
        channels (int): Number of channels of each layer that Score-CAM weighs,
            those with the largest mean; 0 for all. The whole network runs once
            for each. The paper does not give a number. Defaults to 32.
        put_back (bool): Whether to compute maps with all layers active as well.
            A deploy checkpoint lacks the weights for it. Defaults to True.
        progress (Callable): Function that wraps the list of layers, to show a
            bar. Defaults to ``iter``.
        wanted (str, optional): Name or number of the class to explain.
            Defaults to None: what the network finds.

    Returns:
        Features: The maps.

    Raises:
        UsageError: Without grad-cam, on weights that are not finite, on an
            unknown layer or class, or if nothing, or nothing of that class, is
            found in the image.
    """
    check_finite(model)
    check_grad_cam()
    backbone = find_backbone(model)
    known = [layer.name for layer in backbone.attention_layers]
    unknown = [name for name in layers if name not in known]
    if unknown:
        raise UsageError(f'no attention layer {unknown[0]!r}: expected some of '
                         f'{known[0]} to {known[-1]}')
    model = deepcopy(model).eval()
    with torch.no_grad():
        data = model.data_preprocessor(batch, False)
    samples = data.get('data_samples')
    inputs = pictures_in(data)
    # Its preprocessor has not stacked the images, or they are a video.
    if not isinstance(inputs, Tensor) or inputs.dim() > 4:
        inputs = as_pictures(inputs)
    data = dict(inputs=inputs[:1],
                data_samples=samples and samples[:1])
    explained = host_of_model(model).explain(model, data, wanted)
    networks = [model]
    # A deploy checkpoint lacks the weights of skipped layers.
    put_back = put_back and not getattr(model, 'deployed', False)
    if put_back and not all(x.active for x in backbone.attention_layers):
        networks.append(with_all_layers(model))
    jobs = [(network, name) for network in networks for name in layers]
    cams: Dict[int, List[LayerFeatures]] = {id(n): [] for n in networks}
    divergences = {id(n): _kl(n, data['inputs']) for n in networks}
    for network, name in progress(jobs):
        layer = next(x for x in find_backbone(network).attention_layers
                     if x.name == name)
        cams[id(network)].append(
            LayerFeatures(
                name, layer.active, divergences[id(network)].get(name),
                _score_cam(explained.answer(network), network, data['inputs'],
                           name, explained.target, channels)))
    return Features(
        image=_seen(model, data['inputs']),
        target=explained.label,
        pruned=cams[id(model)],
        whole=cams[id(networks[1])] if len(networks) > 1 else [])


def _kl(model: nn.Module, inputs: Tensor) -> Dict[str, float]:
    """Measure the KL divergences from previous active layers, by name."""
    backbone, statistics = find_backbone(model), KLStatistics()
    backbone.observe(statistics.update)
    try:
        with torch.no_grad():
            backbone(inputs)
    finally:
        backbone.observe(None)
    names = [layer.name for layer in backbone.attention_layers]
    return {name: kl.mean for name, kl in statistics.reduce(names).items()}


def _seen(model: nn.Module, inputs: Tensor) -> np.ndarray:
    """Return the network's input as RGB, stretched to [0, 1].

    Of more than three channels the first three are taken, of two the first.
    """
    image = inputs[0].permute(1, 2, 0).cpu().numpy()  # (H, W, C)
    if image.shape[2] < 3:
        image = image[..., :1].repeat(3, 2)
    elif image.shape[2] > 3:
        image = image[..., :3]
    elif not _converts(model.data_preprocessor):
        image = image[..., ::-1]  # OpenCV's order
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else image * 0.


def _converts(preprocessor: nn.Module) -> bool:
    """Return whether images reach the network as RGB, which is the default."""
    private = getattr(preprocessor, '_channel_conversion', True)
    return getattr(preprocessor, 'channel_conversion', private)  # mmseg's


# --- Score-CAM ---------------------------------------------------------------


@contextlib.contextmanager
def _tap(model: nn.Module, name: str):
    """Insert an identity that the output of a layer passes through."""
    backbone = find_backbone(model)
    layer = next(x for x in backbone.attention_layers if x.name == name)
    stage = backbone.attention_stages[layer.stage - 1]
    tap, following = nn.Identity(), layer.index + 1
    if following < len(stage):
        first = backbone.get_submodule(stage.block_parts(following)[0])
        handle = first.register_forward_pre_hook(
            lambda module, args: (stage.through(tap, *args), *args[1:]))
    else:
        handle = stage.register_forward_hook(
            lambda module, args, output: stage.through(tap, output, *args[1:]))
    try:
        yield tap
    finally:
        handle.remove()


def _score_cam(scored: nn.Module, network: nn.Module, inputs: Tensor,
               name: str, target: Callable, channels: int) -> np.ndarray:
    from pytorch_grad_cam import ScoreCAM

    class SelectiveScoreCAM(ScoreCAM):
        """Scores the channels of the largest mean alone."""

        def get_cam_weights(self, input_tensor, target_layer, targets,
                            activations, grads):
            strength = np.abs(activations).mean((2, 3))[0]  # (C, )
            chosen = np.argsort(-strength)[:channels or None]
            weights = np.zeros(activations.shape[:2])
            weights[:, chosen] = super().get_cam_weights(
                input_tensor, target_layer, targets, activations[:, chosen],
                grads)
            return weights

    quiet = contextlib.redirect_stderr(io.StringIO())  # hides its bars
    with _tap(network, name) as tap, torch.no_grad(), SelectiveScoreCAM(
            scored, [tap]) as cam, quiet:
        return cam(inputs, targets=[target])[0]


__all__ = [
    'Features', 'LayerFeatures', 'check_grad_cam', 'choose_layers', 'look'
]
