"""Anything that holds columns -> ``dict[str, torch.Tensor]``.

One set of rules for files, built-in data sets and whatever a user hands to ``fit``:

* floating-point columns keep their dtype; numbers that carry none (Python lists, CSV, JSON) take
  ``torch.get_default_dtype()``;
* integers become int64, except unsigned bytes of two or more dimensions (images), which stay;
* booleans stay booleans;
* text, dates and the columns of tables are what the rules of :mod:`.kinds` say: words are codes, int64, in sorted order
  or that of a pandas categorical; a missing cell is nan;
* a number, a word, None, a tuple of these and what is no array at all are constants, passed on as they are;
  tensors inside a dict, a tuple, or a list of differing shapes are columns (:mod:`ppgen.data.arguments`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ppgen.data.cells.cells import CellReader, decimal_mark_of, is_cells, to_tensor
from ppgen.data.cells.types import ASKED, ColumnType, parse_types
from ppgen.data.files.frames import is_frame, unpack
from ppgen.data.files.images import channels_first
from ppgen.data.files.large import read_column
from ppgen.data.relations import with_relations
from ppgen.data.table import Table
from ppgen.errors import PpgenError, nearest

__all__ = ["Asked", "as_tensors", "asked_types", "in_shapes", "parse_columns", "select"]

Columns = Mapping[str, "str | list[str]"]
Asked = Mapping[str, ColumnType] | str | None


def as_tensors(data: Any, types: Asked = None) -> Table:
    """Turn what a user holds into columns, and constants beside them.

    A mapping, a data frame (pandas, polars, any that narwhals knows), an xarray Dataset or a DataTree (its groups
    observed_data and constant_data) gives one tensor a column, and so does a list of rows that are dicts; a bare
    tensor, array or list is the column ``x``.
    Raises :class:`PpgenError` for whatever no tensor holds; of a data frame, once that column is asked for.

    Args:
        types: what columns are, where the rules of :mod:`.kinds` take them for something else: ``"grade=ordered:a<b"``,
            or types of another table, whose words keep their codes.

    >>> as_tensors([0.5, 1.5])
    {'x': tensor([0.5000, 1.5000])}
    >>> as_tensors({"group": ["b", "a", "b"]})["group"]
    tensor([1, 0, 1])
    """
    if data is None or isinstance(data, str | bytes | Path):
        raise PpgenError(
            f"the data are {data!r}, expected columns such as {{'x': tensor}}; "
            "load a file or a data set by name with ppgen.data.load first"
        )
    if isinstance(data, Table):
        made = select(dict(data), types=types)
        return Table(made, {**data.types, **made.types})
    if isinstance(data, Dataset):
        return select(_of_dataset(data), types=types)
    if isinstance(data, DataLoader | Iterator):
        raise PpgenError(
            f"the data are a {type(data).__name__}, which gives batches of its own, expected all rows by column, as in "
            "{'x': tensor, 'y': tensor}; batch_size= makes batches of them"
        )
    if isinstance(data, list | tuple) and data and all(isinstance(row, Mapping) for row in data):
        data = _of_rows(data)
    raw = unpack(data)
    if isinstance(data, Mapping):
        _require_aligned(raw)
        return select(raw, types=types)
    if raw.keys() != {"x"} or is_frame(data):
        return select(raw, types=types, lenient=is_frame(data))
    value = raw["x"]
    return select(raw, types=types) if is_cells(value) else Table({"x": to_tensor("x", value)})


def _require_aligned(raw: Mapping[str, Any]) -> None:
    """Refuses two pandas series of the same rows in another order, which rows one by one would mix."""
    indices = {name: v.index for name, v in raw.items() if hasattr(v, "index") and hasattr(v, "reindex")}
    first = next(iter(indices), "")
    for name, index in indices.items():
        own = indices[first]
        same = index.is_unique and len(index) == len(own) and bool(own.isin(index).all())
        if same and own.is_unique and not index.equals(own):
            raise PpgenError(
                f"the columns {first!r} and {name!r} have the same index in another order, so that their rows are not "
                "those of each other; put them into one DataFrame, or pass .to_numpy() where their order is right"
            )


def _of_rows(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A data frame of rows of cells; of vectors, a dict of their lists."""
    import pandas as pd

    cells = all(isinstance(v, str) or not hasattr(v, "__len__") for row in rows for v in row.values())
    if cells or any(row.keys() != rows[0].keys() for row in rows):
        return pd.DataFrame(list(rows))
    return {name: [row[name] for row in rows] for name in rows[0]}


def _of_dataset(data: Dataset) -> dict[str, Any]:
    """The columns x, and y, of torch's TensorDataset."""
    if isinstance(data, TensorDataset) and 1 <= len(data.tensors) <= 2:
        return dict(zip("xy", data.tensors, strict=False))
    raise PpgenError(
        f"a {type(data).__name__} does not name its columns; pass them by name, as in {{'x': tensor, 'y': tensor}}"
    )


def parse_columns(text: str) -> dict[str, str | list[str]]:
    """Read ``"argument=column,argument=column+column"``, the form that a command line takes.

    >>> parse_columns("x=a+b+c, y=target")
    {'x': ['a', 'b', 'c'], 'y': 'target'}
    """
    mapping: dict[str, str | list[str]] = {}
    for item in text.split(","):
        argument, equals, names = item.partition("=")
        argument, parts = argument.strip(), [name.strip() for name in names.split("+")]
        if not (equals and argument and all(parts)):
            raise PpgenError(
                f"columns={text!r}: {item.strip()!r} is not of the form argument=column; "
                "write for example x=pixels,y=label or x=a+b+c"
            )
        if argument in mapping:
            raise PpgenError(f"columns={text!r} gives {argument!r} twice; join them: x=a+b+c")
        mapping[argument] = parts if len(parts) > 1 else parts[0]
    return mapping


