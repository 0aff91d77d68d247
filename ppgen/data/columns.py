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

import json
import math
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset, TensorDataset

from ppgen.data.arguments import holds_tensors, is_container, is_literal, taken_apart
from ppgen.data.large import read_column
from ppgen.data.relations import with_relations
from ppgen.data.table import Table
from ppgen.data.types import ASKED, KINDS, ColumnType, parse_types
from ppgen.errors import PpgenError, nearest, reason
from ppgen.memory import require_memory

__all__ = ["Asked", "as_tensors", "asked_types", "in_shapes", "is_frame", "parse_columns", "select", "unpack"]

Columns = Mapping[str, "str | list[str]"]
Asked = Mapping[str, ColumnType] | str | None


def as_tensors(data: Any, types: Asked = None) -> Table:
    """Turn what a user holds into columns, and constants beside them.

    A mapping, a data frame (pandas, polars, any that narwhals knows), an xarray Dataset or a DataTree (its groups
    observed_data and constant_data) gives one tensor a column; a bare tensor, array or list is the column ``x``.
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
        made = select({k: v for k, v in data.items()}, types=types)
        return Table(made, {**data.types, **made.types})
    if isinstance(data, Dataset):
        return select(_of_dataset(data), types=types)
    raw = unpack(data)
    if isinstance(data, Mapping):
        return select(raw, types=types)
    if raw.keys() != {"x"} or is_frame(data):
        return select(raw, types=types, lenient=is_frame(data))
    value = raw["x"]
    return select(raw, types=types) if _is_cells(value) else Table({"x": to_tensor("x", value)})


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
    reader = _Reader(where, asked, isinstance(types, str), mark or _mark_of(raw))
    if columns is None:
        made = _all_columns({name: read_column(value) for name, value in raw.items()}, reader, lenient)
    else:
        made = _chosen_columns(raw, columns, reader)
    _require_used(asked, made, raw, columns, where)
    return made


def _all_columns(raw: dict[str, Any], reader: _Reader, lenient: bool) -> Table:
    found: dict[str, Any] = {}
    types: dict[str, ColumnType] = {}
    for name, value in raw.items():
        try:
            made, own = reader.argument(name, name, value)
        except PpgenError as error:
            if not lenient:
                raise
            made, own = {}, ColumnType(name, "unclear", why=str(error))
        found |= made
        types |= {} if own is None else {name: own}
    named = {name: value for name, value in raw.items() if _names_no_rows(name, value, found)}
    types = {name: own for name, own in types.items() if name not in named}
    return Table(found | named, with_relations(types, found))


def _chosen_columns(raw: dict[str, Any], columns: Columns, reader: _Reader) -> Table:
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


def _require_used(
    asked: Mapping[str, ColumnType], made: Table, raw: Mapping[str, Any], columns: Columns | None, where: str
) -> None:
    """
    Raises:
        PpgenError: a type was asked for a column that there is not.
    """
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


class _Reader:
    """Makes tensors of raw columns.

    Attributes:
        where: what errors call the data.
        asked: types by the name of the argument, or of the column in its source.
        closed: whether words beyond the levels that were asked for are refused.
        mark: the decimal mark of the table.
    """

    def __init__(self, where: str, asked: Mapping[str, ColumnType], closed: bool, mark: str):
        self.where, self.asked, self.closed, self.mark = where, asked, closed, mark

    def argument(self, argument: str, name: str, value: Any) -> tuple[dict[str, Any], ColumnType | None]:
        """One argument: a column with its type, a constant, or the columns of a container."""
        asked = self._asked(argument, name)
        if _is_cells(value) or asked is not None and _is_row_values(value):
            tensor, own = self._cells(name, value, asked)
            return {argument: tensor}, own
        return _plain_argument(argument, value, self.where), None

    def gathered(self, argument: str, names: list[str], raw: Mapping[str, Any]) -> Tensor:
        """Columns side by side."""
        parts = [self._part(name, read_column(raw[name])) for name in names]
        if any(part.dim() == 0 for part in parts) or len({len(part) for part in parts}) > 1:
            shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in zip(names, parts, strict=True))
            raise PpgenError(
                f"{self.where}: the columns of {argument!r} differ in length ({shapes}); "
                "gather only columns with the same number of rows"
            )
        return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)

    def _asked(self, argument: str, name: str) -> ColumnType | None:
        by_source = {own.name: own for own in self.asked.values()}
        return self.asked.get(argument) or by_source.get(name)

    def _part(self, name: str, value: Any) -> Tensor:
        if not _is_cells(value):
            return to_tensor(name, value, self.where)
        tensor, own = self._cells(name, value, self._asked(name, name))
        if own.levels:
            raise PpgenError(
                f"column {name!r} of {self.where} is text and cannot be part of a matrix; give it an argument of its "
                "own"
            )
        return tensor

    def _cells(self, name: str, value: Any, asked: ColumnType | None) -> tuple[Tensor, ColumnType]:
        from ppgen.data.kinds import typed

        own, values = typed(name, value, asked, self.mark)
        if values is None:
            raise PpgenError(own.why if self.where == "the data" else f"{self.where}: {own.why}")
        if asked is not None:
            self._require(own, asked)
        return _whole_as_long(_from_numpy(name, values, self.where), name, self.where), own

    def _require(self, own: ColumnType, asked: ColumnType) -> None:
        """
        Raises:
            PpgenError: a column is not what it is said to be.
        """
        if self.closed and asked.levels and len(own.levels) > len(asked.levels):
            extra = own.levels[len(asked.levels) :]
            raise PpgenError(
                f"{self.where}: the column {own.name!r} holds {extra[0]!r}, which is none of its levels "
                f"{'<'.join(asked.levels)}{nearest(extra[0], asked.levels)}; name all of its words in types (--types)"
            )
        low, high = own.low, own.high
        wrong = low is not None and high is not None and asked.why == ASKED and (
            asked.kind == "positive" and low <= 0 or asked.kind == "count" and low < 0
            or asked.kind == "bounded" and (low < 0 or high > 1)
        )  # fmt: skip
        if wrong:
            raise PpgenError(
                f"{self.where}: the column {own.name!r} is said to be {asked.kind} ({KINDS[asked.kind]}), and goes "
                f"from {low:g} to {high:g}; correct it, or say another type"
            )


def asked_types(types: Asked) -> Mapping[str, ColumnType]:
    """Types by column, of what a user says or a run keeps."""
    return parse_types(types) if isinstance(types, str) else types or {}


def _mark_of(raw: Mapping[str, Any]) -> str:
    """The decimal mark of a table: what those of its text columns say that can be read one way only; "" for none."""
    texts = [v for v in raw.values() if _is_cells(v) and getattr(v, "dtype", np.dtype("O")).kind in "OSUT"]
    if not texts:
        return ""
    from ppgen.data.kinds import evidence_of_mark

    found = {evidence_of_mark(text) for text in texts} - {""}
    return found.pop() if len(found) == 1 else ""


def _is_cells(value: Any) -> bool:
    """Whether it holds a cell a row of which the rules say what they are: a series, text, dates, gaps."""
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, pandas.Series | pandas.Index):
        return getattr(value.dtype, "kind", "O") != "c"
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            return value.ndim == 1 and bool(np.ma.is_masked(value))
        return value.ndim == 1 and value.dtype.kind in "OSUTMm"
    if not isinstance(value, list) or not value or isinstance(value[0], list | tuple | dict | Tensor | np.ndarray):
        return False
    return any(v is None or isinstance(v, str | bytes) for v in value)


def _is_row_values(value: Any) -> bool:
    return isinstance(value, list | np.ndarray) and np.ndim(value) == 1


def _plain_argument(name: str, value: Any, where: str) -> dict[str, Any]:
    """One argument that is no column of cells: an array, a constant, or the columns of a container."""
    plain = isinstance(value, tuple) and all(map(is_literal, value))
    if plain or is_literal(value) or isinstance(value, PackedSequence):
        return {name: value}
    if is_container(value) and (isinstance(value, dict | tuple) or not _stacks(value)) and holds_tensors(value):
        return taken_apart(
            name, value, lambda path, v: to_tensor(path, v, where) if isinstance(v, Tensor | np.ndarray) else v
        )
    if isinstance(value, dict) or not _is_array(value):
        return {name: value}
    return {name: to_tensor(name, value, where)}


def _stacks(value: Any) -> bool:
    """Whether a list holds tensors of one shape: the rows of one column."""
    return all(isinstance(v, Tensor) and v.shape == value[0].shape for v in value)


def _is_array(value: Any) -> bool:
    """Whether an array can be made of it: an object, a function, a module cannot."""
    if isinstance(value, Tensor | list | tuple | np.ndarray) or hasattr(value, "__array__") or _is_frame(value):
        return True
    try:
        return np.asarray(value).dtype.kind != "O"
    except Exception:  # an array-like that fails in a way of its own: the reader says how
        return True


def in_shapes(data: Table, shapes: Mapping[str, Sequence[int]]) -> Table:
    """The columns, with arrays a row (images) in the shapes that a program has for them.

    Args:
        shapes: of a row's values, by column; a column with another number of values is left as it is.

    >>> in_shapes(Table({"x": torch.zeros(5, 8, 8)}), {"x": (64,)})["x"].shape
    torch.Size([5, 64])
    """
    made = Table(data, data.types)
    for name, shape in shapes.items():
        x = made.get(name)
        if isinstance(x, Tensor) and x.dim() > 2 and x[0].numel() == math.prod(shape):
            made[name] = x.reshape(len(x), *shape)
    return made


def to_tensor(name: str, value: Any, where: str = "the data") -> Tensor:
    """Numbers of any shape -> one tensor by the rules above."""
    if isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
        shapes = {tuple(part.shape) for part in value}
        if len(shapes) > 1:
            raise PpgenError(f"column {name!r} of {where} is a list of tensors of shapes {shapes}")
        value = torch.stack(list(value))
    if is_frame(value):
        table = unpack(value)
        return _Reader(where, {}, False, _mark_of(table)).gathered(name, list(table), table)
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise PpgenError(f"column {name!r} of {where} is a sparse tensor; call .to_dense()")
        return _whole_as_long(value.detach(), name, where)
    tensor = _from_numpy(name, _array(name, value, where), where)
    # np.float64 is a float to Python too, but with it the precision is meant.
    literal = isinstance(value, list | tuple | float) and not isinstance(value, np.generic)
    if tensor.is_floating_point() and literal:
        tensor = tensor.to(torch.get_default_dtype())
    return _whole_as_long(tensor, name, where)


def _whole_as_long(tensor: Tensor, name: str, where: str) -> Tensor:
    """Whole numbers as int64, but images of bytes."""
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    image = tensor.dtype == torch.uint8 and tensor.dim() >= 2
    if not whole or image or tensor.dtype == torch.int64:
        return tensor
    require_memory(8 * tensor.numel(), f"column {name!r} of {where} as 64-bit whole numbers", "fit a part of its rows")
    return tensor.long()


def _array(name: str, value: Any, where: str) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value) and value.dtype.kind not in "iufb":
            raise PpgenError(f"column {name!r} of {where} has masked values; fill or drop them")
        value = value.astype(float).filled(np.nan) if np.ma.is_masked(value) else value
    try:
        array = np.asarray(value)
    except Exception as error:  # any array-like type may fail in a way of its own
        raise PpgenError(
            f"column {name!r} of {where} is ragged or no array ({reason(error)}); give every row the same shape"
        ) from error
    if array.dtype.kind in "OSUT":
        kinds = sorted({type(v).__name__ for v in array.flat})
        raise PpgenError(
            f"column {name!r} of {where} has shape {array.shape} and holds {', '.join(kinds)}, "
            "expected numbers, or one text a row; convert it, or leave it out with columns="
        )
    return array


def _from_numpy(name: str, array: np.ndarray, where: str) -> Tensor:
    kind = array.dtype
    if kind.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise PpgenError(f"column {name!r} of {where} holds integers beyond 64 bits; use floats")
    if kind.kind == "u" and kind.itemsize > 1:
        array = array.astype(np.int64)
    try:
        native = array.astype(kind.newbyteorder("="), copy=False) if kind.kind in "iufc" else array
        return torch.from_numpy(np.require(native, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise PpgenError(
            f"column {name!r} of {where} has dtype {kind}, which no tensor holds; convert it to float64, int64 or bool"
        ) from error


def is_frame(value: Any) -> bool:
    """Whether it is a data frame: of pandas, or one that narwhals knows."""
    for package in ("pandas", "polars", "modin", "pyarrow", "cudf", "dask", "duckdb", "ibis"):
        if package in sys.modules and type(value).__module__.partition(".")[0].strip("_") == package:
            break
    else:
        return False
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return True
    import narwhals as nw

    return isinstance(nw.from_native(value, pass_through=True), nw.DataFrame | nw.LazyFrame)


def unpack(data: Any) -> dict[str, Any]:
    """Raw columns of a mapping, data frame, Dataset, DataTree, or of a bare array (``x``)."""
    xarray, pandas = sys.modules.get("xarray"), sys.modules.get("pandas")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        names = [_flat(name) for name in data.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PpgenError(f"two columns are called {twice[0]!r}; give each a name of its own")
        return {name: data.iloc[:, i] for i, name in enumerate(names)}
    if is_frame(data):
        from ppgen.data.frames import series_of

        return series_of(data)
    if xarray is not None and isinstance(data, xarray.DataTree):
        return _tree(data)
    if xarray is not None and isinstance(data, xarray.Dataset):
        return {str(name): variable.to_numpy() for name, variable in data.data_vars.items()}
    if isinstance(data, Mapping):
        return dict(data)
    return {"x": data}


def _flat(name: Any) -> str:
    """The name of a column; of one with several levels, joined by dots."""
    return ".".join(str(part) for part in name if str(part)) if isinstance(name, tuple) else str(name)


def _tree(tree: Any) -> dict[str, Any]:
    groups = [g for g in ("constant_data", "observed_data") if g in tree.children]
    datasets = [tree[group].to_dataset() for group in groups] or [tree.to_dataset()]
    own = json.loads(tree.attrs.get("original_names", "{}"))
    columns = {own.get(name, name): value for dataset in datasets for name, value in unpack(dataset).items()}
    if not columns:
        raise PpgenError(
            f"no variable in the groups observed_data and constant_data (there are: "
            f"{', '.join(tree.children) or 'none'}); save the data under one of these two names"
        )
    return columns
