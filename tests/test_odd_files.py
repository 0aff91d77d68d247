"""Text files of every make: each is read right, or is one sentence.

python tests/test_odd_files.py      writes docs/odd_files.md
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import odd_files
import pytest
from messy_files import MESSY, said_of
from odd_files import TABLE, OddFile, is_right

from ppgen import data
from ppgen.errors import PpgenError

PAGE = Path(__file__).parent.parent / "docs" / "odd_files.md"
TRAITS = {
    "separator": odd_files.SEPARATORS, "decimal mark": odd_files.MARKS, "quoting": odd_files.QUOTES,
    "encoding": odd_files.ENCODINGS, "index": odd_files.INDEX, "header": odd_files.HEADER, "gap": odd_files.GAPS,
    "date": odd_files.DATES, "digits": odd_files.DIGITS,
}  # fmt: skip


@cache
def answers() -> dict[OddFile, str]:
    """What was made of each file: "right", or its sentence, or what is wrong."""
    folder = Path(tempfile.mkdtemp())
    return {file: _answer(file, folder / "t.csv") for file in odd_files.odd_files()}


def _answer(file: OddFile, path: Path) -> str:
    path.write_bytes(file.content)
    try:
        table = data.load(path)
    except PpgenError as error:
        return _sentence(error, path)
    said = ""
    for name in TABLE:
        try:
            if not is_right(name, table[name], table.types[name]):
                return f"WRONG: {name} is {table[name].tolist()}, {table.types[name]}"
        except PpgenError as error:
            said = _sentence(error, path)
    return said or "right"


def _sentence(error: PpgenError, path: Path) -> str:
    text = str(error).replace(f"{path}: ", "").replace(str(path), "FILE")
    return text if "\n" not in text and text.count(". ") == 0 else f"WRONG: no sentence: {text}"


@cache
def messy_answers() -> dict[str, str]:
    """What was made of each file of `MESSY`: "right", or its sentence, or what is wrong."""
    path = Path(tempfile.mkdtemp()) / "t.csv"
    return {name: _messy_answer(name, path) for name in MESSY}


def _messy_answer(name: str, path: Path) -> str:
    text, known = MESSY[name]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        table = data.load(path)
    except PpgenError as error:
        said = _sentence(error, path)
        return said if isinstance(known, str) and known in said else f"WRONG: {said}"
    if isinstance(known, str):
        return f"WRONG: it is read, {dict(table)}"
    if wrong := said_of(known, table):
        return f"WRONG: {wrong}"
    refused = [own.why for own in table.types.values() if own.kind == "unclear"]
    noted = [f"{column}: {note}" for column in known for note in table.types[column].notes]
    return (refused or [f"right, and said: {noted[0]}" if noted else "right"])[0].replace(f"{path}: ", "")


@pytest.mark.parametrize("name", MESSY)
def test_a_messy_file_is_right_or_one_sentence(name):
    assert not messy_answers()[name].startswith("WRONG"), messy_answers()[name]


def test_there_are_enough_of_them():
    assert len(answers()) >= 80 and len({f.content for f in answers()}) >= 80


def test_each_is_right_or_one_sentence():
    wrong = {f.name: said for f, said in answers().items() if said.startswith("WRONG")}
    assert not wrong, f"{len(wrong)}: {next(iter(wrong.items()))}"


def test_what_is_refused_has_a_reason_to_be():
    """A Latin-1 file, a file without names, or cells that two readings fit."""
    for file, said in answers().items():
        if said != "right":
            reasons = {"Latin-1", "no header"} & set(file.traits)
            assert reasons or "which may be" in said, (file.name, said)


def page() -> str:
    """The page of the documentation."""
    found = answers()
    right = sum(said == "right" for said in found.values())
    lines = [
        "# Odd files",
        "",
        f"{len(found)} text files as pandas writes them, of one table of fourteen rows (numbers with a gap, counts, "
        "words with a gap and a comma, booleans, days): every separator with every decimal mark, quoting and encoding, "
        "and every index with every header, word for a gap and form of date, the rest going round. "
        f"{right} are read right, {len(found) - right} are refused with one sentence. This page is written by "
        "`python tests/test_odd_files.py`, and a test holds it to what is read.",
        "",
        "| what | of the file | files | read right | one sentence |",
        "|---|---|---|---|---|",
    ]
    for i, (what, kinds) in enumerate(TRAITS.items()):
        for kind in kinds:
            of_it = [said for f, said in found.items() if f.traits[i] == kind]
            n = sum(said == "right" for said in of_it)
            shown = f"`{kind}`" if what in ("gap", "date") else kind
            lines.append(f"| {what} | {shown} | {len(of_it)} | {n} | {len(of_it) - n} |")
    sentences = Counter(re.sub(r"'[^']*'|(?<=byte )\d+", "…", said) for said in found.values() if said != "right")
    lines += ["", "The sentences, with what they name left out:", ""]
    lines += [f"- {said} ({n})" for said, n in sorted(sentences.items())]
    return "\n".join([*lines, *_messy_lines()]) + "\n"


def _messy_lines() -> list[str]:
    lines = [
        "",
        "## As people leave them",
        "",
        f"{len(MESSY)} more, as spreadsheets and people leave them (tests/messy_files.py: each with what is to be made "
        "of it).",
        "",
        "| file | what is made of it |",
        "|---|---|",
    ]
    for name, said in messy_answers().items():
        shown = re.split("; (?:correct|write|say) ", said)[0] if said.startswith("the column") else said
        lines.append(f"| {name} | {shown.replace('|', chr(92) + '|')} |")
    return lines


def test_the_page_is_of_these_files():
    if not PAGE.is_file():
        pytest.fail("run python tests/test_odd_files.py")
    assert PAGE.read_text() == page(), "run python tests/test_odd_files.py"


if __name__ == "__main__":
    logging.disable()
    PAGE.write_text(page())
