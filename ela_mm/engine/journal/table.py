"""The table that is logged at each pruning."""
import io
from typing import List

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...pruning.decision import LayerDecision


def prune_table(layers: List[LayerDecision]) -> str:
    """Lay out one decision as text.

    Args:
        layers (List[LayerDecision]): Of the network, in order. What is None
            is shown as ``-``.

    Returns:
        str: A table of one line per layer, without colours.
    """
    table = Table('layer', 'stage')
    for column in ('KL', 'mapped'):
        table.add_column(column, justify='right')
    table.add_column('decision')
    for layer in layers:
        numbers = [
            '-' if number is None else f'{number:.4f}'
            for number in (layer.kl, layer.mapped)
        ]
        table.add_row(escape(layer.name), str(layer.stage), *numbers,
                      layer.outcome.value)
    text = io.StringIO()
    # In Jupyter, rich would show the table instead of writing it.
    Console(
        file=text, width=100, color_system=None,
        force_jupyter=False).print(table)
    return text.getvalue()
