"""Columns of a table that say the same as another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from ppgen.data.types import ColumnType

ENOUGH_ROWS = 20  # fewer may agree by chance
MOST_VALUES = 1000  # of a column that is held against others by its pattern alone


def with_relations(types: Mapping[str, ColumnType], columns: Mapping[str, Any]) -> dict[str, ColumnType]:
    """The types, with a note on each column that an earlier one has the values of, or goes with one to one."""
    values: dict[Any, list[str]] = {}
    patterns: dict[bytes, str] = {}
    made = dict(types)
    arrays = {n: v.numpy() for n in types if isinstance(v := columns.get(n), Tensor) and v.dim() == 1}
    for name, array in arrays.items():
        own = types[name]
        if len(array) < ENOUGH_ROWS or own.kind == "text":
            continue
        alike = values.setdefault((own.levels, array[:ENOUGH_ROWS].astype(float).tobytes()), [])
        same = next((n for n in alike if np.array_equal(arrays[n], array, equal_nan=True)), None)
        alike.append(name)
        if same is not None:
            made[name] = _noted(own, f"holds the same as {same!r}")
        elif (pattern := _pattern(array)) is not None and (other := patterns.setdefault(pattern, name)) != name:
            note = f"goes with {other!r} one to one, as its code or its name does"
            numbers = own.kind == "categorical" and not own.levels and bool(types[other].levels)
            made[name] = _noted(replace(own, kind="count", why=f"the numbers of {other!r}") if numbers else own, note)
    return made


def _noted(own: ColumnType, note: str) -> ColumnType:
    return replace(own, notes=(*own.notes, note))


def _pattern(array: np.ndarray) -> bytes | None:
    """The rows numbered by the order in which their values first stand; None where there are too many values."""
    if array.dtype.kind != "i" or not array.size:
        return None
    low = int(array.min())
    if int(array.max()) - low > MOST_VALUES or low < 0:
        return None
    first = np.full(int(array.max()) + 1, len(array))
    first[array[::-1]] = np.arange(len(array))[::-1]  # the last that is written is the first row
    there = np.flatnonzero(first < len(array))
    if len(there) < 3:
        return None
    number = np.empty(len(first), np.int64)
    number[there[np.argsort(first[there])]] = np.arange(len(there))
    return number[array].tobytes()
