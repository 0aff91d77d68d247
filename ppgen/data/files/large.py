"""Columns larger than memory: mapped from their file, gone through in blocks, and let go of again.

A mapped column is a tensor like any other. Its pages come into memory as they are read and count as this process's, so
that a pass over blocks gives them back after each, and the rows of a minibatch are read from the file itself.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary, finalize

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import PpgenError
from ppgen.memory import require_memory

MAP_FROM = 2**26  # bytes: smaller files are read, and may be written anew meanwhile
BLOCK = 2**26  # bytes of a pass at once


class _Mapping(mmap.mmap):
    """A file in memory, writes to which stay in memory.

    Attributes:
        path, descriptor: of the file, open as long as the mapping.
        offset: where the values begin.
    """

    path: Path
    descriptor: int
    offset: int


_MAPS: WeakValueDictionary[int, _Mapping] = WeakValueDictionary()  # by the address of the first value


class Deferred:
    """A raw column that is not read yet.

    Args:
        name: of the column, for errors.
        shape: of the array; of a column of a table (rows,).
        size: in bytes, once it is read.
        read: reads it: all, or the first so many rows.
        cells: whether it is a column of a table.
    """

    def __init__(
        self, name: str, shape: tuple[int, ...], size: int, read: Callable[[int | None], Any], *, cells: bool = False
    ):
        self.name, self.shape, self.size, self._read, self.cells = name, shape, size, read, cells
        self.rows: int | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def first(self, rows: int) -> Deferred:
        """Its first rows."""
        part = Deferred(
            self.name, (rows, *self.shape[1:]), self.size * rows // max(1, len(self)), self._read, cells=self.cells
        )
        part.rows = rows
        return part

    def read(self) -> Any:
        """
        Raises:
            PpgenError: it would not fit into memory; a damaged file.
        """
        require_memory(
            self.size, f"the column {self.name!r}", "fit a part of its rows, or write it as .npy in float32 or bytes, "
            "which is opened and not read, and take minibatches (--batch-size)",
        )  # fmt: skip
        return self._read(self.rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype=dtype)


def read_column(value: Any) -> Any:
    """A raw column as it is, read where it was not yet."""
    return value.read() if isinstance(value, Deferred) else value


def mapped_array(path: Path) -> np.ndarray | None:
    """The array of a large .npy file, its values left in the file; None where it is small, or must be converted.

    Raises:
        ValueError: a file that is cut short.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version > (2, 0):
            return None
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        offset, size = file.tell(), math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            return None
        if path.stat().st_size < offset + size:
            raise ValueError("it is cut short")
        if size < MAP_FROM or fortran or not dtype.isnative or dtype.kind not in "fiub" or not shape:
            return None
        memory = _Mapping(file.fileno(), 0, access=mmap.ACCESS_COPY)
        memory.path, memory.descriptor, memory.offset = path, os.dup(file.fileno()), offset
        finalize(memory, os.close, memory.descriptor)
    array = np.frombuffer(memory, dtype, offset=offset, count=size // dtype.itemsize).reshape(shape)
    _MAPS[array.ctypes.data] = memory
    return array


def _mapping(column: Tensor) -> _Mapping | None:
    """Of a column that is mapped and was never written to."""
    if not _MAPS or column.device.type != "cpu" or column._version:
        return None
    return _MAPS.get(column.untyped_storage().data_ptr())


def _release(column: Tensor) -> None:
    """Gives the pages of a mapped column back; what is read of it again, comes from the file again."""
    memory = _mapping(column)
    if memory is not None and hasattr(mmap, "MADV_DONTNEED"):
        memory.madvise(mmap.MADV_DONTNEED)


def taken(column: Tensor, index: Tensor | slice) -> Tensor:
    """column[index]; of a mapped column, rows are read from the file, so that its pages stay out of memory."""
    memory = _mapping(column)
    if memory is None or isinstance(index, slice) or not column.is_contiguous() or index.dtype == torch.bool:
        return column[index]
    rows = torch.empty(len(index), *column.shape[1:], dtype=column.dtype)
    if not rows.numel():
        return rows
    width = column[0].numel() * column.element_size()
    begin = memory.offset + column.storage_offset() * column.element_size()
    content = memoryview(rows.view(torch.uint8).reshape(-1).numpy())  # type: ignore[arg-type]
    for i, row in enumerate(index.tolist()):
        part = content[i * width : (i + 1) * width]
        if os.preadv(memory.descriptor, [part], begin + (row % len(column)) * width) != width:
            raise PpgenError(f"{memory.path} was cut short while it was in use; write it again, and start again")
    return rows


def blocks(column: Tensor) -> Iterator[Tensor]:
    """The column in blocks of rows, each of `BLOCK` bytes at most; whole where it has no rows, or is small."""
    size = column.numel() * column.element_size()
    if size <= BLOCK or not column.dim():
        yield column
        return
    rows = max(1, BLOCK * len(column) // size)
    for start in range(0, len(column), rows):
        yield column[start : start + rows]
        _release(column)


def moments(column: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the rows, in float64; of one row the deviation is nan.

    >>> moments(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    (tensor([2., 2.], dtype=torch.float64), tensor([1.4142, 0.0000], dtype=torch.float64))
    """
    size = column.numel() * column.element_size()
    if size <= BLOCK:
        mean = column.double().mean(0)
        return mean, column.double().std(0) if column.dim() and len(column) > 1 else torch.full_like(mean, math.nan)
    parts = [(len(b), torch.var_mean(b.double(), 0, correction=0)) for b in blocks(column)]
    n = sum(k for k, _ in parts)
    mean = torch.stack([k * m for k, (_, m) in parts]).sum(0) / n
    squares = torch.stack([k * (v + (m - mean).square()) for k, (v, m) in parts]).sum(0)
    return mean, (squares / (n - 1)).sqrt()
