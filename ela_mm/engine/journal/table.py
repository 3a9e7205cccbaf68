"""The table that is logged at each pruning."""
import io
from typing import List, Mapping

from rich.console import Console
from rich.table import Table


def prune_table(layers: List[Mapping]) -> str:
    """Lay out one decision as text.

    Args:
        layers (List[Mapping]): Per attention layer of the network its
            ``name``, ``stage``, ``kl`` (nats), ``mapped`` and ``status``, as
            in the decisions record. None is shown as ``-``.

    Returns:
        str: A table of one line per layer, without colours.
    """
    table = Table('layer', 'stage')
    for column in ('KL', 'mapped'):
        table.add_column(column, justify='right')
    table.add_column('decision')
    for layer in layers:
        numbers = [
            '-' if layer[name] is None else f'{layer[name]:.4f}'
            for name in ('kl', 'mapped')
        ]
        table.add_row(layer['name'], str(layer['stage']), *numbers,
                      layer['status'])
    text = io.StringIO()
    # In Jupyter, rich would show the table instead of writing it.
    Console(
        file=text, width=100, color_system=None,
        force_jupyter=False).print(table)
    return text.getvalue()
