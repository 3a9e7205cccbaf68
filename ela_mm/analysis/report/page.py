"""A self-contained HTML page of text, tables and pictures."""
import base64
import os.path as osp
from dataclasses import dataclass, field
from typing import List, Optional, Sequence

from ...errors import UsageError
from ...plotting import Picture, to_png, to_svg

TEMPLATE = osp.join(osp.dirname(__file__), 'page.html')
# At fewer pixels per inch, a picture scrolls instead of shrinking.
READABLE = 62


@dataclass
class Table:
    """A table of text.

    Attributes:
        caption (str): Caption of the table.
        header (List[str]): Titles of the columns.
        rows (List[List[str]]): Cells, with rounded numbers.
        csv (List[list]): Rows for a CSV file, header first, with exact
            numbers; empty to write ``header`` and ``rows``.
    """
    caption: str
    header: List[str]
    rows: List[List[str]]
    csv: List[list] = field(default_factory=list)


@dataclass
class Section:
    """A section of the page.

    Attributes:
        title (str): Heading of the section.
        text (List[str]): Paragraphs of the section.
        tables (List[Table]): Tables, below the paragraphs.
        pictures (List[Picture]): Pictures, below the tables.
    """
    title: str
    text: List[str] = field(default_factory=list)
    tables: List[Table] = field(default_factory=list)
    pictures: List[Picture] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """Anchor for links to the section."""
        return ''.join(c if c.isalnum() else '-' for c in self.title.lower())


def check_jinja() -> None:
    """Raise a UsageError unless Jinja2, which lays out pages, is installed."""
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise UsageError('the report needs Jinja2: pip install Jinja2, or pip '
                         "install 'ela_mm[analyze]'") from None


def data_uri(picture: Picture) -> str:
    """Encode a picture as a data URI: photographs as PNG, others as SVG."""
    if picture.name.startswith('features'):
        data, kind = to_png(picture.figure), 'png'
    else:
        data, kind = to_svg(picture.figure).encode(), 'svg+xml'
    return f'data:image/{kind};base64,' + base64.b64encode(data).decode()


def render(title: str,
           summary: Sequence[str],
           sections: Sequence[Section],
           footer: Optional[Sequence[str]] = None) -> str:
    """Lay out a page that needs no other file and no network.

    Args:
        title (str): Heading of the page.
        summary (Sequence[str]): Sentences at the top that sum up the page.
        sections (Sequence[Section]): Sections, in order.
        footer (Sequence[str], optional): Sentences at the end on how it was
            made.

    Returns:
        str: The HTML. All text is escaped.

    Raises:
        UsageError: Without Jinja2.
    """
    check_jinja()
    from jinja2 import Environment
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True)
    with open(TEMPLATE, encoding='utf-8') as file:
        template = environment.from_string(file.read())
    return template.render(
        title=title,
        summary=summary,
        sections=sections,
        footer=footer or [],
        data_uri=data_uri,
        readable=READABLE)
