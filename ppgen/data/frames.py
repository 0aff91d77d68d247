"""Data frames of any library that narwhals knows -> pandas series, a column at a time."""

from __future__ import annotations

from typing import Any

import narwhals as nw
import pandas as pd


def series_of(data: Any) -> dict[str, pd.Series]:
    """The columns by name; categories keep their order."""
    frame = nw.from_native(data)
    frame = frame.collect() if isinstance(frame, nw.LazyFrame) else frame
    return {name: _series(frame[name]) for name in frame.columns}


def _series(column: nw.Series[Any]) -> pd.Series:
    kind = column.dtype
    if isinstance(kind, nw.Enum | nw.Categorical):
        words = column.cast(nw.String).to_list()
        levels = list(kind.categories) if isinstance(kind, nw.Enum) else sorted({w for w in words if w is not None})
        return pd.Series(pd.Categorical(words, levels, ordered=isinstance(kind, nw.Enum)))
    if isinstance(kind, nw.Datetime | nw.Date | nw.Duration):
        read = pd.to_timedelta if isinstance(kind, nw.Duration) else pd.to_datetime
        return pd.Series(read(column.to_list()))
    if kind.is_numeric() and not isinstance(kind, nw.Decimal) and not column.is_null().any():
        return pd.Series(column.to_numpy())
    if kind.is_integer() or kind.is_float():
        return pd.Series(column.cast(nw.Float64).to_numpy())
    return pd.Series(column.to_list(), dtype=None if isinstance(kind, nw.Boolean) else object)
