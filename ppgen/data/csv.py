"""Separated text -> raw columns, read in pieces: what is in memory is the numbers, not the text.

The separator (comma, semicolon, tab, |) is the one that cuts all of the first lines into as many cells; the encoding is
UTF-8, or UTF-16 where the file begins with its mark. Cells with leading zeros stay text.
"""

from __future__ import annotations

import csv
import gzip
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ppgen.data.cells import LIKELY_POINT
from ppgen.data.frames import unpack
from ppgen.data.typed import default_float
from ppgen.errors import PpgenError
from ppgen.memory import require_memory

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ppgen")

CELLS = 2**22  # of a piece
SMALL = 2**26  # bytes of a file that is read at once
BLOCK = 2**19  # bytes of a pass over the lines
HEAD = 2**16  # characters that the separator is looked for in
SEPARATORS = "\t;|,"  # a comma last: it stands inside numbers too
MARK = "[mark]"  # no name of a column: the decimal mark of the file, where its numbers say it, or its separator
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_csv(path: Path, rows: int | None = None) -> dict[str, Any]:
    """A header row gives the names; a table of numbers alone is x, and its columns "0", "1", …

    Args:
        rows: the first so many are read; None for all.
    """
    try:
        separator, first = _beginning(path)
        n, zeros = _checked_lines(path, separator, len(first), rows)
    except UnicodeDecodeError as error:
        raise PpgenError(
            f"it cannot be read as csv: its text is not UTF-8 (byte {error.start}); save it as UTF-8 "
            "(spreadsheets call it CSV UTF-8)"
        ) from error
    headless = all(map(_is_figure, first))
    names = [str(i) for i in range(len(first))] if headless else named_columns(first)
    require_memory(
        8 * n * len(names), f"a table of {n} rows and {len(names)} columns",
        "fit a part of its rows, or write it as .npy in float32, which is opened and not read",
    )  # fmt: skip
    source = _Source(path, separator, names, headless, rows)
    frame = source.frame(zeros)
    if not headless and not first[-1].strip() and len(first) > 1 and frame[names[-1]].isna().all():
        frame = frame[names[:-1]]  # a separator at the end of every line
    floats = frame.select_dtypes("float")
    points = any(bool((v != v.round()).sum() > v.isna().sum()) for _, v in floats.items())
    mark = "." if points else LIKELY_POINT if separator == "," else ""
    return ({"x": frame} if headless else unpack(frame)) | {MARK: mark}


def _open(path: Path) -> IO[str]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    binary: Any = gzip.open(path) if zipped else path.open("rb")  # noqa: SIM115 - closed with the text
    encoding = "utf-16" if binary.peek(2)[:2] in _UTF16 else "utf-8-sig"
    return io.TextIOWrapper(binary, encoding=encoding, newline="")


def _beginning(path: Path) -> tuple[str, list[str]]:
    """The separator, and the first line's cells."""
    with _open(path) as text:
        head = text.read(HEAD)
    if "\0" in head:
        raise PpgenError("it cannot be read as csv: it has zero bytes, as UTF-16 without a mark has; save it as UTF-8")
    whole = head if len(head) < HEAD else head[: head.rfind("\n") + 1] or head
    found: dict[str, list[int]] = {}
    for separator in SEPARATORS:
        try:
            lines = [row for row in csv.reader(io.StringIO(whole), delimiter=separator, skipinitialspace=True) if row]
        except csv.Error:
            continue
        found[separator] = [len(row) for row in lines[:200]]
    if not found.get(","):
        raise PpgenError("it is empty; write a header row and at least one row of numbers")
    even = [s for s, n in found.items() if n[0] > 1 and len(set(n)) == 1]
    separator = even[0] if even else max(reversed(SEPARATORS), key=lambda s: found[s][0] if s in found else 0)
    with _open(path) as text:
        cut = csv.reader(text, strict=True, skipinitialspace=True, delimiter=separator)
        return separator, next(row for row in cut if row)


