"""Separated text -> raw columns, read in pieces: what is in memory is the numbers, not the text.

The separator (comma, semicolon, tab, |, else blanks) is the one that cuts all of the first lines into as many cells;
the encoding is UTF-8, or UTF-16 where the file begins with its mark. Cells with leading zeros stay text.
"""

from __future__ import annotations

import csv
import gzip
import io
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ppgen.data.cells.cells import LIKELY_POINT
from ppgen.data.cells.typed import default_float, fits_float32
from ppgen.data.files.frames import unpack
from ppgen.errors import PpgenError
from ppgen.memory import require_memory

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ppgen")

CELLS = 2**22  # of a piece
SMALL = 2**26  # bytes of a file that is read at once
BLOCK = 2**19  # bytes of a pass over the lines
SAMPLE = 1000  # rows whose text is looked at first
HEAD = 2**16  # characters that the separator is looked for in
SEPARATORS = "\t;|,"  # a comma last: it stands inside numbers too
MARK = "[mark]"  # no name of a column: the decimal mark of the file, where its numbers say it, or its separator
_NO_TEXT = {
    b"PK\x03\x04": "an Excel workbook or a zip archive; call it .xlsx, or unpack it",
    b"%PDF": "a PDF; export its table",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls); save it as .xlsx or csv",
}
_CALLED = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_csv(
    path: Path, rows: int | None = None, keep: Collection[str] = (), texts: Collection[str] = ()
) -> dict[str, Any]:
    """A header row gives the names; a table of numbers alone is x, and its columns "0", "1", …

    Args:
        rows: the first so many are read; None for all.
        keep: words that are no missing cells, whatever they are.
        texts: columns whose cells are left as they are written.
    """
    _require_text(path)
    try:
        separator, first = _beginning(path)
        n = _checked_lines(path, separator, len(first), rows)
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
    source = _Source(path, separator, names, headless, rows, keep, texts)
    frame = source.frame()
    if not headless and not first[-1].strip() and len(first) > 1 and frame[names[-1]].isna().all():
        frame = frame[names[:-1]]  # a separator at the end of every line
    if not headless and separator != ",":
        frame = source.with_thousands(frame)
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
    if "\r" in head and "\n" not in head:
        raise PpgenError("its lines end in carriage returns alone, as on old Macs; save it with the line ends of today")
    if sep := re.match("sep=.\r?\n", head):
        raise PpgenError(f"its first line is {sep[0].strip()!r}, which Excel alone reads; delete that line")
    if head.lstrip()[:1] in ("{", "[", "<"):
        what = (
            "a web page or XML"
            if head.lstrip()[0] == "<"
            else "JSON; call it .json, or .jsonl where each line is a row"
        )
        raise PpgenError(f"it is no table of text, but {what}")
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
    if not even and (found[","][0] == 1 or max(n[0] for n in found.values()) == 1) and _is_cut_by_blanks(whole):
        even = [" "]
    if not even:
        _require_cut(whole, found)
    separator = even[0] if even else max(reversed(SEPARATORS), key=lambda s: found[s][0] if s in found else 0)
    with _open(path) as text:
        cut = csv.reader(text, strict=True, skipinitialspace=True, delimiter=separator)
        first = next(row for row in cut if row)
        return separator, first[:-1] if separator == " " and not first[-1] else first


