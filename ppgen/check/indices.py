"""Columns that a program uses as indices: torch counts a negative one from the end, and says nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppgen import data as data_module
from ppgen.handlers import without_validation
from ppgen.program import Program

log = logging.getLogger("ppgen")

FEW = 8  # rows that the program is run on
MORE = 50  # where what is indexed has a size


def warn_of_negative_indices(program: Program, data: Mapping[str, Any], rows: tuple[str, ...] = ()) -> None:
    """Warns of each column of whole numbers, some negative, that the model indexes a tensor with.

    The model is run once on some of these rows, and only where such a column exists.

    Args:
        rows: the row columns, where these data are too few to tell.
    """
    for name in _whole_and_negative(data):
        column = data[name]
        if name in program.categories or not _indexes(program, data, name, rows):
            continue
        where = f" in row {int((column < 0).reshape(len(column), -1).any(1).nonzero()[0])}" if column.dim() else ""
        log.warning(
            "the column %r is an index in %s, and has %d%s: a negative index counts from the end, so that these rows "
            "take the last entry for their own; number the groups from 0",
            name, program.name, int(column.min()), where,
        )  # fmt: skip


def _whole_and_negative(data: Mapping[str, Any]) -> list[str]:
    columns = data_module.tensors(data).items()
    return [n for n, v in columns if v.dtype in (torch.int64, torch.int32) and v.numel() and bool((v < 0).any())]


def indexed_sizes(program: Program, data: Mapping[str, Any], rows: tuple[str, ...] = ()) -> dict[str, set[int]]:
    """Of each column of words, the sizes of the dimensions that the model indexes with it.

    Args:
        rows: as of `warn_of_negative_indices`.
    """
    words = data.words if isinstance(data, data_module.Table) else {}
    names = [name for name in words if data[name].dim() == 1 and not data[name].is_floating_point()]
    if not names:
        return {}
    rows = rows or data_module.row_columns(data)
    few = data_module.take(data, slice(0, MORE), rows)
    found = {name: _sizes(program, few, name) for name in names}
    return {name: sizes for name, sizes in found.items() if sizes}


def is_index(program: Program, data: Mapping[str, Any], name: str, rows: tuple[str, ...] = ()) -> bool:
    """Whether the model indexes a tensor with this column of whole numbers, as with a row's group: it is run once."""
    if data[name].is_floating_point():
        return False
    return bool(_sizes(program, data_module.take(data, slice(0, MORE), rows or data_module.row_columns(data)), name))


def _indexes(program: Program, data: Mapping[str, Any], name: str, rows: tuple[str, ...]) -> bool:
    rows = rows or data_module.row_columns(data)
    few = data
    if name in rows:
        index = (data[name] < 0).reshape(len(data[name]), -1).any(1).nonzero()[:FEW, 0]
        few = data_module.take(data, index, rows)
    return bool(_sizes(program, few, name))


def _sizes(program: Program, data: Mapping[str, Any], name: str) -> set[int]:
    """The sizes of the dimensions that the model indexes with this column, run once."""
    seen = _Indices(data[name])
    with torch.random.fork_rng(), torch.no_grad(), without_validation(), program.collecting(), program.in_brief():
        try:
            with seen:
                program.call("model", data)
        except Exception:  # what is wrong with the program is said elsewhere
            return seen.sizes
    return seen.sizes


class _Indices(TorchFunctionMode):
    """Notes the sizes of what is indexed by a column's values."""

    def __init__(self, column: Tensor):
        super().__init__()
        self.values = column.reshape(-1).tolist()
        self.sizes: set[int] = set()

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            self._look(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _look(self, indexed: Tensor, index: Any) -> None:
        parts = index if isinstance(index, tuple) else (index,)
        after = [p for p in parts if p is not None]
        for i, part in enumerate(after):
            if isinstance(part, Tensor) and self._is_column(part) and indexed.dim():
                from_end = any(p is Ellipsis for p in after[:i])
                place = i - len(after) if from_end else i
                self.sizes.add(indexed.shape[place])

    def _is_column(self, index: Tensor) -> bool:
        whole = index.dtype in (torch.int64, torch.int32) and index.numel() == len(self.values)
        return whole and index.reshape(-1).tolist() == self.values
