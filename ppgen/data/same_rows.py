"""Whether two tables have the same rows in another order, and which row of one is which of the other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Columns = Mapping[str, np.ndarray]  # (rows, ...) each


def matching_rows(first: Columns, other: Columns) -> np.ndarray | None:
    """The places of `first`'s rows in `other`, by the columns that both have; None where the rows are not the same.

    Rows that agree in all of these columns stand in the order of each table.

    >>> matching_rows({"y": np.array([1.0, 2.0]), "x": np.zeros(2)}, {"y": np.array([2.0, 1.0])})
    array([1, 0])
    """
    shared = sorted(set(first) & set(other))
    if not shared or any(first[k].shape != other[k].shape for k in shared):
        return None
    a, b = (np.concatenate([_numbers(own[k], first[k], other[k]) for k in shared], 1) for own in (first, other))
    here, there = (np.lexsort(_rounded(m).T) for m in (a, b))
    if not np.allclose(a[here], b[there], rtol=1e-5, atol=1e-6, equal_nan=True):
        return None
    places = np.empty(len(a), np.int64)
    places[here] = there
    return places


def _numbers(own: np.ndarray, *both: np.ndarray) -> np.ndarray:
    """(rows, values) as numbers; words by their place among those of both tables."""
    flat = own.reshape(len(own), -1)
    if flat.dtype.kind in "biuf":
        return flat.astype(float)
    words = np.unique(np.concatenate([b.ravel() for b in both]).astype(str))
    return np.searchsorted(words, flat.astype(str)).astype(float)


def _rounded(values: np.ndarray) -> np.ndarray:
    """To five digits: one table may be in float32, the other in float64."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (4 - np.floor(np.log10(np.abs(values))))
        found = np.round(values * scale) / scale
    return np.where(np.isfinite(found), found, np.nan_to_num(values, nan=np.inf) * (values != 0))
