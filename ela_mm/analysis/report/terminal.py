"""Sections in a terminal, their pictures and tables in a folder."""
import csv
import os
import os.path as osp
import re
import sys
import time
from typing import Callable, Iterable, Iterator, List

from rich.console import Console
from rich.progress import track
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from ...plotting import printable, save
from .page import Section, Table

# Seconds between two lines where there is no terminal to draw a bar in.
PATIENCE = 10.


def progress_bar(what: str) -> Callable[[Iterable], Iterable]:
    """Show how far a list of work has got.

    Args:
        what (str): Is being worked on.

    Returns:
        Callable: Wraps the list: a bar in a terminal, else a line every ten
        seconds, on the standard error either way.
    """

    def wrap(items: Iterable) -> Iterable:
        console = Console(stderr=True)
        if console.is_terminal:
            return track(items, what, console=console, transient=True)
        return _told(items, what)

    return wrap


def _told(items: Iterable, what: str) -> Iterator:
    total = f' of {len(items)}' if hasattr(items, '__len__') else ''
    last = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - last > PATIENCE:
            last = time.monotonic()
            print(f'{what}: {number}{total} done', file=sys.stderr, flush=True)
        yield item


def plain(text: str, style: str = '') -> Text:
    """Text from outside, in which rich finds neither markup nor emoji."""
    return Text(printable(text), style)


def show(sections: List[Section], folder: str) -> None:
    """Print sections; write their pictures and tables.

    Args:
        sections (List[Section]): In order.
        folder (str): Made if it does not exist; named at the end.
    """
    print_sections(sections)
    os.makedirs(folder, exist_ok=True)
    written = [
        save(picture, folder) for section in sections
        for picture in section.pictures
    ]
    for section in sections:
        for table in section.tables:
            caption = re.split('[:;,]', table.caption)[0]
            written.append(
                osp.join(folder, file_name(section.title, caption) + '.csv'))
            with open(written[-1], 'w', newline='', encoding='utf-8',
                      errors='backslashreplace') as file:
                csv.writer(file).writerows(
                    table.csv or [table.header, *table.rows])
    if written:
        print(f'written to {folder}: ' + ', '.join(map(osp.basename, written)))


def print_sections(sections: List[Section]) -> None:
    """Print sections, without their pictures."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    for section in sections:
        console.rule(plain(section.title, 'rule.text'))
        for paragraph in section.text:
            console.print(plain(paragraph))
        for table in section.tables:
            console.print(drawn(table))


def drawn(table: Table) -> RichTable:
    """A table as rich draws it."""
    result = RichTable(
        *(Column(plain(text)) for text in table.header),
        title=plain(table.caption, 'table.title'),
        title_justify='left')
    for row in table.rows:
        result.add_row(*map(plain, row))
    return result


def file_name(title: str, caption: str) -> str:
    """Name a table's file: what its caption says beyond the title is added.

    ``'Window: epoch 1', 'Layers'`` gives ``window_epoch_1_layers``.
    """
    words = re.findall(r'\w+', title.lower())
    words += [w for w in re.findall(r'\w+', caption.lower()) if w not in words]
    return '_'.join(words)
