"""Comma-separated text -> raw columns, read in pieces: what is in memory is the numbers, not the text."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from ppgen.data.columns import unpack
from ppgen.errors import PpgenError
from ppgen.memory import require_memory

if TYPE_CHECKING:
    import pandas as pd

CELLS = 2**22  # of a piece


def read_csv(path: Path, rows: int | None = None) -> dict[str, Any]:
    """A header row gives the names; a table of numbers alone is x, and its columns "0", "1", …

    Args:
        rows: the first so many are read; None for all.
    """
    try:
        first, n = _checked_lines(path, rows)
    except UnicodeDecodeError as error:
        raise PpgenError(
            f"it cannot be read as csv: its text is not UTF-8 (byte {error.start}); save it as UTF-8 "
            "(spreadsheets call it CSV UTF-8)"
        ) from error
    headless = all(_is_number(cell) for cell in first)
    names = [cell.strip() or "index" for cell in first]  # R and pandas leave the index unnamed
    if not headless and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PpgenError(f"two columns are called {twice!r}; give each a name of its own")
    require_memory(
        8 * n * len(names), f"a table of {n} rows and {len(names)} columns",
        "fit a part of its rows, or write it as .npy in float32, which is opened and not read",
    )  # fmt: skip
    names = [str(i) for i in range(len(first))] if headless else names
    frame = _frame(path, names, headless, rows)
    return {"x": frame} if headless else unpack(frame)


def _open(path: Path) -> IO[str]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _checked_lines(path: Path, rows: int | None) -> tuple[list[str], int]:
    """The first line's cells, and the number of lines, all of which have as many."""
    with _open(path) as text:
        lines = csv.reader(text, strict=True, skipinitialspace=True)
        first = next((row for row in lines if row), [])
        if not first:
            raise PpgenError("it is empty; write a header row and at least one row of numbers")
        if len(first) == 1 and any(mark in first[0] for mark in ";\t"):
            raise PpgenError("its cells are separated by semicolons or tabs; save it with commas")
        n = 1
        for row in lines:
            if row and len(row) != len(first):
                raise PpgenError(
                    f"line {lines.line_num} has {len(row)} cells, expected {len(first)} as in the "
                    "first line; complete or delete that line (a file cut short ends like this)"
                )
            n += 1
            if rows is not None and n > rows:
                break
    return first, n


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _frame(path: Path, names: list[str], headless: bool, rows: int | None) -> pd.DataFrame:
    import pandas as pd

    how: dict[str, Any] = {"names": names, "header": None if headless else 0, "index_col": False, "nrows": rows}
    how |= {"skipinitialspace": True, "low_memory": False}
    size = max(1000, CELLS // len(names))
    with _open(path) as text, pd.read_csv(text, chunksize=size, **how) as reader:
        parts = [_narrowed(part) for part in reader]
    if len(parts) == 1:
        return parts[0]
    odd = [name for name in names if not _one_kind({part[name].dtype.kind for part in parts})]
    columns: dict[str, Any] = {
        name: np.concatenate([part.pop(name).to_numpy() for part in parts]) for name in names if name not in odd
    }
    if odd:  # text, or another kind from piece to piece: only the whole column says what it is
        places = [names.index(name) for name in odd]
        with _open(path) as text:
            columns |= dict(_narrowed(pd.read_csv(text, **how, usecols=places)))
    return _narrowed(pd.DataFrame({name: columns[name] for name in names}, copy=False))


def _one_kind(kinds: set[str]) -> bool:
    return kinds <= {"i", "f"} or kinds == {"b"}


def _narrowed(frame: pd.DataFrame) -> pd.DataFrame:
    """Floats in torch's default dtype."""
    floats = frame.select_dtypes("float").columns
    return frame.astype(dict.fromkeys(floats, str(torch.get_default_dtype()).split(".")[1]))
