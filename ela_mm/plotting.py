"""How all pictures look, and how they leave: without a display.

Figures are made without pyplot, so that no window system, no global state and
no backend of the user's is touched. Colours are Okabe and Ito's, told apart by
the colour-blind; what they say is said by shape or text as well, for print in
grey.
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
# Of several lines; with more, their dashes differ as well.
LINES = (KEPT, SKIPPED, '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
DASHES = ('-', '--', ':', '-.')
# Inches: letters stay readable where a phone shows the whole width.
WIDTH = 5.2
# Light to dark in grey as well.
COLOURS = 'cividis'
# Of layers in pictures; also a bar's hatch where there are bars.
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
    'svg.fonttype': 'path',  # looks the same where the font is missing
    'svg.hashsalt': 'ela_mm',  # the same file from the same numbers
    'text.usetex': False,
}
# Names are no formulas. Older ones than matplotlib 3.6 cannot be told.
if 'text.parse_math' in matplotlib.rcParams:
    _SETTINGS['text.parse_math'] = False


class Picture(NamedTuple):
    """A figure and what it shows.

    Attributes:
        name (str): Of its file, without an ending.
        figure (Figure): matplotlib's.
        alt (str): What is to be seen, for those who do not see it.
    """
    name: str
    figure: Figure
    alt: str


def new_figure(width: float, height: float) -> Figure:
    """A figure that draws itself without a display.

    Args:
        width (float): Inches.
        height (float): Inches.

    Returns:
        Figure: Empty, with constrained layout.
    """
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def style() -> Iterator[None]:
    """This project's settings of matplotlib; the user's come back after it."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def printable(text: str) -> str:
    """Show text from outside on one line: what has no sign, as an escape."""
    return ''.join(
        c if c.isprintable() else c.encode('unicode_escape').decode()
        for c in text)


def to_svg(figure: Figure) -> str:
    """A figure as SVG, its letters as outlines."""
    text = io.StringIO()
    with style():
        figure.savefig(text, format='svg', metadata=dict(Date=None))
    return text.getvalue()


def to_png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as PNG."""
    data = io.BytesIO()
    with style():
        figure.savefig(data, format='png', dpi=dpi)
    return data.getvalue()


def to_array(figure: Figure) -> np.ndarray:
    """A figure as (H, W, 3) uint8 RGB, as Visualizers take pictures."""
    with style():
        figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save(picture: Picture, folder: str) -> str:
    """Write a picture as PNG.

    Args:
        picture (Picture): Any.
        folder (str): Made if it does not exist.

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
    """Black or white, whichever reads on cells of the colour map."""
    span = (high - low) or 1.
    return tuple('black' if (v - low) / span > .55 else 'white'
                 for v in np.ravel(values))