def named_columns(first: list[str]) -> list[str]:
    """The names that a first line gives.

    Raises:
        PpgenError: a line of data in the place of the names; a name that stands twice.
    """
    for cell in first:
        if _is_figure(cell) and not cell.strip().isdigit():
            raise PpgenError(
                f"its first line, which gives the names of the columns, has {cell.strip()!r}, as a row of data has; "
                "write a line of names above it"
            )
    numbers = [cell.strip() for cell in first if cell.strip().isdigit()]
    if any(not 1800 <= int(cell) <= 2200 for cell in numbers):  # years are names of columns too
        log.warning(
            "the first line of the table gives the names of its columns, of which one is %r; where it is a row of "
            "data, write a line of names above it", numbers[0],
        )  # fmt: skip
    blank = [i for i, cell in enumerate(first) if not cell.strip()]
    # R and pandas leave the index unnamed
    names = [cell.strip() or ("index" if i == blank[0] else f"column_{i}") for i, cell in enumerate(first)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PpgenError(f"two columns are called {twice!r}; give each a name of its own")
    return names


def _is_figure(cell: str) -> bool:
    from ppgen.data.figures import kind_of_text

    try:
        float(cell)
    except ValueError:
        return bool(cell.strip()) and kind_of_text(cell.strip()) in ("number", "date")
    return True


# -- lines -----------------------------------------------------------------------------------------


def _checked_lines(path: Path, separator: str, cells: int, rows: int | None) -> tuple[int, bool]:
    """The number of lines, all of which have as many cells, and whether some cell begins with a zero of its own.

    Raises:
        PpgenError: a line with more cells, or fewer.
    """
    found = None if rows is not None else _counted(path, separator, cells)
    return found if found is not None else (_read_lines(path, separator, cells, rows), True)


def _counted(path: Path, separator: str, cells: int) -> tuple[int, bool] | None:
    """As `_checked_lines`, from the bytes alone; None where that is not plain: `_read_lines` says more."""
    quoted, left, n, zeros = 0, 0, 0, False
    open_zero, last = False, 10  # of the block before
    for block in _blocks(path):
        marks = (block == 34).any()
        inside = _inside(block == 34, quoted) if marks or quoted else None
        cut, end = block == ord(separator), block == 10
        if inside is not None:
            cut, end = cut & ~inside, end & ~inside
            quoted = int(inside[-1])
        ends = np.flatnonzero(end)
        places = np.flatnonzero(cut)
        at = np.concatenate([[0], np.searchsorted(places, ends)])
        each = np.diff(at)
        if len(each):
            each[0] += left
            starts = np.concatenate([[-1], ends[:-1]])
            length = ends - starts
            blank = (length == 1) | (length == 2) & (block[ends - 1] == 13)  # an empty line, or a carriage return
            if bool((~blank & (each != cells - 1)).any()) and not (cells == 1 and not each.any()):
                return None
            n += int((~blank).sum())
            left = 0
        left += int(len(places) - at[-1])
        before = np.concatenate([[last], block[:-1]])
        begins = (before == ord(separator)) | (before == 10) | (before == 34)
        zero, digit = begins & (block == 48), (block >= 48) & (block <= 57)
        zeros = zeros or bool((zero[:-1] & digit[1:]).any()) or open_zero and bool(digit[0])
        open_zero, last = bool(zero[-1]), int(block[-1])
    if quoted or last != 10 and left != cells - 1:
        return None
    return n + (last != 10), zeros


def _inside(quotes: np.ndarray, quoted: int) -> np.ndarray:
    """Which bytes stand between quotes, one of which may be open at the beginning."""
    return (np.logical_xor.accumulate(quotes) != bool(quoted)).astype(bool)


def _blocks(path: Path) -> Iterator[np.ndarray]:
    """The file's bytes in UTF-8."""
    if _is_plain(path):
        with path.open("rb") as file:
            while content := file.read(BLOCK):
                yield np.frombuffer(content, np.uint8)
        return
    with _open(path) as text:
        while part := text.read(BLOCK):
            yield np.frombuffer(part.encode(), np.uint8)


def _is_plain(path: Path) -> bool:
    """Whether it is text in UTF-8 as it stands."""
    with path.open("rb") as file:
        head = file.read(2)
    return head != b"\x1f\x8b" and head not in _UTF16


def _read_lines(path: Path, separator: str, cells: int, rows: int | None) -> int:
    n = 0
    with _open(path) as text:
        lines = csv.reader(text, strict=True, skipinitialspace=True, delimiter=separator)
        for row in lines:
            if row and len(row) != cells:
                raise PpgenError(
                    f"line {lines.line_num} has {len(row)} cells, expected {cells} as in the "
                    "first line; complete or delete that line (a file cut short ends like this)"
                )
            n += 1
            if rows is not None and n > rows:
                break
    return n


# -- cells -----------------------------------------------------------------------------------------


class _Source:
    """A file as pandas reads it."""

    def __init__(self, path: Path, separator: str, names: list[str], headless: bool, rows: int | None):
        from ppgen.data.figures import MISSING

        self.path, self.names = path, names
        plain = sorted(word for word in MISSING if re.search(r"[a-zA-Z]", word) or not word)  # "?" is said
        self.how: dict[str, Any] = {
            "names": names, "header": None if headless else 0, "index_col": False, "nrows": rows, "sep": separator,
            "skipinitialspace": True, "low_memory": False, "keep_default_na": False, "na_values": plain,
        }  # fmt: skip

    def frame(self, zeros: bool) -> pd.DataFrame:
        """The columns, floats in torch's default dtype.

        Args:
            zeros: whether cells may begin with a zero of their own.
        """
        import pandas as pd

        size = max(1000, CELLS // len(self.names))
        if _is_plain(self.path) and self.path.stat().st_size < SMALL:
            return self._with_zeros(_narrowed(pd.read_csv(self.path, encoding="utf-8-sig", **self.how)), zeros)
        with _open(self.path) as text, pd.read_csv(text, chunksize=size, **self.how) as reader:
            parts = [_narrowed(part) for part in reader]
        odd = [name for name in self.names if not _one_kind({part[name].dtype.kind for part in parts})]
        columns: dict[str, Any] = {
            name: np.concatenate([part.pop(name).to_numpy() for part in parts])
            for name in self.names
            if name not in odd
        }
        if odd:  # text, or another kind from piece to piece: only the whole column says what it is
            columns |= dict(self.again(odd))
        whole = pd.DataFrame({name: columns[name] for name in self.names}, copy=False)
        return self._with_zeros(_narrowed(whole), zeros)

    def _with_zeros(self, frame: pd.DataFrame, zeros: bool) -> pd.DataFrame:
        """Whole numbers of which some are written with a zero before them, as text."""
        whole = [name for name in self.names if frame[name].dtype.kind == "i"] if zeros else []
        texts = self.again(whole, dtype=str) if whole else {}
        changed = {n: t for n, t in dict(texts).items() if bool(t.str.fullmatch(r"\s*[+-]?0\d+\s*").any())}
        return frame.assign(**changed) if changed else frame

    def again(self, names: list[str], **how: Any) -> pd.DataFrame:
        """Some of the columns as a whole."""
        import pandas as pd

        places = [self.names.index(name) for name in names]
        with _open(self.path) as text:
            return _narrowed(pd.read_csv(text, **{**self.how, **how}, usecols=places))


def _one_kind(kinds: set[str]) -> bool:
    return kinds <= {"i", "f"} or kinds == {"b"}


def _narrowed(frame: pd.DataFrame) -> pd.DataFrame:
    """Floats in torch's default dtype, where that holds how they vary."""
    floats = frame.select_dtypes("float").columns
    return frame.assign(**{name: default_float(frame[name].to_numpy()) for name in floats}) if len(floats) else frame
