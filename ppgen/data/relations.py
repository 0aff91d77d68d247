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
    values: dict[bytes, str] = {}
    patterns: dict[bytes, str] = {}
    made = dict(types)
    for name, own in types.items():
        column = columns.get(name)
        if not isinstance(column, Tensor) or column.dim() != 1 or len(column) < ENOUGH_ROWS:
            continue
        array = column.numpy()
        same = values.setdefault(_key(array, own), name)
        pattern = _pattern(array)
        alike = name if pattern is None else patterns.setdefault(pattern, name)
        if same != name:
            made[name] = _noted(own, f"holds the same as {same!r}")
        elif alike != name:
            other = types[alike]
            note = f"goes with {alike!r} one to one, as its code or its name does"
            numbers = own.kind == "categorical" and not own.levels and bool(other.levels)
            made[name] = _noted(replace(own, kind="count", why=f"the numbers of {alike!r}") if numbers else own, note)
    return made


def _noted(own: ColumnType, note: str) -> ColumnType:
    return replace(own, notes=(*own.notes, note))


def _key(array: np.ndarray, own: ColumnType) -> bytes:
    return repr(own.levels).encode() + array.astype(np.float64).tobytes()


def _pattern(array: np.ndarray) -> bytes | None:
    """The rows numbered by the order in which their values first stand; None where there are too many values."""
    if array.dtype.kind != "i" or not array.size:
        return None
    low = int(array.min())
    if int(array.max()) - low > MOST_VALUES or low < 0:
        return None
    first = np.full(int(array.max()) + 1, len(array))
    np.minimum.at(first, array, np.arange(len(array)))
    there = np.flatnonzero(first < len(array))
    if len(there) < 3:
        return None
    number = np.empty(len(first), np.int64)
    number[there[np.argsort(first[there])]] = np.arange(len(there))
    return number[array].tobytes()
