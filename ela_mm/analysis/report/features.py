"""Shows class activation maps of layers, with KL below (figures 3 and 5)."""
import math
from typing import List

import numpy as np

from ...plotting import OUT, Picture, new_figure, printable, style
from ..features import Features, LayerFeatures
from .page import Section

# Opacity of a map over the image.
COVER = .55


def features_picture(features: Features, name: str = 'features') -> Picture:
    """Draw the class activation maps of a stage's layers over the image.

    Args:
        features (Features): Maps, from :func:`ela_mm.analysis.features.look`.
        name (str): Name of the picture. Defaults to ``'features'``.

    Returns:
        Picture: The picture, with a row for the network as pruned, and another
        with all layers active if some are skipped.
    """
    rows = [('as pruned' if features.whole else 'all layers active',
             features.pruned)]
    if features.whole:
        rows.append(('all layers put back', features.whole))
    columns = len(features.pruned) + 1
    height, width = features.image.shape[:2]
    side = 1.5
    with style():
        figure = new_figure(side * columns,
                            len(rows) * (side * height / width + .62) + .4)
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes, (title, layers) in zip(grid, rows):
            axes[0].imshow(features.image)
            axes[0].set_xlabel(title, fontsize=8)
            for ax, layer in zip(axes[1:], layers):
                ax.imshow(_overlay(features.image, layer.cam))
                ax.set_title(
                    layer.name, fontsize=9, loc='center',
                    color='black' if layer.active else OUT)
                ax.set_xlabel(_below(layer), fontsize=8)
            for ax in axes:
                ax.set_xticks([])
                ax.set_yticks([])
                ax.spines[:].set_visible(False)
        figure.suptitle(
            f'Score-CAM of {printable(features.target)}', fontsize=10)
    return Picture(name, figure, _alt(features))


def _below(layer: LayerFeatures) -> str:
    if not layer.active:
        return 'skipped'
    return 'first' if layer.kl is None else f'KL {layer.kl:.3g}'


def _overlay(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Lay a map in colour over the image in grey."""
    from matplotlib import colormaps
    grey = image.mean(-1, keepdims=True)
    colour = colormaps['inferno'](cam)[..., :3]
    return (1 - COVER) * grey + COVER * colour


def _alt(features: Features) -> str:

    def said(layers: List[LayerFeatures]) -> str:
        return ', '.join(f'{x.name} {_below(x)}' for x in layers)

    text = (f'Maps of where the features of consecutive layers look, for '
            f'{features.target}: {said(features.pruned)}.')
    if features.whole:
        text += (' Below, the same with all layers active: '
                 f'{said(features.whole)}.')
        change = [
            float(np.corrcoef(a.cam.ravel(), b.cam.ravel())[0, 1])
            for a, b in zip(features.pruned, features.whole)
            if a.cam.std() and b.cam.std()
        ]
        if change:
            text += (' The maps with and without correlate by '
                     f'{min(change):.2f} to {max(change):.2f}.')
    return text


def features_section(features: Features, image: str) -> Section:
    """Show the class activation maps of consecutive layers.

    Args:
        features (Features): Maps, from :func:`ela_mm.analysis.features.look`.
        image (str): Name of the image.

    Returns:
        Section: Text and a picture.
    """
    text = [
        f'Score-CAM of {features.target} in {image}: what raises that score '
        'in the features that leave each layer. Where a layer is skipped, '
        'these are its block\'s own. A KL divergence near 0 says that a layer '
        f'retrieves what the one before did; {-math.log(1e-8):.1f} is the '
        'highest that is measured.'
    ]
    if features.whole:
        text.append(
            'Below, the same network with every skipped layer put back, as it '
            'was when it was skipped; the rest has learnt without it since.')
    return Section('Features', text, pictures=[features_picture(features)])
