"""Prints sections in a terminal, and saves their pictures and tables."""
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

# Seconds between two lines of progress without a terminal for a bar.
PATIENCE = 10.


def progress_bar(what: str) -> Callable[[Iterable], Iterable]:
    """Make a function that shows the progress of iterating over a list.

    Args:
        what (str): Description of the items.

    Returns:
        Callable: Function that wraps the list. It shows a bar in a terminal,
        otherwise a line every ten seconds; both on standard error.
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
    """Wrap text in which rich must not interpret markup or emoji codes."""
    return Text(printable(text), style)


def show(sections: List[Section], folder: str) -> None:
    """Print sections, and save their pictures and tables.

    Args:
        sections (List[Section]): Sections, in order.
        folder (str): Folder to save in; made if missing.
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
    """Turn a table into one of rich."""
    result = RichTable(
        *(Column(plain(text)) for text in table.header),
        title=plain(table.caption, 'table.title'),
        title_justify='left')
    for row in table.rows:
        result.add_row(*map(plain, row))
    return result


def file_name(title: str, caption: str) -> str:
    """Name the file of a table by its section's title and its caption.

    Words of the caption that the title has are left out:
    ``'Window: epoch 1', 'Layers'`` gives ``window_epoch_1_layers``.
    """
    words = re.findall(r'\w+', title.lower())
    words += [w for w in re.findall(r'\w+', caption.lower()) if w not in words]
    return '_'.join(words)
