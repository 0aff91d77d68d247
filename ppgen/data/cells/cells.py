"""One raw column, or several side by side -> a tensor, with its type where it is cells of a table."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ppgen.data.arguments import holds_tensors, is_container, is_literal, taken_apart
from ppgen.data.cells.types import ASKED, KINDS, ColumnType
from ppgen.data.files.frames import is_frame, unpack
from ppgen.data.files.large import read_column
from ppgen.errors import PpgenError, nearest, reason
from ppgen.memory import require_memory

LIKELY_POINT = "a point, as commas separate the cells"


class CellReader:
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
        if is_cells(value) or asked is not None and _is_row_values(value):
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
        if not is_cells(value):
            return to_tensor(name, value, self.where)
        tensor, own = self._cells(name, value, self._asked(name, name))
        if own.levels:
            raise PpgenError(
                f"column {name!r} of {self.where} is text and cannot be part of a matrix; give it an argument of its "
                "own"
            )
        return tensor

    def _cells(self, name: str, value: Any, asked: ColumnType | None) -> tuple[Tensor, ColumnType]:
        from ppgen.data.cells.kinds import typed

        own, values = typed(name, value, asked, self.mark)
        if values is None:
            raise PpgenError(own.why if self.where == "the data" else f"{self.where}: {own.why}")
        if asked is not None:
            self._require(own, asked, values)
        return _whole_as_long(_from_numpy(name, values, self.where), name, self.where), own

    def _require(self, own: ColumnType, asked: ColumnType, values: np.ndarray) -> None:
        """Refuses a column that is not what it is said to be."""
        if self.closed and asked.levels and own.levels[: len(asked.levels)] != asked.levels:
            raise PpgenError(f"{self.where}: the column {own.name!r} is numbers, and none of its levels is a number")
        if self.closed and asked.levels and len(own.levels) > len(asked.levels):
            extra = own.levels[len(asked.levels) :]
            raise PpgenError(
                f"{self.where}: the column {own.name!r} holds {extra[0]!r}, which is none of its levels "
                f"{'<'.join(asked.levels)}{nearest(extra[0], asked.levels)}; name all of its words in types (--types)"
            )
        if asked.why == ASKED and (odd := _odd_for(own, values)):
            raise PpgenError(
                f"{self.where}: the column {own.name!r} is said to be {asked.kind} ({KINDS[asked.kind]}), and {odd}; "
                "correct it, or say another type"
            )


def _odd_for(own: ColumnType, values: np.ndarray) -> str:
    """What a column has that its kind has not; or ""."""
    low, high, kind = own.low, own.high, own.kind
    if kind == "binary" and len(own.levels) > 2:
        return f"has {len(own.levels)} values"
    if low is None or high is None:
        return ""
    if kind == "positive" and low <= 0 or kind == "count" and low < 0 or kind == "bounded" and (low < 0 or high > 1):
        return f"goes from {low:g} to {high:g}"
    parts = values[np.isfinite(values)] if values.dtype.kind == "f" else values[:0]
    parts = parts[parts != parts.round()]
    return f"has {parts[0]:g}" if kind == "count" and len(parts) else ""


def decimal_mark_of(raw: Mapping[str, Any], mark: str = "") -> str:
    """The decimal mark of a table: what those of its text columns say that can be read one way only; "" for none.

    Args:
        mark: that of its other columns; `LIKELY_POINT` where only the separator speaks for it.
    """
    texts = [v for v in raw.values() if is_cells(v) and getattr(v, "dtype", np.dtype("O")).kind in "OSUT"]
    if not texts:
        return "." if mark == LIKELY_POINT else mark
    from ppgen.data.cells.kinds import evidence_of_mark

    found = {mark, *(evidence_of_mark(text) for text in texts)} - {"", LIKELY_POINT}
    if not found and mark == LIKELY_POINT:
        return "."
    return found.pop() if len(found) == 1 else ""


def is_cells(value: Any) -> bool:
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
    if isinstance(value, Tensor | list | tuple | np.ndarray) or hasattr(value, "__array__") or is_frame(value):
        return True
    try:
        return np.asarray(value).dtype.kind != "O"
    except Exception:  # an array-like that fails in a way of its own: the reader says how
        return True


def to_tensor(name: str, value: Any, where: str = "the data") -> Tensor:
    """Numbers of any shape -> one tensor by the rules above."""
    if isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
        shapes = {tuple(part.shape) for part in value}
        if len(shapes) > 1:
            raise PpgenError(f"column {name!r} of {where} is a list of tensors of shapes {shapes}")
        value = torch.stack(list(value))
    if is_frame(value):
        table = unpack(value)
        return CellReader(where, {}, False, decimal_mark_of(table)).gathered(name, list(table), table)
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
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        value = np.ma.filled(value.astype(float), np.nan)
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
        raise PpgenError(
            f"column {name!r} of {where} holds integers beyond 64 bits; convert it to float64, or leave "
            "it out with columns="
        )
    if kind.kind == "u" and kind.itemsize > 1:
        array = array.astype(np.int64)
    try:
        native = array.astype(kind.newbyteorder("="), copy=False) if kind.kind in "iufc" else array
        return torch.from_numpy(np.require(native, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise PpgenError(
            f"column {name!r} of {where} has dtype {kind}, which no tensor holds; convert it to float64, int64 or bool"
        ) from error
