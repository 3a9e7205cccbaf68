"""The style of all pictures, and how they are saved, without a display.

Figures are made without pyplot, which would touch the window system, global
state and the user's backend. Colours are those of Okabe and Ito, which the
colour-blind can distinguish. Shape or text repeats what colours say, for
printing in grey.
"""
import io
import os
import os.path as osp
from contextlib import contextmanager
from typing import Iterator, NamedTuple, Tuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

KEPT, SKIPPED, OUT = '#0072B2', '#D55E00', '#767676'
# Colours of several lines; if there are more, dashes differ as well.
LINES = (KEPT, SKIPPED, '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
DASHES = ('-', '--', ':', '-.')
# Width in inches, at which text is readable on a phone.
WIDTH = 5.2
# Colour map, which goes from dark to light in grey too.
COLOURS = 'cividis'
# Markers of layers; in bar charts, hatches are used instead.
MARKERS = dict(kept='o', skipped='X')

_SETTINGS = {
    'font.size': 9,
    'axes.titlesize': 10,
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'legend.frameon': False,
    'figure.dpi': 100,
    'hatch.linewidth': .6,
    'svg.fonttype': 'path',  # looks the same without the font
    'svg.hashsalt': 'ela_mm',  # makes files reproducible
    'text.usetex': False,
}
# Names are not formulas. Before matplotlib 3.6 this cannot be set.
if 'text.parse_math' in matplotlib.rcParams:
    _SETTINGS['text.parse_math'] = False


class Picture(NamedTuple):
    """A figure with its name and alternative text.

    Attributes:
        name (str): Name of the file, without extension.
        figure (Figure): Figure of matplotlib.
        alt (str): Description for those who cannot see it.
    """
    name: str
    figure: Figure
    alt: str


def new_figure(width: float, height: float) -> Figure:
    """Make a figure that can be drawn without a display.

    Args:
        width (float): Width in inches.
        height (float): Height in inches.

    Returns:
        Figure: An empty figure with constrained layout.
    """
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def style() -> Iterator[None]:
    """Use this package's matplotlib settings within this context."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def printable(text: str) -> str:
    """Escape the unprintable characters of a text, such as line breaks."""
    return ''.join(
        c if c.isprintable() else c.encode('unicode_escape').decode()
        for c in text)


def to_svg(figure: Figure) -> str:
    """Render a figure as SVG, with text as outlines."""
    text = io.StringIO()
    with style():
        figure.savefig(text, format='svg', metadata=dict(Date=None))
    return text.getvalue()


def to_png(figure: Figure, dpi: int = 110) -> bytes:
    """Render a figure as PNG."""
    data = io.BytesIO()
    with style():
        figure.savefig(data, format='png', dpi=dpi)
    return data.getvalue()


def to_array(figure: Figure) -> np.ndarray:
    """Render a figure as (H, W, 3) uint8 RGB, as Visualizers take it."""
    with style():
        figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save(picture: Picture, folder: str) -> str:
    """Save a picture as PNG.

    Args:
        picture (Picture): Picture to save.
        folder (str): Folder to save in; made if missing.

    Returns:
        str: Path of the file.
    """
    os.makedirs(folder, exist_ok=True)
    path = osp.join(folder, f'{picture.name}.png')
    with open(path, 'wb') as file:
        file.write(to_png(picture.figure))
    return path


def cell_colours(values: np.ndarray, low: float,
                 high: float) -> Tuple[str, ...]:
    """Choose black or white text, whichever is readable on each cell."""
    span = (high - low) or 1.
    return tuple('black' if (v - low) / span > .55 else 'white'
                 for v in np.ravel(values))
