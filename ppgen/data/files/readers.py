"""Files -> raw columns, one short function a format.

``read(path)`` gives a dict of whatever the format holds (numpy arrays, tensors, lists, pandas
Series); :mod:`ppgen.data.columns` turns these into tensors. Nothing is ever unpickled. Whatever a
format's library raises on a damaged file becomes one :class:`PpgenError`.
"""

from __future__ import annotations

import gc
import gzip
import json
import math
import sys
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ppgen.data.files import packages
from ppgen.data.files.csv import read_csv
from ppgen.data.files.frames import unpack
from ppgen.data.files.images import read_images
from ppgen.data.files.large import Deferred, mapped_array
from ppgen.errors import PpgenError, nearest, reason
from ppgen.memory import require_memory

__all__ = ["FORMATS", "by_split", "read"]

PACKED = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson")  # that may be packed by gzip
SPLITS = ("train", "valid", "test")
_SPLIT_NAMES = {s: s for s in SPLITS} | {"val": "valid", "validation": "valid"}
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".bin", ".ckpt")
_SMALLER = "write it as .npy or .npz, and fit a part of its rows"
_AGAIN = "data are read again by later commands; write them to a file first: ... > rows.csv"
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read(
    path: str | Path, rows: int | None = None, keep: Collection[str] = (), texts: Collection[str] = ()
) -> dict[str, Any]:
    """Read the raw columns of one file; the format follows from its name, or from IDX's magic.

    Args:
        rows: of .csv, no more than the first so many are read.
        keep: of .csv, words that are no missing cells ("NA", where that is a country).
        texts: of .csv, columns whose cells are left as they are written, as their decimal mark is known.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return read_images(path)
    if not path.is_file():
        if path.exists() or str(path) == "-":
            raise PpgenError(f"{path} is no file but a pipe or a device, and {_AGAIN}")
        raise PpgenError(f"{path} does not exist; give the path of one data file")
    kind, reader = _reader(path)
    with _as_sentence(path, kind):
        columns = read_csv(path, rows, keep, texts) if reader is read_csv else reader(path)
    if not columns:
        raise PpgenError(f"{path} holds no columns; write at least one, for example x")
    return columns


def is_table(raw: Mapping[str, Any]) -> bool:
    """Whether raw columns came from a table of cells, of which a program takes what it wants."""
    return any(getattr(v, "cells", False) or type(v).__name__ == "Series" for v in raw.values())


@contextmanager
def _as_sentence(path: Path, kind: str) -> Iterator[None]:
    """Whatever a format's library raises, as one sentence."""
    try:
        yield
    except PpgenError as error:
        named = str(error).startswith(str(path))
        raise PpgenError(str(error) if named else f"{path}: {error}") from error
    except ImportError as error:
        package = {"parquet": "pyarrow", "nc": "xarray h5netcdf", **packages.NEEDS}.get(kind, error.name or "pandas")
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
    if suffix in FORMATS and (suffix in PACKED or name == path.name.lower()):
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
    """What the file holds, unpacked; as long as that is a part of the memory that there is."""
    with path.open("rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
    if not zipped:
        require_memory(2 * path.stat().st_size, "reading it", _SMALLER)
        return path.read_bytes()
    parts, size = [], 0
    with gzip.open(path) as file:
        while part := file.read(2**24):
            parts.append(part)
            size += len(part)
            require_memory(2 * size, "what it unpacks to", _SMALLER)
    return b"".join(parts)


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
    with path.open("rb") as file:
        magic = file.read(2)
    if magic not in (b"PK", b"\x93N"):  # numpy would take it for a pickle
        raise ValueError("it does not begin like a numpy file")
    try:
        if magic == b"PK":
            return _npz(path)
        mapped = mapped_array(path)
        return unpack(np.load(path, allow_pickle=False)) if mapped is None else {"x": mapped}
    except ValueError as error:
        raise _no_pickle(error) from error


def _npz(path: Path) -> dict[str, Any]:
    """Its arrays, of which only the headers are read."""
    found: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                shape, fortran, dtype = _npy_header(file)
            size = math.prod(shape) * dtype.itemsize
            name = member.removesuffix(".npy")
            found[name] = Deferred(name, shape, size, partial(_npz_array, path, member, fortran))
    return found


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header = read(file)
    if header[2].hasobject:
        raise ValueError("allow_pickle")
    return header


def _npz_array(path: Path, member: str, fortran: bool, rows: int | None) -> np.ndarray:
    with _as_sentence(path, "npz"), zipfile.ZipFile(path) as archive, archive.open(member) as file:
        if rows is None or fortran:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
            return array if rows is None else array[:rows]
        shape, _, dtype = _npy_header(file)
        shape = (min(rows, shape[0]), *shape[1:])
        content = file.read(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(content, dtype).reshape(shape)


def _no_pickle(error: ValueError) -> Exception:
    if "allow_pickle" not in str(error):
        return error
    return PpgenError(
        "it holds an array of Python objects, which is a pickle, can run code and so is never "
        "read; save arrays of numbers"
    )


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(_bytes(path), object_pairs_hook=_each_once)
    rows = list(found.values()) if isinstance(found, dict) else found
    if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
        return _json_table(found)
    if not isinstance(found, dict):
        raise PpgenError(
            f"its top level is a {type(found).__name__}, expected an object of columns; "
            'write {"x": [...], "y": [...]}'
        )
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a name that stands twice, readers take one value and drop the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise PpgenError(f"an object has two values called {twice!r}; give each a name of its own")
    return found


def _json_lines(path: Path) -> dict[str, Any]:
    """An object a line, whose keys are columns."""
    import pandas as pd

    rows: list[Any] = []
    for i, line in enumerate(_bytes(path).splitlines()):
        try:
            rows += [json.loads(line, object_pairs_hook=_each_once)] if line.strip() else []
        except PpgenError as e:
            raise PpgenError(f"line {i + 1}: {e}") from None
        except ValueError as e:
            raise ValueError(f"line {i + 1}, column {getattr(e, 'colno', 1)}: {getattr(e, 'msg', e)}") from e
        if not isinstance(rows[-1] if rows else {}, dict):
            raise ValueError(f"line {i + 1} is a {type(rows[-1]).__name__}; expected an object of columns")
    return unpack(pd.DataFrame(rows))


def _json_table(found: Any) -> dict[str, Any]:
    """The columns of a list of rows, or of columns by row, as pandas writes a table; other objects stay as they are."""
    import pandas as pd

    if isinstance(found, dict):
        names = [str(i) for i in range(len(next(iter(found.values()))))]
        plain = all(not isinstance(v, dict | list) for own in found.values() for v in own.values())
        if not plain or any(list(own) != names for own in found.values()):
            return found
    return unpack(pd.DataFrame(found))


def _parquet(path: Path) -> dict[str, Any]:
    """Its columns, none of them read yet."""
    import pandas as pd
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    n, meta = file.metadata.num_rows, file.schema_arrow.pandas_metadata or {}
    index = [i for i in meta.get("index_columns", ()) if isinstance(i, str) and i.startswith("__index_level_")]
    names = [name for name in file.schema_arrow.names if name not in index]
    if len(set(names)) < len(names):
        return unpack(pd.read_parquet(path))
    return {name: Deferred(name, (n,), 8 * n, partial(_parquet_column, path, name), cells=True) for name in names}


def _parquet_column(path: Path, name: str, rows: int | None) -> Any:
    import pandas as pd
    import pyarrow.parquet as pq

    with _as_sentence(path, "parquet"):
        if rows is None:
            return unpack(pd.read_parquet(path, columns=[name]))[name]
        return next(pq.ParquetFile(path).iter_batches(rows, columns=[name])).to_pandas()[name]


def _netcdf(path: Path) -> dict[str, Any]:
    found = _opened_netcdf(path)
    if isinstance(found, str):  # raised here, where nothing holds on to the file that was opened by half
        raise ValueError(found)
    return found


def _opened_netcdf(path: Path) -> dict[str, Any] | str:
    """Its variables, or what is wrong with it.

    A file that could not be opened is closed by h5netcdf when it is forgotten, which prints a traceback: it is
    forgotten here, and Python's hook for such errors is put aside for the while.
    """
    import xarray as xr

    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        try:
            with xr.open_datatree(path) as tree:
                return unpack(tree.load())
        except (ImportError, PpgenError, PermissionError):
            raise
        except Exception as error:
            said = reason(error)
        gc.collect()
        return said
    finally:
        sys.unraisablehook = hook


def _safetensors(path: Path) -> dict[str, Any]:
    """Its tensors, none of them read yet."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            part = file.get_slice(name)
            shape = tuple(part.get_shape())
            found[name] = Deferred(name, shape, 8 * math.prod(shape), partial(_safetensor, path, name))
    return found


def _safetensor(path: Path, name: str, rows: int | None) -> Any:
    from safetensors import safe_open

    with _as_sentence(path, "safetensors"), safe_open(path, framework="pt") as file:
        return file.get_tensor(name) if rows is None else file.get_slice(name)[:rows]


def _listed(lengths: dict[str, int]) -> str:
    return ", ".join(f"{name} {length}" for name, length in lengths.items())


FORMATS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npz": _numpy,
    ".npy": _numpy,
    ".csv": read_csv,
    ".parquet": _parquet,
    ".json": _json,
    ".nc": _netcdf,
    ".safetensors": _safetensors,
    ".tsv": read_csv,
    ".txt": read_csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".feather": packages.feather,
    ".arrow": packages.feather,
    ".xlsx": packages.excel,
    ".h5": packages.hdf5,
    ".hdf5": packages.hdf5,
    ".h5ad": packages.anndata,
    ".mat": packages.matlab,
}
