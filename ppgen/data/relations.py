"""What columns of a table say together: those that repeat another one, and last rows that are no rows of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from ppgen.data.cells.types import ColumnType

ENOUGH_ROWS = 20  # fewer may agree by chance
TOTALS = ("total", "totals", "sum", "subtotal", "mean", "average", "all", "overall", "gesamt", "summe", "somme")
MOST_VALUES = 1000  # of a column that is held against others by its pattern alone


def with_relations(types: Mapping[str, ColumnType], columns: Mapping[str, Any]) -> dict[str, ColumnType]:
    """The types, with a note on each column that an earlier one has the values of, or goes with one to one."""
    values: dict[Any, list[str]] = {}
    patterns: dict[bytes, str] = {}
    made = dict(types)
    arrays = {n: v.numpy() for n in types if isinstance(v := columns.get(n), Tensor) and v.dim() == 1}
    for name, array in arrays.items():
        own = types[name]
        if note := _last_row(name, own, arrays):
            made[name] = _noted(own, note)
        if len(array) < ENOUGH_ROWS or own.kind == "text":
            continue
        alike = values.setdefault((own.levels, array[:ENOUGH_ROWS].astype(float).tobytes()), [])
        same = next((n for n in alike if np.array_equal(arrays[n], array, equal_nan=True)), None)
        alike.append(name)
        if same is not None:
            made[name] = _noted(made[name], f"holds the same as {same!r}")
        elif (pattern := _pattern(array)) is not None and (other := patterns.setdefault(pattern, name)) != name:
            note = f"goes with {other!r} one to one, as its code or its name does"
            numbers = own.kind == "categorical" and not own.levels and bool(types[other].levels)
            made[name] = _noted(made[name], note)
            made[name] = replace(made[name], kind="count", why=f"the numbers of {other!r}") if numbers else made[name]
    return made


def _last_row(name: str, own: ColumnType, arrays: Mapping[str, np.ndarray]) -> str:
    """What is said where the last row is a total of the others, or a note under them."""
    array = arrays[name]
    if not own.levels or len(array) < 3 or np.isnan(array[-1]) or (array[:-1] == array[-1]).any():
        return ""
    word = own.levels[int(array[-1])]
    if word.strip(" :.").casefold() in TOTALS or word.casefold().startswith(("grand total", "total ")):
        return f"{word!r} in the last row looks like a total of the rows above it; leave that row out if so"
    others = [a for n, a in arrays.items() if n != name and len(a) == len(array)]
    if others and all(a.dtype.kind == "f" and np.isnan(a[-1]) for a in others):
        return f"{word!r} stands alone in the last row, as a footnote is; leave that row out if so"
    return ""


def _noted(own: ColumnType, note: str) -> ColumnType:
    return replace(own, notes=(*own.notes, note))


def _pattern(array: np.ndarray) -> bytes | None:
    """The rows numbered by the order in which their values first stand; None where there are too many values."""
    if array.dtype.kind != "i" or not array.size:
        return None
    low, high = int(array.min()), int(array.max())
    if high - low > MOST_VALUES or low < 0:
        return None
    array = array - low
    first = np.full(high - low + 1, len(array))
    first[array[::-1]] = np.arange(len(array))[::-1]  # the last that is written is the first row
    there = np.flatnonzero(first < len(array))
    if len(there) < 3:
        return None
    number = np.empty(len(first), np.int64)
    number[there[np.argsort(first[there])]] = np.arange(len(there))
    return number[array].tobytes()
