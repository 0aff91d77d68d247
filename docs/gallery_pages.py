"""A Sphinx extension: docs/gallery/NAME.py is an example, and becomes a page, a notebook, and a picture in the index.

A source is a script in cells (the percent format): `# %% [markdown]` begins words, in comments, and `# %%` code. The
first cell is a title, a line `tags: FAMILY, TASK, ...`, and what the example shows. Exactly one code cell makes a
picture, and says what it shows: `# %% alt="..."`. The code is run by run_directive.py, as on any other page.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

FOLDER = Path(__file__).parent / "gallery"
FAMILIES = ("VAE", "flow", "diffusion", "Bayesian")
TASKS = (
    "density", "images", "tables", "regression", "time series", "missing data", "model comparison", "calibration",
    "simulators", "custom Pyro code",
)  # fmt: skip
CELL = re.compile(r'^# %%(?: (\[markdown\])| alt="(.+)")?$\n', re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    words: bool
    alt: str
    text: str


def cells(source: str) -> list[Cell]:
    """The cells of a script in the percent format."""
    found, parts = [], CELL.split(source)[1:]
    for words, alt, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        text = re.sub("^# ?", "", text, flags=re.MULTILINE) if words else text
        found.append(Cell(bool(words), alt or "", text.strip()))
    return found


def tags(source: str) -> list[str]:
    """The tags in the first cell, the family before the tasks; ExtensionError where one is not known."""
    line = re.search(r"^tags: (.+)$", cells(source)[0].text, re.MULTILINE)
    found = line[1].split(", ") if line else []
    if len(found) < 2 or found[0] not in FAMILIES or not set(found[1:]) <= set(TASKS):
        raise ExtensionError(f"the tags {found} are not one of {FAMILIES} and then some of {TASKS}")
    return found


def page(source: str, name: str) -> str:
    """The page of an example, in Markdown."""
    linked = " · ".join(f"[{tag}](index.md#{tag.lower().replace(' ', '-')})" for tag in tags(source))
    above = f"{linked} · {{download}}`script <{name}.py>` · <a href='../_downloads/{name}.ipynb' download>notebook</a>"
    first, *rest = cells(source)
    written = [re.sub(r"^tags: .+$", lambda _: above, first.text, count=1, flags=re.MULTILINE)]
    for cell in rest:
        options = f":alt: {cell.alt}\n" if cell.alt else ""
        written.append(cell.text if cell.words else f"```{{run}} python\n{options}\n{cell.text}\n```")
    return "\n\n".join(written) + "\n"


def outputs(tree: nodes.Element, folder: Path) -> list[list[dict[str, Any]]]:
    """What each code cell of a page printed, and its picture, as a notebook has them; files are below `folder`."""
    shown: list[list[dict[str, Any]]] = []
    for node in tree.findall(nodes.Element):
        if "run" in node.get("classes", ()):
            shown.append([])
        elif "run-output" in node.get("classes", ()):
            shown[-1].append({"output_type": "stream", "name": "stdout", "text": node.astext() + "\n"})
        elif isinstance(node, nodes.image) and (path := folder / node["uri"]).is_file():
            data = {"image/png": base64.b64encode(path.read_bytes()).decode()}
            shown[-1].append({"output_type": "display_data", "data": data, "metadata": {}})
    return shown


def notebook(source: str, shown: list[list[dict[str, Any]]]) -> str:
    """The notebook of an example, in JSON, with the outputs of each code cell."""
    made, given = [], iter(shown)
    for i, cell in enumerate(cells(source)):
        kind = {"cell_type": "markdown" if cell.words else "code"}
        code = {} if cell.words else {"execution_count": None, "outputs": next(given, [])}
        made.append(kind | {"id": f"cell-{i}", "metadata": {}, "source": cell.text} | code)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps({"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}, indent=1)


class thumbnails(nodes.General, nodes.Element):
    """The place of the pictures of some examples, which are there once their pages have been read."""


class Gallery(SphinxDirective):
    """`{gallery} TAG`: the examples with this tag, each with its picture and its title."""

    required_arguments, final_argument_whitespace = 1, True

    def run(self) -> list[nodes.Node]:
        tagged = {path.stem: tags(path.read_text()) for path in sorted(FOLDER.glob("*.py"))}
        return [thumbnails(names=[name for name, has in tagged.items() if self.arguments[0] in has])]


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname.startswith("gallery/") and docname != "gallery/index":
        source[0] = page(source[0], docname.removeprefix("gallery/"))


def resolve(app: Sphinx, tree: nodes.document, docname: str) -> None:
    """Writes an example's notebook; in the index, puts the pictures in their places."""
    for place in list(tree.findall(thumbnails)):
        cards = nodes.container(classes=["gallery"])
        for name in place["names"]:
            image = next(app.env.get_doctree(f"gallery/{name}").findall(nodes.image)).deepcopy()
            title = nodes.inline("", app.env.titles[f"gallery/{name}"].astext())
            uri = app.builder.get_relative_uri(docname, f"gallery/{name}")
            cards += nodes.paragraph("", "", nodes.reference("", "", image, title, internal=True, refuri=uri))
        place.replace_self(cards)
    name = docname.removeprefix("gallery/")
    if app.builder.format == "html" and (path := FOLDER / f"{name}.py").is_file() and docname != name:
        if len(list(tree.findall(nodes.image))) != 1:
            raise ExtensionError(f"{path.name}: an example has one picture")
        file = Path(app.outdir, "_downloads", f"{name}.ipynb")
        file.parent.mkdir(exist_ok=True)
        file.write_text(notebook(path.read_text(), outputs(tree, Path(app.srcdir))))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_node(thumbnails)
    app.add_directive("gallery", Gallery)
    app.connect("source-read", read, priority=400)  # before run_directive looks for examples that are not run
    app.connect("doctree-resolved", resolve)
    app.connect("env-updated", lambda app, env: ["gallery/index"])
    return {"parallel_read_safe": True, "parallel_write_safe": True}
