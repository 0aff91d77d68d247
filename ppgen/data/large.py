"""Columns larger than memory: mapped from their file, gone through in blocks, and let go of again.

A mapped column is a tensor like any other. Its pages come into memory as they are read and count as this process's; a
pass over blocks gives them back after each, and so do the rows that minibatches have taken.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from ppgen.memory import require_memory

__all__ = ["Deferred", "blocks", "mapped_array", "moments", "read_column", "touched"]

MAP_FROM = 2**26  # bytes: smaller files are read, and may be written anew meanwhile
BLOCK = 2**26  # bytes of a pass at once
KEPT = 2**28  # bytes of a mapping that may have been touched before its pages are given back
_PAGES = 2**16  # bytes that come into memory with one row, at least

_MAPS: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by the address of the first value
_TOUCHED: dict[int, int] = {}  # bytes, by the same


class Deferred:
    """A raw column that is not read yet.

    Args:
        name: of the column, for errors.
        shape: of the array; of a column of a table (rows,).
        size: in bytes, once it is read.
        read: reads it: all, or the first so many rows.
    """

    def __init__(self, name: str, shape: tuple[int, ...], size: int, read: Callable[[int | None], Any]):
        self.name, self.shape, self.size, self._read = name, shape, size, read
        self.rows: int | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def first(self, rows: int) -> Deferred:
        """Its first rows."""
        part = Deferred(self.name, (rows, *self.shape[1:]), self.size * rows // max(1, len(self)), self._read)
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
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    array = np.frombuffer(memory, dtype, offset=offset, count=size // dtype.itemsize).reshape(shape)
    _MAPS[array.ctypes.data] = memory
    return array


def _address(column: Tensor) -> int:
    return column.untyped_storage().data_ptr() if column.device.type == "cpu" else 0


def _release(column: Tensor) -> None:
    """Gives the pages of a mapped column back; what is read of it again, comes from the file again."""
    address = _address(column)
    memory = _MAPS.get(address)
    if memory is not None and column._version == 0 and hasattr(mmap, "MADV_DONTNEED"):  # never written to
        memory.madvise(mmap.MADV_DONTNEED)
    _TOUCHED.pop(address, None)


def touched(column: Tensor, rows: int) -> None:
    """Counts rows that were read; gives the pages of a mapped column back, where they have become many."""
    address = _address(column) if _MAPS else 0
    if address not in _MAPS:
        return
    width = column[0].numel() * column.element_size() if column.dim() and len(column) else 0
    _TOUCHED[address] = _TOUCHED.get(address, 0) + rows * max(width, _PAGES)
    if _TOUCHED[address] > KEPT:
        _release(column)


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
    parts = [(len(b), b.double().mean(0), b.double().var(0, correction=0)) for b in blocks(column)]
    if len(parts) == 1:
        mean = parts[0][1]
        return mean, column.double().std(0) if len(column) > 1 else torch.full_like(mean, math.nan)
    n = sum(p[0] for p in parts)
    mean = torch.stack([k * m for k, m, _ in parts]).sum(0) / n
    squares = torch.stack([k * (v + (m - mean).square()) for k, m, v in parts]).sum(0)
    return mean, (squares / (n - 1)).sqrt()