def select(
    raw: Mapping[str, Any],
    columns: Columns | str | None = None,
    where: str = "the data",
    *,
    types: Asked = None,
    lenient: bool = False,
    mark: str = "",
) -> Table:
    """Pick, rename and gather raw columns into tensors; constants stay as they are.

    ``columns`` maps an argument's name to a column, or to a list of columns that become one
    matrix (rows, columns) in that order; a name may hold ``*`` (``pixel*``), which stands for all
    the columns that match, in the order of the source. What is not named is left out; with
    ``columns=None`` every column is kept under its own name.

    Args:
        types: what columns are, by the name of the argument or of the source.
        lenient: whether a column that cannot be read is an error only once it is asked for.
        mark: the decimal mark of the source, where it is known.
    """
    asked = asked_types(types)
    raw = {str(name): value for name, value in raw.items()}
    if columns is not None:
        columns = parse_columns(columns) if isinstance(columns, str) else columns
        for table in [value for value in raw.values() if is_frame(value)]:
            raw = {**unpack(table), **raw}  # the columns of a table can be named as well
    reader = CellReader(where, asked, isinstance(types, str), decimal_mark_of(raw, mark))
    if columns is None:
        made = _all_columns({name: read_column(value) for name, value in raw.items()}, reader, lenient)
    else:
        made = _chosen_columns(raw, columns, reader)
    _require_used(asked, made, raw, where)
    return made


def _all_columns(raw: dict[str, Any], reader: CellReader, lenient: bool) -> Table:
    found: dict[str, Any] = {}
    types: dict[str, ColumnType] = {}
    for name, value in raw.items():
        try:
            made, own = reader.argument(name, name, value)
        except PpgenError as error:
            if not lenient or reader.closed and name in reader.asked:
                raise
            made, own = {}, ColumnType(name, "unclear", why=str(error))
        found |= made
        types |= {} if own is None else {name: own}
    named = {name: value for name, value in raw.items() if _names_no_rows(name, value, found)}
    types = {name: own for name, own in types.items() if name not in named}
    return Table(found | named, with_relations(types, found))


def _chosen_columns(raw: dict[str, Any], columns: Columns, reader: CellReader) -> Table:
    found: dict[str, Any] = {}
    types: dict[str, ColumnType] = {}
    for argument, wanted in columns.items():
        if isinstance(wanted, str) and (wanted in raw or "*" not in wanted):
            made, own = reader.argument(argument, wanted, read_column(_find(raw, wanted, reader.where)))
            found |= made
            types |= {} if own is None else {argument: own}
            continue
        patterns = [wanted] if isinstance(wanted, str) else list(wanted)
        names = [name for pattern in patterns for name in _matches(raw, pattern, reader.where)]
        if not names:
            raise PpgenError(f"columns: {argument!r} is given an empty list; name its columns")
        found[argument] = reader.gathered(argument, names, raw)
    return Table(found, types)


def _require_used(asked: Mapping[str, ColumnType], made: Table, raw: Mapping[str, Any], where: str) -> None:
    """Refuses a type that was asked for a column that there is not."""
    for name, own in asked.items():
        if own.why == ASKED and name not in raw and name not in made:
            raise PpgenError(f"{where} has no column {name!r} to give a type{nearest(name, [*raw, *made])}")


def _names_no_rows(name: str, value: Any, made: Mapping[str, Any]) -> bool:
    """Whether it is a list of words that is not as long as the columns: words as they are, no categories of rows."""
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        return False
    lengths = {len(c) for k, c in made.items() if k != name and isinstance(c, Tensor) and c.dim()}
    return bool(lengths) and len(value) not in lengths


def _find(raw: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in raw:
        listed = ", ".join(list(raw)[:12]) + (", …" if len(raw) > 12 else "")
        hint = nearest(name, raw) or f"; it has {listed}"
        raise PpgenError(f"{where} has no column {name!r}{hint}")
    return raw[name]


def _matches(raw: Mapping[str, Any], pattern: str, where: str) -> list[str]:
    found = [name for name in raw if fnmatchcase(name, pattern)] if "*" in pattern else []
    if pattern in raw or not found:
        _find(raw, pattern, where)
        return [pattern]
    return found


def asked_types(types: Asked) -> Mapping[str, ColumnType]:
    """Types by column, of what a user says or a run keeps."""
    return parse_types(types) if isinstance(types, str) else types or {}


def in_shapes(data: Table, shapes: Mapping[str, Sequence[int]]) -> Table:
    """The columns, with arrays a row (images) in the shapes that a program has for them.

    Args:
        shapes: of a row's values, by column; a column with another number of values is left as it is.

    >>> import torch
    >>> in_shapes(Table({"x": torch.zeros(5, 8, 8)}), {"x": (64,)})["x"].shape
    torch.Size([5, 64])
    """
    made = Table(data, data.types)
    for name, shape in shapes.items():
        x = made.get(name)
        if isinstance(x, Tensor) and x.dim() > 2 and x[0].numel() == math.prod(shape):
            x = x if tuple(x.shape[1:]) == tuple(shape) else channels_first(name, x)
            made[name] = x.reshape(len(x), *shape)
    return made
