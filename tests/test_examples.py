"""docs/examples: scripts of Pyro users that differ from theirs by one line, and print what theirs print."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import pyro
import pytest

FILES = sorted((Path(__file__).parent.parent / "docs" / "examples").glob("*.py"))


def printed(source: str) -> list[float]:
    pyro.clear_param_store()
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(source, "<example>", "exec"), {"__name__": "__main__"})
    pyro.clear_param_store()
    return [float(word) for word in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", out.getvalue())]


FAST = ("mixture", "radon", "digits")  # enumeration, a hierarchy in plates, a network: one of each kind


@pytest.mark.parametrize(
    "file",
    [pytest.param(f, id=f.stem, marks=[] if f.stem in FAST else [pytest.mark.slow]) for f in FILES],
)
def test_a_script_prints_what_it_prints_in_pyro(file):
    ours = file.read_text()
    line = re.search(r"^from ppgen.pyro_compat import (.*)  # was: pyro.infer$", ours, re.M)
    assert line is not None
    theirs = ours.replace(line[0], f"from pyro.infer import {line[1]}")
    found, expected = printed(ours), printed(theirs)
    assert len(found) >= 1
    assert found == pytest.approx(expected, rel=5e-3, abs=1e-3)


def test_there_are_twelve():
    assert len(FILES) == 12
