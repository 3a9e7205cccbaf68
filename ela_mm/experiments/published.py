"""The numbers in the paper's tables, read from ``published.yaml``."""
import os.path as osp
from functools import lru_cache
from typing import Dict, List, NamedTuple, Tuple, Union

import yaml

from ..errors import UsageError

#: A depth, or the name of a network in a preset.
Network = Union[int, str]

_FILE = osp.join(osp.dirname(__file__), 'published.yaml')


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        numbers (Dict[str, float]): Numbers by column; ``parameters`` in
            millions, ``macs`` in billions, ``hours`` per epoch, all others in
            percent.
        total (bool): Whether this row counts all parameters, in a table that
            counts trainable ones only.
        note (str): Reason why the row cannot match what is counted, if any.
    """
    numbers: Dict[str, float]
    total: bool
    note: str


class Table(NamedTuple):
    """One table.

    Attributes:
        title (str): Number of the table and data set.
        decimals (int): Number of decimals of parameters.
        rows (Dict[Tuple[str, Network], Row]): Rows by system and network, in
            the paper's order.
    """
    title: str
    decimals: int
    rows: Dict[Tuple[str, Network], Row]

    def networks_of(self, system: str) -> List[Network]:
        """List the networks for which a system has a row."""
        return [network for name, network in self.rows if name == system]


@lru_cache(maxsize=None)
def read_tables() -> Dict[str, Table]:
    """Read all tables.

    Returns:
        Dict[str, Table]: Tables by name: ``table1_cifar10``,
        ``table1_cifar100``, ``table2``, ``table3`` and ``table5``.
    """
    with open(_FILE, encoding='utf-8') as file:
        tables = yaml.safe_load(file)
    return {name: _table(content) for name, content in tables.items()}


def read_table(name: str) -> Table:
    """Read one table by its name.

    Raises:
        UsageError: If there is no table of that name.
    """
    tables = read_tables()
    if name not in tables:
        raise UsageError(f'no published table {name!r}: expected one of '
                         f'{", ".join(tables)}')
    return tables[name]


def _table(content: dict) -> Table:
    columns, notes = content['columns'], content.get('notes', {})
    totals = content.get('totals', ())
    rows = {}
    for network, systems in content['networks'].items():
        names = columns[network] if isinstance(columns, dict) else columns
        for system, numbers in systems.items():
            rows[system, network] = Row(
                dict(zip(names, numbers)), system in totals,
                notes.get(network, {}).get(system, ''))
    return Table(content['title'], content.get('decimals', 1), rows)
