"""Plants a bug in a copy of the tree, and runs there the tests that have to notice it.

A row of a table is a `Mutant`. Its snippet is searched for in the source, so that a file may be moved or renamed; it is
one line, a part of one, or a few lines, and indentation does not count. `make mutants` plants every row of every table.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = ("ppgen", "models", "inference")
COPIED = (*SOURCE, "tests", "setup.cfg", "pyproject.toml")
LIMIT = 300  # seconds for the tests of one row
BROKEN = ("NameError", "AttributeError", "TypeError", "ImportError", "ModuleNotFoundError", "SyntaxError")


class Mutant(NamedTuple):
    """A planted bug.

    Attributes:
        name: what it is, one word or a few joined by underscores.
        old: the code as it is, found once in the source.
        new: the code with the bug.
        tests: node ids, separated by spaces: each a test, or a few of its parameters, that runs in seconds.
    """

    name: str
    old: str
    new: str
    tests: str


class PlantingError(Exception):
    """A row that cannot be planted, in one sentence."""


def sources(root: Path = ROOT) -> list[Path]:
    """Every file of the three folders; the links in ppgen/ are not followed."""
    found = [p for folder in SOURCE for p in (root / folder).rglob("*.py")]
    return sorted({p.resolve() for p in found})


def planted(mutant: Mutant, root: Path = ROOT, texts: dict[Path, str] | None = None) -> tuple[Path, str]:
    """The file that holds the snippet, and its text with the bug in place.

    Raises:
        PlantingError: the snippet is not found, or found more than once.
    """
    lines = [line.strip() for line in mutant.old.strip().splitlines()]
    pattern = re.compile(r"\n[ \t]*".join(map(re.escape, lines)))
    texts = {path: path.read_text() for path in sources(root)} if texts is None else texts
    found = [(path, text, match) for path, text in texts.items() for match in pattern.finditer(text)]
    if len(found) != 1:
        places = ", ".join(sorted({path.name for path, _, _ in found}))
        raise PlantingError(
            f"the snippet of {mutant.name} is found {len(found)} times{f' (in {places})' if found else ''}, and has to "
            f"be found once: point the row at the code that now does this, {lines[0]!r} it was"
        )
    path, text, match = found[0]
    line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    indent = line[: len(line) - len(line.lstrip())]
    new = textwrap.dedent(mutant.new).strip().replace("\n", "\n" + indent)
    return path, text[: match.start()] + new + text[match.end() :]


def run(tests: Sequence[str], mutant: Mutant | None = None, limit: float = LIMIT) -> tuple[int, str]:
    """pytest's exit code and output, for these tests in a copy of the tree, with the bug planted in it."""
    with tempfile.TemporaryDirectory(prefix="ppgen-mutant-") as folder:
        copy = Path(folder).resolve()
        for name in COPIED:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "mutants")
                shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
            else:
                shutil.copy(ROOT / name, copy / name)
        if mutant is not None:
            path, text = planted(mutant, copy)
            path.write_text(text)
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        env |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        try:
            done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return -1, f"the tests took longer than {limit} seconds"
        return done.returncode, done.stdout + done.stderr


def complaint(code: int, output: str) -> str:
    """Why this is no proof that the bug is noticed; "" where it is one: a test failed, and not by code that breaks."""
    if code == 0:
        return "the tests pass: the bug is not noticed"
    if code != 1 or not re.search(r"^\d+ failed", output.strip().splitlines()[-1]):
        return "the tests did not run"
    broken = re.search(rf"^E +({'|'.join(BROKEN)})\b.*", output, re.MULTILINE)
    return f"the planted code breaks, which proves nothing: {broken[0][1:].strip()}" if broken else ""
