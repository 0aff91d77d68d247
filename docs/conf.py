"""Sphinx builds the site: `make docs`. Warnings are errors, and every example is run."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from catalogs import pages
from inventories import write

import ppgen

project = "ppgen"
author = "The ppgen developers"
copyright = "The ppgen developers"
version = release = ppgen.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "run_directive",
    "gallery_pages",
    "mathml",
    "site_check",
    "japanese_search",
]
source_suffix = {".md": "markdown", ".py": "markdown"}  # an example of the gallery is its page
exclude_patterns = ["_build", "locale", "examples", "*.py"]
locale_dirs = ["locale"]
gettext_compact = False  # one catalog a page
templates_path = ["_templates"]
default_role = "code"  # docstrings write `x` for code
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

intersphinx_mapping = write(Path(__file__).parent / "_build" / "inventories")
intersphinx_disabled_reftypes = ["std:*"]  # of pages and labels; names of Python are looked up

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"ppgen {release}"
html_static_path = ["_static"]
html_css_files = ["run.css", "language.css"]
html_js_files = ["reach.js"]
html_context = {"translated": pages()}
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}


CODE, SHAPE = r"(`[^`]*`)", r"(?<=[( ])\*(?=\w+[,)])"  # code stays; (*batch, D) is a shape
MARKUP = re.compile(rf"{CODE}|{SHAPE}|\|")


def as_written(app, what, name, obj, options, lines):
    """An indented equation stays as it was written; neither a shape (*batch, D) nor |det W| is markup."""
    written, above = [], ""
    for line in lines:
        if line.startswith("    ") and not (written and written[-1].strip()):
            if above and above[0] not in " :." and not above.endswith("::"):
                written += [".. code-block:: text", ""]
            above = line
        elif line.strip():
            above = line
        literal = above.startswith("    ")
        written.append(line if literal else MARKUP.sub(lambda m: m[1] or "\\" + m[0], line))
    lines[:] = written


def readable(app, what, name, obj, options, signature, returns):
    """A default that is made anew is `...`: Sphinx cannot parse <factory>, and then shows types as ~typing.Any."""
    if signature and "<factory>" in signature:
        return signature.replace("<factory>", "..."), returns
    return None


def setup(app):
    app.connect("autodoc-process-docstring", as_written)
    app.connect("autodoc-process-signature", readable)
