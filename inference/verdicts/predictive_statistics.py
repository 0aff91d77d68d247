"""Statistics of observed values beside those of data sets that were drawn, some data sets at once.

Residuals are z = (x - E x_rep) / sd x_rep, value by value: their spread tells dispersion that the values' own sd, which
is that of the covariates as well, does not. E and sd are over the observed values and the drawn ones, so that x is one
among equals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

RESIDUALS = ("spread of the residuals", "largest residual", "correlation of neighboring residuals")
ALONG = f"{RESIDUALS[-1]} by "  # and the column by which the rows are sorted
SINGLE = ("least", "largest")  # of one value, whose probability is uniform however many there are
BLOCK = 2**22  # values at once
MOST_SORTED, FEW_DRAWS = 2**23, 500  # more values, sorted by all columns, are of so many data sets

Orders = Mapping[str, np.ndarray]  # of the rows, by name


class _Residuals(NamedTuple):
    """What residuals are taken by: the places of values that vary, and of these E and sd, (n,)."""

    places: np.ndarray
    loc: np.ndarray
    scale: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return (values[:, self.places] - self.loc) / self.scale


def statistics(x: np.ndarray, drawn: np.ndarray, ordered: bool, by: Orders) -> dict[str, tuple[float, np.ndarray]]:
    """By name that of the observed values, (n,), and those of S data sets, (S, n) -> (S,).

    Args:
        ordered: whether there is one value a row, or step of a loop, so that neighbors mean something.
        by: other orders of the rows; the one by which neighbors are most alike counts, in each data set.
    """
    counts = x.min() == 0 and x.max() > 1 and all((b == b.round()).all() for b in blocks(x[None], drawn))
    own = _plain(x[None], counts)
    found = [_plain(b, counts) for b in blocks(drawn)]
    residuals = _residuals(x, drawn) if len(x) > 1 else None
    if residuals is None:
        return _joined(own, found)
    neighbors = ordered and _mixed(x[residuals.places])
    own |= _of_residuals(residuals(x[None]), neighbors)
    found = [f | _of_residuals(residuals(b), neighbors) for f, b in zip(found, blocks(drawn), strict=True)]
    return _joined(own, found) | _along(x, drawn, residuals, by)


def blocks(*drawn: np.ndarray) -> Iterator[np.ndarray]:
    """Data sets, (S, n), as many at once as take little memory."""
    for part in drawn:
        size = max(BLOCK // max(part.shape[1], 1), 1)
        for start in range(0, len(part), size):
            yield part[start : start + size].astype(float)


def _joined(own: dict[str, np.ndarray], found: list[dict[str, np.ndarray]]) -> dict[str, tuple[float, np.ndarray]]:
    return {n: (float(v[0]), np.concatenate([f[n] for f in found])) for n, v in own.items()}


def _residuals(x: np.ndarray, drawn: np.ndarray) -> _Residuals | None:
    """None where no value varies."""
    size = len(drawn) + 1
    loc = sum(b.sum(0) for b in blocks(x[None], drawn)) / size
    scale = np.sqrt(sum(np.square(b - loc).sum(0) for b in blocks(x[None], drawn)) / size)
    places = np.flatnonzero(scale > 0)
    return _Residuals(places, loc[places], scale[places]) if len(places) else None


def _plain(values: np.ndarray, counts: bool) -> dict[str, np.ndarray]:
    found = {"mean": values.mean(1)}
    if values.shape[1] == 1:
        return found
    found |= {"sd": values.std(1), "least": values.min(1), "largest": values.max(1)}
    return found | ({"share of zeros": (values == 0).mean(1)} if counts else {})


def _of_residuals(residuals: np.ndarray, neighbors: bool) -> dict[str, np.ndarray]:
    squared = np.square(residuals)
    spread, largest, of_neighbors = RESIDUALS
    found = {spread: squared.mean(1) ** 0.5, largest: squared.max(1) ** 0.5}
    return found | ({of_neighbors: _alike(residuals)} if neighbors else {})


def _along(x: np.ndarray, drawn: np.ndarray, residuals: _Residuals, by: Orders) -> dict[str, tuple[float, np.ndarray]]:
    place = np.full(len(x), -1)
    place[residuals.places] = np.arange(len(residuals.places))
    orders = {n: place[o[place[o] >= 0]] for n, o in by.items() if _mixed(x[o[place[o] >= 0]])}
    if not orders:
        return {}
    every = max(min(drawn.size * len(orders) // MOST_SORTED, len(drawn) // FEW_DRAWS), 1)

    def each(values: np.ndarray) -> np.ndarray:
        z = residuals(values)
        return np.stack([_alike(z[:, o]) for o in orders.values()])

    own = each(x[None])[:, 0]
    most = np.concatenate([each(b).max(0) for b in blocks(drawn[::every])])
    return {ALONG + list(orders)[int(own.argmax())]: (float(own.max()), most)}


def _mixed(x: np.ndarray) -> bool:
    """Whether values go up and down: of rows that are sorted by these, neighbors are alike under any model."""
    steps = np.diff(x)
    return bool((steps > 0).any() and (steps < 0).any())


def _alike(residuals: np.ndarray) -> np.ndarray:
    """Σ z_i z_{i+1} / Σ z_i², (S, n) -> (S,)."""
    squared = np.square(residuals).sum(1)
    return np.einsum("si,si->s", residuals[:, 1:], residuals[:, :-1]) / np.maximum(squared, np.finfo(float).tiny)
