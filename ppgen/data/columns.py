"""Anything that holds columns -> ``dict[str, torch.Tensor]``.

One set of rules for files, built-in data sets and whatever a user hands to ``fit``:

* floating-point columns keep their dtype; numbers that carry none (Python lists, CSV, JSON) take
  ``torch.get_default_dtype()``;
* integers become int64, except unsigned bytes of two or more dimensions (images), which stay;
* booleans stay booleans;
* text becomes category codes, int64: 0 for the first category in sorted order, 1 for the next, …; a pandas categorical
  keeps the order of its own categories; text that is plainly a number or a date is refused (:mod:`.categories`);
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
from ppgen.data.categories import TEXT, codes, decoded, words_of
from ppgen.data.large import read_column
from ppgen.data.table import Table
from ppgen.errors import PpgenError, nearest, reason
from ppgen.memory import require_memory

__all__ = ["as_tensors", "in_shapes", "parse_columns", "select", "to_tensor", "unpack"]

Columns = Mapping[str, "str | list[str]"]


def as_tensors(data: Any) -> Table:
    """Turn what a user holds into columns, and constants beside them.

    A mapping, a pandas DataFrame, an xarray Dataset or a DataTree (its groups observed_data and
    constant_data) gives one tensor a column; a bare tensor, array or list is the column ``x``.
    Raises :class:`PpgenError` for whatever no tensor holds.

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
        return Table(select(data), data.words)
    if isinstance(data, Dataset):
        return select(_of_dataset(data))
    if isinstance(data, Mapping) or (raw := unpack(data)).keys() != {"x"}:
        return select(unpack(data))
    return Table({"x": to_tensor("x", raw["x"])}, _all_words(raw))


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


def select(raw: Mapping[str, Any], columns: Columns | str | None = None, where: str = "the data") -> Table:
    """Pick, rename and gather raw columns into tensors; constants stay as they are.

    ``columns`` maps an argument's name to a column, or to a list of columns that become one
    matrix (rows, columns) in that order; a name may hold ``*`` (``pixel*``), which stands for all
    the columns that match, in the order of the source. What is not named is left out; with
    ``columns=None`` every column is kept under its own name.
    """
    if columns is None:
        raw = {str(name): read_column(value) for name, value in raw.items()}
        made = {k: v for name, value in raw.items() for k, v in _argument(name, value, where).items()}
        named = {name: value for name, value in raw.items() if _names_no_rows(name, value, made)}
        return Table(made | named, _all_words({k: v for k, v in raw.items() if k not in named}))
    if isinstance(columns, str):
        columns = parse_columns(columns)
    raw = {str(name): value for name, value in raw.items()}
    for table in [value for value in raw.values() if _is_frame(value)]:
        raw = {**unpack(table), **raw}  # the columns of a table can be named as well
    chosen: dict[str, Any] = {}
    single: dict[str, Any] = {}
    for argument, wanted in columns.items():
        if isinstance(wanted, str) and (wanted in raw or "*" not in wanted):
            single[argument] = read_column(_find(raw, wanted, where))
            chosen |= _argument(argument, single[argument], where)
            continue
        patterns = [wanted] if isinstance(wanted, str) else list(wanted)
        names = [name for pattern in patterns for name in _matches(raw, pattern, where)]
        if not names:
            raise PpgenError(f"columns: {argument!r} is given an empty list; name its columns")
        chosen[argument] = _gather(argument, names, raw, where)
    return Table(chosen, _all_words(single))


def _names_no_rows(name: str, value: Any, made: Mapping[str, Any]) -> bool:
    """Whether it is a list of words that is not as long as the columns: words as they are, no categories of rows."""
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        return False
    lengths = {len(c) for k, c in made.items() if k != name and isinstance(c, Tensor) and c.dim()}
    return bool(lengths) and len(value) not in lengths


def _all_words(raw: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: words for name, value in raw.items() if (words := words_of(value)) is not None}


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


def _gather(argument: str, names: list[str], raw: Mapping[str, Any], where: str) -> Tensor:
    parts = [to_tensor(name, read_column(raw[name]), where, text=False) for name in names]
    if any(part.dim() == 0 for part in parts) or len({len(part) for part in parts}) > 1:
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in zip(names, parts, strict=True))
        raise PpgenError(
            f"{where}: the columns of {argument!r} differ in length ({shapes}); "
            "gather only columns with the same number of rows"
        )
    return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)


def _argument(name: str, value: Any, where: str) -> dict[str, Any]:
    """One argument: a column, a constant, or the columns of a container."""
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
    made = Table(data, data.words)
    for name, shape in shapes.items():
        x = made.get(name)
        if isinstance(x, Tensor) and x.dim() > 2 and x[0].numel() == math.prod(shape):
            made[name] = x.reshape(len(x), *shape)
    return made