def _require_text(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(4)
    for mark, what in _NO_TEXT.items():
        if head.startswith(mark):
            raise PpgenError(f"it cannot be read as csv: it is no text, but {what}")


def _require_cut(text: str, found: dict[str, list[int]]) -> None:
    """Refuses lines of several cells under a single name, and lines that something else cuts, as fixed widths do."""
    lines = [line for line in text.splitlines()[:200] if line.strip()]
    for separator, n in found.items():
        if n[0] == 1 and len(n) > 1 and len(set(n[1:])) == 1 and n[1] > 1 and separator != ",":
            raise PpgenError(
                f"its first line has one name, and the others have {n[1]} cells, cut by {_CALLED[separator]}; write a "
                "line of names above them, a name a column"
            )
    if len(lines) < 2 or any(n[0] > 1 for n in found.values()):
        return
    for mark in "^~:#/":
        if len({line.count(mark) for line in lines}) == 1 and mark in lines[0]:
            raise PpgenError(
                f"its lines are cut by none of comma, semicolon, tab and |, and each has {mark!r} as often as the "
                "first; write commas there"
            )
    if all(re.search(r"\S {2,}\S", line) for line in lines):
        raise PpgenError(
            "its lines are cut by none of comma, semicolon, tab and |, and have blanks side by side, as columns of "
            "fixed widths have; write it with commas (pandas.read_fwf reads it)"
        )


def _is_cut_by_blanks(text: str) -> bool:
    """Whether blanks cut all lines into as many cells, of which some are numbers below a name."""
    lines = [line.split() for line in text.splitlines()[:200] if line.strip()]
    if len(lines) < 2 or len(lines[0]) < 2 or len({len(line) for line in lines}) > 1:
        return False
    return any(all(map(_is_figure, column)) for column in zip(*lines[1:], strict=True))


def named_columns(first: list[str]) -> list[str]:
    """The names that a first line gives."""
    if len(first) > 2 and first[0].strip() and not any(cell.strip() for cell in first[1:]):
        raise PpgenError(
            f"its first line names the first of {len(first)} columns alone ({first[0].strip()!r}), as a title does; "
            "delete what stands above the line of names"
        )
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
    from ppgen.data.cells.figures import kind_of_text

    try:
        float(cell)
    except ValueError:
        return bool(cell.strip()) and kind_of_text(cell.strip()) in ("number", "date")
    return True


# -- lines -----------------------------------------------------------------------------------------


def _checked_lines(path: Path, separator: str, cells: int, rows: int | None) -> int:
    """The number of lines, all of which have as many cells."""
    found = None if rows is not None or separator == " " else _counted(path, separator, cells)
    return found if found is not None else _read_lines(path, separator, cells, rows)


def _counted(path: Path, separator: str, cells: int) -> int | None:
    """As `_checked_lines`, from the bytes alone; None where that is not plain: `_read_lines` says more."""
    quoted, left, n, last = 0, 0, 0, 10  # of the block before
    for block in _blocks(path):
        quotes = block == 34
        cut, end = block == ord(separator), block == 10
        if quoted or quotes.any():
            inside = np.logical_xor.accumulate(quotes) != bool(quoted)  # one quote may be open at the beginning
            cut, end = cut & ~inside, end & ~inside
            quoted = int(inside[-1])
        ends = np.flatnonzero(end)
        if len(ends):
            starts = np.concatenate([[0], ends[:-1] + 1])
            each = np.add.reduceat(cut.view(np.uint8), starts, dtype=np.int32)
            each[-1] -= int(cut[ends[-1] + 1 :].sum())
            each[0] += left
            length = ends - starts
            blank = (length == 0) | (length == 1) & (block[ends - 1] == 13)  # an empty line, or a carriage return
            blank[0] &= left == 0 and (last == 10 or length[0] > 0)
            if bool((~blank & (each != cells - 1)).any()):
                return None
            n += int((~blank).sum())
            left = int(cut[ends[-1] + 1 :].sum())
        else:
            left += int(cut.sum())
        last = int(block[-1])
    if quoted or last != 10 and left != cells - 1:
        return None
    return n + (last != 10)


def _has_zeros(path: Path, separator: str) -> bool:
    """Whether some cell begins with a zero of its own, as 007 does."""
    last = np.array([10], np.uint8)
    for block in _blocks(path):
        whole = np.concatenate([last, block])
        before, digit = whole[:-2], whole[2:] - np.uint8(48) < 10
        begins = (before == ord(separator)) | (before == 10) | (before == 34)
        if bool((begins & (whole[1:-1] == 48) & digit).any()):
            return True
        last = whole[-2:]
    return False


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
            row = row[:-1] if separator == " " and row and not row[-1] else row
            if row and len(row) != cells:
                raise PpgenError(_uneven(lines.line_num, len(row), cells, n))
            n += 1
            if rows is not None and n > rows:
                break
    return n


def _uneven(line: int, here: int, cells: int, before: int) -> str:
    """The sentence on a line with another number of cells than the first, which `before` lines have like it."""
    found = f"line {line} has {here} cells, expected {cells} as in the first line; "
    if here > cells == 1:
        return f"{found}delete titles and comments above the names, or quote cells with a comma in them"
    if here > cells and before == 1:
        return f"{found}give every column a name, or quote numbers with a decimal comma"
    return f"{found}complete or delete that line (a file cut short ends like this)"


# -- cells -----------------------------------------------------------------------------------------


class _Source:
    """A file as pandas reads it."""

    def __init__(
        self, path: Path, separator: str, names: list[str], headless: bool, rows: int | None, keep: Collection[str],
        texts: Collection[str],
    ):  # fmt: skip
        from ppgen.data.cells.figures import MISSING

        self.path, self.separator, self.names = path, separator, names
        plain = sorted(w for w in MISSING - set(keep) if re.search(r"[a-zA-Z]", w) or not w)  # "?" is said
        self.how: dict[str, Any] = {
            "names": names, "header": None if headless else 0, "index_col": False, "nrows": rows,
            "sep": r"\s+" if separator == " " else separator,
            "skipinitialspace": True, "low_memory": False, "keep_default_na": False, "na_values": plain,
            "dtype": {name: str for name in names if name in texts},
        }  # fmt: skip

    def frame(self) -> pd.DataFrame:
        """The columns, floats in torch's default dtype."""
        import pandas as pd

        size = max(1000, CELLS // len(self.names))
        if _is_plain(self.path) and self.path.stat().st_size < SMALL:
            return self._with_zeros(_narrowed(pd.read_csv(self.path, encoding="utf-8-sig", **self.how)))
        parts, moments = [], []
        with _open(self.path) as text, pd.read_csv(text, chunksize=size, **self.how) as reader:
            for part in reader:
                floats = part.select_dtypes("float")
                moments.append({name: _moments_of(floats[name].to_numpy()) for name in floats})
                parts.append(_narrowed(part))
        odd = [name for name in self.names if not _one_kind({part[name].dtype.kind for part in parts})]
        odd += [name for name in self.names if name not in odd and _is_rounded(name, parts, moments)]
        columns: dict[str, Any] = {
            name: np.concatenate([part.pop(name).to_numpy() for part in parts])
            for name in self.names
            if name not in odd
        }
        if odd:  # text, or another kind from piece to piece: only the whole column says what it is
            columns |= dict(self.again(odd))
        whole = pd.DataFrame({name: columns[name] for name in self.names}, copy=False)
        return self._with_zeros(_narrowed(whole))

    def _with_zeros(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Whole numbers of which some are written with a zero before them, as text."""
        whole = [name for name in self.names if _is_whole(frame[name])]
        if not whole or not _has_zeros(self.path, self.separator):
            return frame
        texts = dict(self.again(whole, dtype=str))
        changed = {n: t for n, t in texts.items() if bool(t.str.fullmatch(r"\s*[+-]?0\d+\s*").any())}
        return frame.assign(**changed) if changed else frame

    def with_thousands(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Numbers that are all written as 1.234 stay text: another column may say that points separate thousands."""
        from ppgen.data.cells.figures import are_thousands

        floats = [name for name in self.names if name in frame and frame[name].dtype.kind == "f"]
        if not floats:
            return frame
        first = dict(self.again(floats, dtype=str, nrows=SAMPLE))
        changed = [name for name in floats if are_thousands(first[name].dropna())]
        texts = dict(self.again(changed, dtype=str)) if changed else {}
        changed = [name for name in changed if are_thousands(texts[name].dropna())]
        return frame.assign(**{name: texts[name] for name in changed}) if changed else frame

    def again(self, names: list[str], **how: Any) -> pd.DataFrame:
        """Some of the columns as a whole."""
        import pandas as pd

        places = [self.names.index(name) for name in names]
        with _open(self.path) as text:
            return _narrowed(pd.read_csv(text, **{**self.how, **how}, usecols=places))


def _one_kind(kinds: set[str]) -> bool:
    return kinds <= {"i", "f"} or kinds == {"b"}


def _is_whole(column: pd.Series) -> bool:
    """Whether its numbers are whole: where cells are missing, pandas reads them as floats."""
    if column.dtype.kind != "f":
        return bool(column.dtype.kind == "i")
    numbers = column.to_numpy()
    gone = np.isnan(numbers)
    return bool(gone.any()) and bool((gone | (numbers == np.round(numbers))).all())


def _is_rounded(name: str, parts: list[pd.DataFrame], moments: list[dict[str, Any]]) -> bool:
    """Whether pieces of a column were rounded, that float32 does not hold as a whole."""
    own = [m[name] for m in moments if name in m]
    return bool(own) and any(part[name].dtype != float for part in parts) and not fits_float32(*_joined_moments(own))


def _narrowed(frame: pd.DataFrame) -> pd.DataFrame:
    """Floats in torch's default dtype, where that holds how they vary."""
    floats = frame.select_dtypes("float").columns
    return frame.assign(**{name: default_float(frame[name].to_numpy()) for name in floats}) if len(floats) else frame


def _moments_of(values: np.ndarray) -> tuple[int, float, float]:
    """How many are finite, their mean and variance."""
    finite = values[np.isfinite(values)]
    return (len(finite), float(finite.mean()), float(finite.var())) if len(finite) else (0, 0.0, 0.0)


def _joined_moments(parts: Sequence[tuple[int, float, float]]) -> tuple[float, float]:
    """Mean and standard deviation of the whole, of those of its parts."""
    n = sum(k for k, _, _ in parts)
    if not n:
        return 0.0, 0.0
    mean = sum(k * m for k, m, _ in parts) / n
    return mean, float(np.sqrt(sum(k * (v + (m - mean) ** 2) for k, m, v in parts) / n))
