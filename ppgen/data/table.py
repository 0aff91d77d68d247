"""Columns by name, with the types of those that came from a table."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ppgen.data.cells.types import ColumnType
from ppgen.errors import PpgenError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ppgen")

Types = Mapping[str, ColumnType]


def words_of(types: Types | None) -> dict[str, tuple[str, ...]]:
    """The words behind the codes, of the columns that are codes."""
    return {name: own.levels for name, own in (types or {}).items() if own.levels}


class Table(dict[str, Any]):
    """Columns by name, and the types of those that came from a table.

    A column that could not be read is not among them: to ask for it by name says why.

    >>> Table({"group": [1, 0]}, {"group": ColumnType("group", "binary", ("a", "b"))}).words
    {'group': ('a', 'b')}
    """

    def __init__(self, columns: Mapping[str, Any] | None = None, types: Types | None = None):
        super().__init__(columns or {})
        self.types = {n: own for n, own in (types or {}).items() if n in self or own.kind == "unclear"}

    def __missing__(self, name: str) -> Any:
        if name in self.types:
            raise PpgenError(self.types[name].why)
        raise KeyError(name)

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """The words behind the codes of text columns, in the order of the codes."""
        return words_of(self.types)

    def log_notes(self) -> None:
        """Says in the log what may be wrong with the columns."""
        for name, own in self.types.items():
            for note in own.notes:
                log.info("the column %r: %s", name, note)

    def only(self, names: Collection[str]) -> Table:
        """The columns of these names, with their types."""
        return Table({k: v for k, v in self.items() if k in names}, {k: t for k, t in self.types.items() if k in names})

    def frame(self) -> pd.DataFrame:
        """The columns with one value a row as a DataFrame: codes as categories of words, in order where they are.

        >>> Table({"g": np.array([1, 0])}, {"g": ColumnType("g", "ordered", ("low", "high"))}).frame()["g"].tolist()
        ['high', 'low']
        """
        import pandas as pd

        held = {k: np.asarray(v) for k, v in self.items() if isinstance(v, Tensor | np.ndarray) and np.ndim(v) == 1}
        rows = max(map(len, held.values()), default=0)
        return pd.DataFrame({k: self._in_words(k, v) for k, v in held.items() if len(v) == rows})

    def _in_words(self, name: str, values: np.ndarray) -> Any:
        import pandas as pd

        own = self.types.get(name)
        if own is None or not own.levels:
            return values
        codes = np.where(np.isnan(values), -1, values).astype(np.int64) if values.dtype.kind == "f" else values
        return pd.Categorical.from_codes(codes, list(own.levels), ordered=own.kind == "ordered")
