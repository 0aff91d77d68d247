"""Files -> raw columns, one short function a format.

``read(path)`` gives a dict of whatever the format holds (numpy arrays, tensors, lists, pandas
Series); :mod:`ppgen.data.columns` turns these into tensors. Nothing is ever unpickled. Whatever a
format's library raises on a damaged file becomes one :class:`PpgenError`.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppgen.data.columns import unpack
from ppgen.errors import PpgenError, nearest, reason

__all__ = ["FORMATS", "by_split", "read"]

SPLITS = ("train", "valid", "test")
_SPLIT_NAMES = {s: s for s in SPLITS} | {"val": "valid", "validation": "valid"}
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".bin", ".ckpt")
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read(path: str | Path) -> dict[str, Any]:
    """Read the raw columns of one file; the format follows from its name, or from IDX's magic."""
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise PpgenError(f"{path} {what}; give the path of one data file")
    kind, reader = _reader(path)
    try:
        columns = reader(path)
    except PpgenError as error:
        raise PpgenError(f"{path}: {error}") from error
    except ImportError as error:
        package = {"parquet": "pyarrow", "nc": "xarray h5netcdf"}.get(kind, error.name or "pandas")
        raise PpgenError(
            f"{path}: reading .{kind} needs a package that is not installed; run: pip install {package}"
        ) from error
    except PermissionError as error:
        raise PpgenError(f"{path} may not be read by this user; change its permissions") from error
    except Exception as error:  # every format's library has errors of its own for a damaged file
        raise PpgenError(
            f"{path} cannot be read as {kind} ({reason(error)}); it is damaged, cut short, or of "
            "another format: copy or write it again"
        ) from error
    if not columns:
        raise PpgenError(f"{path} holds no columns; write at least one, for example x")
    return columns


