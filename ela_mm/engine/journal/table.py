"""Lays out the table that is logged for each decision."""
import io
import locale
import sys
from typing import List

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...pruning.decision import LayerDecision


def prune_table(layers: List[LayerDecision]) -> str:
    """Lay out one decision as a table in plain text.

    Args:
        layers (List[LayerDecision]): Layers of the decision, in order. None
            is shown as ``-``.

    Returns:
        str: A table with one line per layer, without colours. Its rules are
        ASCII characters if console or log files are not UTF-8.
    """
    lines = box.HEAVY_HEAD if _is_utf8() else box.ASCII
    table = Table('layer', 'stage', box=lines)
    for column in ('KL', 'excess', 'conditional', 'mapped', 'stability'):
        table.add_column(column, justify='right')
    table.add_column('decision')
    for layer in layers:
        numbers = [
            '-' if number is None else f'{number:.4f}'
            for number in (layer.kl, layer.excess, layer.conditional,
                           layer.mapped)
        ]
        share = '-' if layer.stability is None else f'{layer.stability:.0%}'
        table.add_row(escape(layer.name), str(layer.stage), *numbers, share,
                      layer.outcome.value)
    text = io.StringIO()
    # force_jupyter=False: in Jupyter rich would show it instead of writing it.
    Console(
        file=text, width=120, color_system=None,
        force_jupyter=False).print(table)
    return text.getvalue()


def _is_utf8() -> bool:
    """Return whether standard output and log files are UTF-8."""
    encodings = (getattr(sys.stdout, 'encoding', None),
                 locale.getpreferredencoding(False))
    return all((name or 'utf').lower().startswith('utf') for name in encodings)
