"""Sphinx settings of the site, which ``make docs`` builds."""
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from sphinx import addnodes

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ela_mm  # noqa: E402

project = 'ela_mm'
release = version = ela_mm.__version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'ela_mm {release}'
html_show_sphinx = html_show_copyright = False

# Headings are link targets under the names that GitHub gives them.
myst_heading_anchors = 3

# The docstrings state the types; in signatures they would hide the names.
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
# Inherited docstrings of torch refer to pages that the site does not have.
autodoc_inherit_docstrings = False
# Optional packages that are not installed everywhere.
autodoc_mock_imports = [name for name in ('mmpose', 'triton') if not find_spec(name)]
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# References to names of this package must resolve. Types of other packages stay
# plain text: looking them up would need a network.
nitpicky = True
nitpick_ignore_regex = [('py:class', r'(?!ela_mm\.).*')]


def show_readme(app, docname, source) -> None:
    """Show README.md as a page, with links relative to this folder."""
    if docname == 'readme':
        text = (ROOT / 'README.md').read_text(encoding='utf-8')
        source[0] = re.sub(r'\]\((?!\w+:|#)', '](../', text)


def find_readme(app, doctree) -> None:
    """Point links to README.md, which is outside of this folder, to that page."""
    for node in doctree.findall(addnodes.pending_xref):
        if node.get('reftarget') == str(ROOT / 'README'):
            node['reftarget'] = 'readme'


def skip_fields(app, what, name, value, skip, options) -> bool:
    """Leave out fields of named tuples, which their classes describe."""
    return skip or type(value).__name__ == '_tuplegetter'


def setup(app) -> None:
    app.connect('source-read', show_readme)
    app.connect('doctree-read', find_readme)
    app.connect('autodoc-skip-member', skip_fields)