def by_split(path: str | Path, raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort arrays by the split in their names.

    ``train``, ``valid``, ``test`` hold the ``x`` of a split, ``y_train``, ``y_test`` the column
    ``y``; an array without a split in its name is a constant of every split. A file that has no
    train beside another split is not taken to be split: ``{"all": raw}``.
    """
    groups: dict[str, dict[str, Any]] = {}
    shared = {}
    for key, value in raw.items():
        column, _, split = key.rpartition("_")
        if split not in _SPLIT_NAMES:
            shared[key] = value
            continue
        group = groups.setdefault(_SPLIT_NAMES[split], {})
        if (column or "x") in group:
            raise PpgenError(
                f"{path} holds column {column or 'x'!r} of split {_SPLIT_NAMES[split]!r} twice, "
                f"{key!r} being one; rename one of the two"
            )
        group[column or "x"] = value
    if "train" not in groups or len(groups) == 1:
        return {"all": raw}
    for split, group in groups.items():
        lengths = {name: len(value) for name, value in group.items() if value.ndim}
        if len(set(lengths.values())) > 1:
            raise PpgenError(
                f"{path}: the columns of split {split!r} differ in length ({_listed(lengths)}); "
                "write as many rows of each"
            )
        rows = max(lengths.values(), default=0)
        longer = {n: len(v) for n, v in shared.items() if v.ndim and len(v) >= rows}
        if longer:
            raise PpgenError(
                f"{path}: {_listed(longer)} belongs to no split, yet is as long as the {rows} rows "
                f"of split {split!r}; rename it to {next(iter(longer))}_{split}, or keep it apart"
            )
    return {split: {**shared, **groups[split]} for split in SPLITS if split in groups}


def _reader(path: Path) -> tuple[str, Callable[[Path], dict[str, Any]]]:
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    if suffix in FORMATS and (suffix in (".csv", ".json") or name == path.name.lower()):
        return suffix[1:], FORMATS[suffix]
    if suffix in _PICKLES:
        raise PpgenError(
            f"{path} is a pickle by its name, which can run code and so is never read; "
            "save the arrays with numpy.savez or safetensors"
        )
    if "-ubyte" in name or ".idx" in name or _has_idx_magic(path):
        return "idx", _idx
    raise PpgenError(
        f"{path} has the unknown extension {path.suffix!r}{nearest(path.suffix, FORMATS)}; "
        f"save it as one of {', '.join(FORMATS)}, or IDX"
    )


def _bytes(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def _has_idx_magic(path: Path) -> bool:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _begins_idx(bytes(file.read(4)))
    except (OSError, EOFError, zlib.error):
        return False


def _begins_idx(head: bytes) -> bool:
    """Two zeros, a known type, and a number of dimensions that an array can have."""
    return len(head) >= 4 and head[:2] == b"\0\0" and head[2] in _IDX_TYPES and 0 < head[3] < 9


def _idx(path: Path) -> dict[str, Any]:
    """The format of MNIST: 0, 0, type, number of dims; each dim as big-endian uint32; values."""
    content = _bytes(path)
    if not _begins_idx(content):
        raise ValueError("it does not begin with an IDX header")
    dtype, dims = np.dtype(_IDX_TYPES[content[2]]), content[3]
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dims, offset=4))
    expected = 4 + 4 * dims + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(f"{len(content)} bytes where shape {shape} needs {expected}")
    return {"x": np.frombuffer(content, dtype, offset=4 + 4 * dims).reshape(shape)}


def _numpy(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            if file.read(2) not in (b"PK", b"\x93N"):  # numpy would take it for a pickle
                raise ValueError("it does not begin like a numpy file")
            file.seek(0)
            found = np.load(file, allow_pickle=False)
            return {"x": found} if isinstance(found, np.ndarray) else dict(found.items())
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise PpgenError(
            "it holds an array of Python objects, which is a pickle, can run code and so is never "
            "read; save arrays of numbers"
        ) from error


def _csv(path: Path) -> dict[str, Any]:
    """A header row gives the names; a table of numbers alone is x, and its columns "0", "1", …"""
    import csv
    import io

    import pandas as pd

    text = _bytes(path).decode("utf-8-sig")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    first = next((row for row in lines if row), [])
    if not first:
        raise PpgenError("it is empty; write a header row and at least one row of numbers")
    if len(first) == 1 and any(mark in first[0] for mark in ";\t"):
        raise PpgenError("its cells are separated by semicolons or tabs; save it with commas")
    for row in lines:
        if row and len(row) != len(first):
            raise PpgenError(
                f"line {lines.line_num} has {len(row)} cells, expected {len(first)} as in the "
                "first line; complete or delete that line (a file cut short ends like this)"
            )
    headless = all(_is_number(cell) for cell in first)
    names = [cell.strip() or "index" for cell in first]  # R and pandas leave the index unnamed
    if not headless and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PpgenError(f"two columns are called {twice!r}; give each a name of its own")
    frame = pd.read_csv(
        io.StringIO(text),
        names=[str(i) for i in range(len(first))] if headless else names,
        header=None if headless else 0,
        index_col=False,
        skipinitialspace=True,
        low_memory=False,
    )
    floats = frame.select_dtypes("float").columns
    frame = frame.astype(dict.fromkeys(floats, str(torch.get_default_dtype()).split(".")[1]))
    return {"x": frame} if headless else unpack(frame)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(_bytes(path))
    if not isinstance(found, dict):
        raise PpgenError(
            f"its top level is a {type(found).__name__}, expected an object of columns; "
            'write {"x": [...], "y": [...]}'
        )
    return found


def _parquet(path: Path) -> dict[str, Any]:
    import pandas as pd

    return unpack(pd.read_parquet(path))


def _netcdf(path: Path) -> dict[str, Any]:
    import xarray as xr

    with xr.open_datatree(path) as tree:
        return unpack(tree.load())


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def _listed(lengths: dict[str, int]) -> str:
    return ", ".join(f"{name} {length}" for name, length in lengths.items())


FORMATS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npz": _numpy,
    ".npy": _numpy,
    ".csv": _csv,
    ".parquet": _parquet,
    ".json": _json,
    ".nc": _netcdf,
    ".safetensors": _safetensors,
}