def to_tensor(name: str, value: Any, where: str = "the data", *, text: bool = True) -> Tensor:
    """One raw column -> one tensor by the rules above; ``text=False`` refuses a text column."""
    if isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
        shapes = {tuple(part.shape) for part in value}
        if len(shapes) > 1:
            raise PpgenError(f"column {name!r} of {where} is a list of tensors of shapes {shapes}")
        value = torch.stack(list(value))
    if _is_frame(value):
        table = unpack(value)
        return _gather(name, list(table), table, where)
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise PpgenError(f"column {name!r} of {where} is a sparse tensor; call .to_dense()")
        tensor = value.detach()
    else:
        array = _array(name, value, where)
        is_text = array.dtype.kind in TEXT
        tensor = _from_numpy(name, _text(name, array, where, text) if is_text else array, where)
        # np.float64 is a float to Python too, but with it the precision is meant.
        literal = isinstance(value, list | tuple | float) and not isinstance(value, np.generic)
        if tensor.is_floating_point() and (is_text or literal):
            tensor = tensor.to(torch.get_default_dtype())
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    image = tensor.dtype == torch.uint8 and tensor.dim() >= 2
    if not whole or image or tensor.dtype == torch.int64:
        return tensor
    require_memory(8 * tensor.numel(), f"column {name!r} of {where} as 64-bit whole numbers", "fit a part of its rows")
    return tensor.long()


def _array(name: str, value: Any, where: str) -> np.ndarray:
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, pandas.Series | pandas.Index):
        return _series_array(name, value, where)
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise PpgenError(f"column {name!r} of {where} has masked values; fill or drop them")
    try:
        return np.asarray(value)
    except Exception as error:  # any array-like type may fail in a way of its own
        raise PpgenError(
            f"column {name!r} of {where} is ragged or no array ({reason(error)}); give every row the same shape"
        ) from error


def _series_array(name: str, series: Any, where: str) -> np.ndarray:
    import pandas as pd

    kind, missing = series.dtype, np.asarray(series.isna())
    if isinstance(kind, pd.CategoricalDtype):
        _refuse_missing(name, missing, where)
        return np.asarray(pd.Series(series).cat.codes, dtype=np.int64)
    if missing.any() and pd.api.types.is_numeric_dtype(kind) and not isinstance(kind, np.dtype):
        return series.to_numpy(dtype=float, na_value=np.nan)  # pandas' nullable numbers
    return series.to_numpy()


def _refuse_missing(name: str, missing: np.ndarray, where: str) -> None:
    if missing.any():
        raise PpgenError(
            f"column {name!r} of {where} is not numeric and has no value in row "
            f"{int(missing.argmax())} (counting from 0); fill it, or drop that row"
        )


def _text(name: str, array: np.ndarray, where: str, text: bool) -> np.ndarray:
    """Text -> category codes; text that spells nothing but numbers -> those numbers."""
    array = decoded(array)
    _refuse_missing(name, np.array([_is_missing(v) for v in array.flat], bool), where)
    if array.ndim != 1 or not all(isinstance(v, str) for v in array):
        kinds = sorted({type(v).__name__ for v in array.flat})
        raise PpgenError(
            f"column {name!r} of {where} has shape {array.shape} and holds {', '.join(kinds)}, "
            "expected numbers, or one text a row; convert it, or leave it out with columns="
        )
    return codes(name, array, where, text)


def _is_missing(cell: Any) -> bool:
    nan = isinstance(cell, float) and cell != cell
    return cell is None or nan or type(cell).__name__ in ("NAType", "NaTType")


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


def _is_frame(value: Any) -> bool:
    pandas = sys.modules.get("pandas")  # there is no DataFrame where pandas was never imported
    return pandas is not None and isinstance(value, pandas.DataFrame)


def unpack(data: Any) -> dict[str, Any]:
    """Raw columns of a mapping, DataFrame, Dataset, DataTree, or of a bare array (``x``)."""
    xarray = sys.modules.get("xarray")
    if _is_frame(data):
        names = [str(name) for name in data.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PpgenError(f"two columns are called {twice[0]!r}; give each a name of its own")
        return {name: data.iloc[:, i] for i, name in enumerate(names)}
    if xarray is not None and isinstance(data, xarray.DataTree):
        return _tree(data)
    if xarray is not None and isinstance(data, xarray.Dataset):
        return {str(name): variable.to_numpy() for name, variable in data.data_vars.items()}
    if isinstance(data, Mapping):
        return dict(data)
    return {"x": data}


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
