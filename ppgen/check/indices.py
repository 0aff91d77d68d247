"""Columns that a program uses as indices: torch counts a negative one from the end, and says nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppgen import data as data_module
from ppgen.handlers import without_validation
from ppgen.program import Program

log = logging.getLogger("ppgen")

FEW = 8  # rows that the program is run on

__all__ = ["warn_of_negative_indices"]


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


def _indexes(program: Program, data: Mapping[str, Any], name: str, rows: tuple[str, ...]) -> bool:
    rows = rows or data_module.row_columns(data)
    few = data
    if name in rows:
        index = (data[name] < 0).reshape(len(data[name]), -1).any(1).nonzero()[:FEW, 0]
        few = data_module.take(data, index, rows)
    with torch.random.fork_rng(), torch.no_grad(), without_validation(), program.collecting(), program.in_brief():
        seen = _Indices(few[name])
        try:
            with seen:
                program.call("model", few)
        except Exception:  # what is wrong with the program is said elsewhere
            return seen.found
    return seen.found


class _Indices(TorchFunctionMode):
    """Notes whether a tensor is indexed by a column's values."""

    def __init__(self, column: Tensor):
        super().__init__()
        self.values, self.found = column.reshape(-1).tolist(), False

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.__getitem__, Tensor.__setitem__) and not self.found:
            self.found = any(self._is_column(i) for i in _tensors(args[1]))
        return func(*args, **(kwargs or {}))

    def _is_column(self, index: Tensor) -> bool:
        whole = index.dtype in (torch.int64, torch.int32) and index.numel() == len(self.values)
        return whole and index.reshape(-1).tolist() == self.values


def _tensors(index: Any) -> Iterator[Tensor]:
    for i in index if isinstance(index, tuple | list) else (index,):
        if isinstance(i, Tensor):
            yield i
