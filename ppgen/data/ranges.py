"""The ranges of the columns that were fitted, and which later rows lie far outside of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch

from ppgen.data.arguments import tensors

__all__ = ["Beyond", "far_outside", "ranges"]

WIDEST = 64  # numbers a row, beyond which a column is an image and not a table's
FAR = 1.0  # widths of the fitted range, beyond its nearer end


class Beyond(NamedTuple):
    """A column of rows that lie far outside of the range that was fitted.

    entry: of the row's numbers, None of a column of one number a row.  rows: how many.  farthest: the value farthest
    outside.  low, high: the fitted range.  widths: of that range, between its nearer end and the farthest value.
    """

    column: str
    entry: int | None
    rows: int
    farthest: float
    low: float
    high: float
    widths: float

    def __str__(self) -> str:
        name = self.column if self.entry is None else f"{self.column}[{self.entry}]"
        return (
            f"{name} is {self.farthest:.6g}, and was {self.low:.6g} to {self.high:.6g} in the rows that were fitted "
            f"({self.widths:.3g} times as far beyond as that range is wide)"
        )


def ranges(data: Mapping[str, Any], rows: Collection[str]) -> dict[str, list[list[float]]]:
    """The least and the largest finite value of each number of a row, by column: {name: [lows, highs]}; not of columns
    without a finite one, nor of those of more than `WIDEST` numbers."""
    found = {}
    for name in rows:
        column = tensors(data).get(name)
        if column is None or column.is_complex() or not 0 < column[:1].numel() <= WIDEST:
            continue
        flat = column.detach().reshape(len(column), -1).double()
        known = flat.isfinite()
        low = torch.where(known, flat, torch.inf).amin(0)
        high = torch.where(known, flat, -torch.inf).amax(0)
        if bool((low <= high).all()):
            found[name] = [low.tolist(), high.tolist()]
    return found


def far_outside(data: Mapping[str, Any], fitted: Mapping[str, list[list[float]]]) -> list[Beyond]:
    """The columns with rows that are farther from the fitted range than that is wide; none of a range of one value.

    A forecast of a series as long as what was fitted, and a value that is new among hundreds, are not so far.

    Args:
        fitted: what `ranges` gave.
    """
    found = []
    for name, column in tensors(data).items():
        if name not in fitted or not len(column):
            continue
        low, high = torch.tensor(fitted[name], dtype=torch.float64)
        flat = column.detach().reshape(len(column), -1).double()
        if flat.shape[1] != len(low):
            continue
        widths = (torch.maximum(low - flat, flat - high) / (high - low)).nan_to_num(-1.0, posinf=-1.0, neginf=-1.0)
        for i in (widths.amax(0) > FAR).nonzero()[:, 0].tolist():
            worst = int(widths[:, i].argmax())
            entry = None if column.dim() == 1 else i
            found.append(Beyond(name, entry, int((widths[:, i] > FAR).sum()), float(flat[worst, i]), float(low[i]),
                float(high[i]), float(widths[worst, i])))  # fmt: skip
    return found
