"""docs/errors.md: what is said of each broken program, data set and option of tests/test_check.py, by kind.

python tests/test_errors_page.py      writes docs/errors.md
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_check import BROKEN, local_model

from ppgen import PpgenError, Program, Run
from ppgen.catalog import build, find
from ppgen.data import load
from ppgen.inference import fit

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
KINDS = {  # the first whose words a name has
    "Options": "unknown|lr of|batch_size of|patience|seed",
    "Guides": "guide",
    "Plates, rows and batches": "plate|rows|batch|beside",
    "Data": "column|data|grey|shape",
    "Models": "",
}
OTHERS = {"unknown device", "unknown precision", "unknown optimizer option"}  # sentences with lists of other libraries
FILES: dict[str, Callable[[], object]] = {
    "unknown data set": lambda: load("digitz"),
    "unknown split": lambda: load("digits", "tset"),
    "unknown model": lambda: find("ppcaa"),
    "unknown argument of a model": lambda: build(find("ppca"), {"latents": 2}),
    "functions given to Program": lambda: Program(local_model),  # type: ignore[call-arg]
    "a file cut short": lambda: load(_file("t.csv", "x,y\n1,2\n3\n")),
    "a folder without pictures": lambda: load(_folder("pictures")),
    "no run folder": lambda: Run.load(_folder("runs/digits")),
}
HEAD = """# What an error message means

An error is one sentence: the site, column or option, what was found and what was expected, and a remedy. It is raised
before the first step where that can be known, as `ppgen.PpgenError` in Python; from the shell it is printed, with exit
code 2. Below is what is said of the broken programs that the tests have, after the part that is broken. This page is
written by `python tests/test_errors_page.py`, and a test holds it to the messages.
"""


def kind(name: str) -> str:
    return next(k for k, words in KINDS.items() if re.search(words, name))


def sentence(name: str) -> str:
    """What is said of a broken program; the lines of files of their own are left out."""
    model, guide, data, options, _ = BROKEN[name]
    with pytest.raises(PpgenError) as e:
        fit(Program.from_pair(model, guide), data, steps=5, **options)
    return re.sub(r"(/\S*/)?\w+\.py[:\w, ]*line \d+|\S+test_check\.py:\d+", "model.py", str(e.value))


def parts(name: str) -> Iterator[str]:
    """The source of the functions that are broken, and the options."""
    model, guide, data, options, _ = BROKEN[name]
    for part in (model, guide):
        if inspect.isfunction(part) and part.__name__ != "<lambda>" and part is not local_model:
            yield textwrap.dedent(inspect.getsource(part)).rstrip()
        elif isinstance(part, str):
            yield f"fit(..., guide={part!r})"
    if options:
        yield "fit(..., " + ", ".join(f"{k}={v!r}" for k, v in options.items()) + ")"


def _file(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def _folder(name: str) -> str:
    Path(name).mkdir(parents=True, exist_ok=True)
    return name


def of_file(name: str) -> str:
    """What is said of a name or a file, in an empty folder."""
    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty), pytest.raises(PpgenError) as e:
        FILES[name]()
    return str(e.value)


def entry(name: str, shown: list[Any], said: str) -> list[str]:
    said = textwrap.fill(said, 84, break_long_words=False, break_on_hyphens=False)
    return [f"**{name[0].upper()}{name[1:]}**", "", fence("\n\n".join([*shown, said])), ""]


def fence(text: str) -> str:
    return f"```text\n{text}\n```"


def page() -> str:
    by_kind: dict[str, list[str]] = {k: [] for k in KINDS}
    for name in (n for n in BROKEN if n not in OTHERS):
        by_kind[kind(name)].append(name)
    lines = [HEAD]
    for title in ("Guides", "Models", "Plates, rows and batches", "Data", "Options"):
        lines += [f"## {title}", ""]
        if title == "Guides":
            lines += ["Where no model is shown it is this one:", "", fence(inspect.getsource(local_model).rstrip()), ""]
        for name in by_kind[title]:
            shown: list[Any] = [] if title in ("Data", "Options") else list(parts(name))
            lines += entry(name, shown, sentence(name))
    lines += ["## Names, files and folders", ""]
    for name in FILES:
        lines += entry(name, [], of_file(name))
    return "\n".join(lines).rstrip() + "\n"


def test_the_page_says_what_is_said():
    assert PAGE.read_text() == page(), "run python tests/test_errors_page.py"


def test_every_kind_has_its_messages():
    assert {kind(name) for name in BROKEN} == set(KINDS)
    assert kind("guide lacks a site") == "Guides" and kind("unknown guide") == "Options"


if __name__ == "__main__":
    logging.disable()
    PAGE.write_text(page())
