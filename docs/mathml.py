"""A Sphinx extension that renders formulas at build to MathML, which browsers show without a script or a network."""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# What latex2mathml leaves without the space that TeX has: a function before its argument; a relation; a brace's width.
SPACED = (
    (
        re.compile(r"(?<!<msub>)(?<!<msup>)(<mi>(?:log|exp|det|min|max|sin|cos|tanh)</mi>)(?!<mo)"),
        r'\1<mspace width="0.17em"/>',
    ),
    (re.compile("<mi>&#x0007E;</mi>"), "<mo>&#x223C;</mo>"),
    (re.compile("<mo>(&#x23D[EF];)</mo>"), r'<mo stretchy="true">\1</mo>'),
)


def rendered(formula: str, display: str) -> str:
    """MathML of a formula, "inline" or "block"; ExtensionError with the formula where a command is not known.

    >>> rendered("x", "inline")
    '<math xmlns="http://www.w3.org/1998/Math/MathML" display="inline"><mrow><mi>x</mi></mrow></math>'
    """
    try:
        made = convert(formula, display=display)
    except Exception as error:
        raise ExtensionError(f"the formula {formula!r} cannot be rendered: {error!r}") from error
    left = [word for word in made.split("<mi>") if word.startswith("\\")]
    if left:
        command = left[0].split("<")[0]
        raise ExtensionError(f"the formula {formula!r} has {command}, unknown to latex2mathml; write it otherwise")
    for found, put in SPACED:
        made = found.sub(put, made)
    return made


def inline(self, node: nodes.math) -> None:
    self.body.append(rendered(node.astext(), "inline"))
    raise nodes.SkipNode


def block(self, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(rendered(node.astext(), "block") + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
