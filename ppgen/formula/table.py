"""The table that a formula is read at: its columns as numbers, and as the codes that terms and groups ask for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppgen.data import Table, as_tensors
from ppgen.data.cells.levels import Levels, encoded, text_of
from ppgen.errors import PpgenError, nearest
from ppgen.gaps import dropped

if TYPE_CHECKING:
    import pandas as pd


class CodedTable:
    """
    Args:
        data: a DataFrame, a `Table`, or columns by name.
        names: the columns that are meant, the response first.
        fillable: those whose missing cells are filled with quantiles of the others, so that the formula can be read.
        missing: what is done with missing cells (`ppgen.gaps`).

    Attributes:
        gone: where cells were missing that are filled, by column.
        frame: these columns; words are categories in the order of their codes.
        raw: the same as tensors.
        levels: of the arguments that are codes, as they were asked for.

    Raises:
        PpgenError: a column that is not there, has missing cells, or is a matrix.
    """

    def __init__(self, data: Any, names: Sequence[str], fillable: Collection[str] = (), missing: str = "error"):
        self.raw = _chosen(data, names)
        if missing == "drop":
            self.raw = dropped(self.raw, names)
        self.gone = _gone(self.raw, fillable) if missing == "impute" else {}
        whole = {k: _with_quantiles(k, v, self.gone.get(k), k in self.raw.words) for k, v in self.raw.items()}
        self.raw = Table(whole, self.raw.types)
        self.frame = _frame(self.raw, names[0], fillable, missing)
        self.levels: dict[str, Levels] = {}

    @property
    def coded(self) -> Table:
        """Columns and codes."""
        return encoded(self.raw, self.levels)

    @property
    def numbers(self) -> dict[str, Tensor]:
        """The columns that are numbers, in double precision."""
        words = self.raw.words
        return {n: v.double() for n, v in self.raw.items() if n not in words}

    def values(self, column: str) -> list[str]:
        """The different values as words: in the order of a categorical, else sorted."""
        import pandas as pd

        series = self.frame[column]
        values = series.dropna().unique().tolist()
        if isinstance(series.dtype, pd.CategoricalDtype):
            seen = set(values)
            return [text_of(c) for c in series.dtype.categories if c in seen]
        return [text_of(v) for v in sorted(values)]

    def joined(self, columns: Sequence[str]) -> list[str]:
        """The different combinations of values, in order."""
        words = [map(text_of, self.frame[c].tolist()) for c in columns]
        return sorted({":".join(row) for row in zip(*words, strict=True)})

    def codes(self, columns: Sequence[str], values: list[str], *, new: bool) -> str:
        """The argument that holds the codes of these columns.

        Args:
            values: in the order of their codes, where it is not there yet.
            new: whether later tables may have others.
        """
        own = len(columns) == 1 and columns[0] in self.raw.words
        name = columns[0] if own else "_".join(columns) + ("_level" if len(columns) == 1 else "")
        while not own and name in self.frame:
            name += "_"
        known = self.levels.get(name)
        values, new = (values, new) if known is None else (list(known.values), new and known.new)
        self.levels[name] = Levels(list(columns), values, new)
        return name


def _chosen(data: Any, names: Sequence[str]) -> Table:
    """The columns of these names."""
    there = list(map(str, data))
    for name in names:
        if name not in there and not (isinstance(data, Table) and name in data.types):
            raise PpgenError(
                f"the formula names {name!r}, and the data have {', '.join(map(repr, there)) or 'none'}"
                f"{nearest(name, there)}; name a column that is there"
            )
    table = data if isinstance(data, Table) else as_tensors({n: data[n] for n in names})
    return Table({n: table[n] for n in names}, table.types)


def _gone(table: Table, fillable: Collection[str]) -> dict[str, Tensor]:
    floats = {n: table[n] for n in table if n in fillable and table[n].is_floating_point() and table[n].dim() == 1}
    return {n: v.isnan() for n, v in floats.items() if bool(v.isnan().any())}


def _with_quantiles(name: str, column: Any, gone: Tensor | None, words: bool) -> Any:
    """A column with quantiles of its seen cells where cells are `gone`, which keeps its mean and spread."""
    if gone is None:
        return column
    seen = column[~gone].sort().values
    if not len(seen):
        raise PpgenError(f"every cell of the column {name!r} is missing; leave it out of the formula")
    places = (torch.linspace(0, 1, 2 * int(gone.sum()) + 1)[1::2] * len(seen)).long().clamp(max=len(seen) - 1)
    column = column.clone()
    column[gone] = seen[places]
    return column.long() if words else column


def _frame(table: Table, response: str, fillable: Collection[str], missing_cells: str) -> pd.DataFrame:
    """As a data frame; refused are no rows, matrices, and missing cells of another column than the response."""
    frame = table.frame()
    for name in table:
        if name not in frame:
            raise PpgenError(f"the column {name!r} is no column of one number or word a row, which a formula needs")
        missing = int(frame[name].isna().sum())
        if missing and name != response:
            found = f"the column {name!r} has {missing} missing cells in {len(frame)} rows"
            if name in fillable:
                raise PpgenError(
                    f"{found}; draw them by a model of the column (--missing impute), or leave these rows out "
                    "(--missing drop)"
                )
            why = ", and cells are drawn of columns that are terms by themselves" if missing_cells == "impute" else ""
            raise PpgenError(f"{found}{why}; leave these rows out (--missing drop), or fill the cells in")
    if not len(frame):
        raise PpgenError("the data have no rows; give at least one")
    return frame.astype({name: float for name in frame if frame[name].dtype.kind == "f"})  # as the terms are computed
