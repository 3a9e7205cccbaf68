"""Shows CKA of all pairs of blocks as a heat map, next to KL of layers."""
import numpy as np

from ...plotting import COLOURS, KEPT, WIDTH, Picture, new_figure, style
from ..similarity import Similarity
from .page import Section, Table

# With more blocks than this, not every name is written.
NAMED = 36


def similarity_picture(found: Similarity) -> Picture:
    """Draw the CKA of all pairs of blocks, and beside it each layer's KL.

    Args:
        found (Similarity): Comparison, from
            :func:`ela_mm.analysis.similarity.compare_features`.

    Returns:
        Picture: The picture, named ``similarity``.
    """
    names = found.blocks
    side = min(max(3.2, .24 * len(names) + 1.4), 9.)
    kl = {pair.name: pair.kl for pair in found.neighbours}
    with style():
        figure = new_figure(max(WIDTH, side + (2.2 if kl else 1.)), side)
        if kl:
            axes, bars = figure.subplots(
                1, 2, sharey=True, gridspec_kw=dict(width_ratios=[3, 1]))
            bars.barh([names.index(name) for name in kl], list(kl.values()),
                      color=KEPT)
            bars.set_title('KL divergence')
            bars.set_xlabel('nats, to the layer before')
        else:
            axes = figure.subplots()
        image = axes.imshow(
            found.cka, cmap=COLOURS, vmin=0, vmax=1, aspect='auto')
        figure.colorbar(image, ax=axes, shrink=.7, label='CKA')
        last = np.cumsum([len(blocks) for blocks in found.stages.values()])
        for border in last[:-1] - .5:
            axes.axhline(border, color='white', linewidth=1)
            axes.axvline(border, color='white', linewidth=1)
        shown = range(0, len(names), -(-len(names) // NAMED))
        axes.set_xticks(shown, [names[i] for i in shown], rotation=90)
        axes.set_yticks(shown, [names[i] for i in shown])
        axes.tick_params(labelsize=7)
        axes.set_title(f'CKA of features, {found.images} pictures')
    return Picture('similarity', figure, _alt(found))


def _alt(found: Similarity) -> str:
    means = []
    start = 0
    for stage, blocks in found.stages.items():
        own = slice(start, start + len(blocks))
        start = own.stop
        pairs = found.cka[own, own][np.triu_indices(len(blocks), 1)]
        if len(pairs):
            means.append(f'{stage} {pairs.mean():.2f}')
    return ('CKA of the features of all blocks; mean over the pairs of a '
            f'stage: {", ".join(means)}.')


def similarity_section(found: Similarity, source: str) -> Section:
    """Show which blocks have similar features, and how KL relates to that.

    Args:
        found (Similarity): Comparison, from
            :func:`ela_mm.analysis.similarity.compare_features`.
        source (str): Words for where the images are from.

    Returns:
        Section: A heat map, a table of similar blocks, and with layer
        attention a table of neighbours.
    """
    text = [
        'Centred kernel alignment (linear, unbiased) of what the blocks '
        f'return, on {found.images} pictures ({source}), in eval mode: 1 where '
        'two blocks place all pictures alike, 0 where they have nothing in '
        'common. Where layers attend, it is taken before attention adds its '
        'term.'
    ]
    names = found.blocks
    ranks = found.rank_correlation()
    if ranks is not None:
        text.append(
            f'Rank correlation of KL and CKA over {len(found.neighbours)} '
            f'pairs of neighbours: {ranks[0]:.2f} (p = {ranks[1]:.2g}). Near '
            '-1, layers with equal attention weights have equal features; near '
            '0, one says nothing about the other.')
    elif found.neighbours:
        text.append('There are too few pairs of neighbours, or their values '
                    'are equal: no rank correlation.')
    else:
        text.append('The network has no layer attention with two active '
                    'layers in a stage: there are no KL divergences to '
                    'compare with.')
    rows = [[pair.name, pair.previous, f'{pair.kl:.4g}', f'{pair.cka:.3f}']
            for pair in found.neighbours]
    neighbours = Table(
        'Neighbours', ['layer', 'active layer before', 'KL', 'CKA'], rows,
        [['layer', 'previous', 'kl', 'cka'], *map(list, found.neighbours)])
    pairs = Table(
        'Most alike', ['block', 'block', 'CKA'],
        [[names[i], names[j], f'{found.cka[i, j]:.3f}']
         for i, j in _most_alike(found.cka)],
        [['block', *names]] + [[name, *row]
                               for name, row in zip(names, found.cka.tolist())])
    return Section('Similarity of features', text,
                   [neighbours, pairs] if rows else [pairs],
                   [similarity_picture(found)])


def _most_alike(cka: np.ndarray, number: int = 8) -> list:
    i, j = np.triu_indices(len(cka), 1)
    first = np.argsort(-cka[i, j], kind='stable')[:number]
    return list(zip(i[first], j[first]))
