"""The program that `ppgen new` writes: templates/program.py.jinja with the names put in."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path

from ppgen import catalog
from ppgen.errors import PpgenError


def program_text(file: Path) -> str:
    """The text of a new program for this file name."""
    from jinja2 import StrictUndefined, Template

    text = files("ppgen").joinpath("templates/program.py.jinja").read_text()
    return Template(text, undefined=StrictUndefined, keep_trailing_newline=True).render(
        file=file.name, name=_class_name(file.stem), run=f"runs/{file.stem}"
    )


def regression_text(
    formula: str, settings: list[str] | None, data: str | None, columns: str | None, file: Path | None,
    missing: str | None = None,
) -> str:  # fmt: skip
    """The text of the program that a formula stands for at some data."""
    from ppgen.formula.source import program_text as text_of
    from ppgen.run.sources import program_and_rows

    if not catalog.is_formula(formula):
        raise PpgenError(f"{formula!r} is no formula; expected a response and terms, as in 'y ~ 1 + x + (1 | group)'")
    made, _, _ = program_and_rows(formula, settings, data, missing, columns=columns)
    name = _class_name(file.stem if file is not None else f"{made.arguments['design']['response']['y']}_regression")
    return text_of(**made.arguments, name=name, file=file.name if file is not None else "FILE.py")


def _class_name(stem: str) -> str:
    """A class name for a file name.

    >>> _class_name("my_model"), _class_name("2d-flow"), _class_name("class")
    ('MyModel', 'Program2dFlow', 'Class')
    """
    name = "".join(word[:1].upper() + word[1:] for word in re.split(r"\W|_", stem) if word)
    if not name.isidentifier() or keyword.iskeyword(name) or name == "Program":
        name = f"Program{name if name != 'Program' else '1'}"
    return name if name.isidentifier() else "MyProgram"
