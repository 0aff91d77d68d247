"""Files that a package reads -> raw columns: JSON lines, feather, Excel, HDF5, AnnData, Matlab."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ppgen.data.frames import unpack
from ppgen.errors import PpgenError

log = logging.getLogger("ppgen")

NEEDS = {"feather": "pyarrow", "arrow": "pyarrow", "xlsx": "openpyxl", "h5": "h5py", "hdf5": "h5py", "h5ad": "anndata",
         "mat": "scipy"}  # fmt: skip


def json_lines(path: Path) -> dict[str, Any]:
    """An object a line, whose keys are columns."""
    import pandas as pd

    return unpack(pd.read_json(path, lines=True, dtype=False, convert_dates=False))


def feather(path: Path) -> dict[str, Any]:
    import pandas as pd

    return unpack(pd.read_feather(path))


def excel(path: Path) -> dict[str, Any]:
    """The first sheet; its first row gives the names."""
    import pandas as pd

    from ppgen.data.csv import named_columns

    with pd.ExcelFile(path) as book:
        if len(book.sheet_names) > 1:
            names = book.sheet_names
            log.warning("%s has %d sheets, and the first, %r, is read", path, len(names), names[0])
        # as objects: pandas would read the text "007" as 7
        whole = pd.read_excel(book, header=None, keep_default_na=False, na_values=[""], dtype=object)
    sheet = whole.dropna(how="all")
    if len(sheet) < len(whole):
        log.info("%s: %d rows without a value are left out", path, len(whole) - len(sheet))
    if len(sheet) < 2:
        raise PpgenError("its first sheet has no rows; write a row of names and the data under it")
    head, frame = sheet.iloc[0], sheet.iloc[1:].reset_index(drop=True)
    there = head.notna() | frame.notna().any()  # a column without a name and without a cell is none
    frame, head = frame.loc[:, there], head[there]
    frame.columns = pd.Index(named_columns(["" if cell != cell else str(cell) for cell in head]))
    return unpack(frame)


def hdf5(path: Path) -> dict[str, Any]:
    """Its arrays by name, those in groups as `group.name`; the fields of a compound array as columns."""
    import h5py

    found: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        if not isinstance(node, h5py.Dataset):
            return
        name = name.replace("/", ".")
        if node.shape is None:
            log.warning("%s: the array %r is empty, and is not read", path, name)
        elif node.dtype.names:
            found.update({field: node[field] for field in node.dtype.names})
        elif h5py.check_string_dtype(node.dtype) is not None:
            found[name] = node.asstr()[()]
        elif node.dtype.kind in "biuf":
            found[name] = node[()]
        else:
            log.warning("%s: the array %r holds %s, and is not read", path, name, node.dtype)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def anndata(path: Path) -> dict[str, Any]:
    """x (cells, genes), the columns of obs, and the matrices of obsm."""
    import anndata as ad

    return unpack(ad.read_h5ad(path))


def matlab(path: Path) -> dict[str, Any]:
    """Its variables: columns of one as (n,), cells of text as text; files of version 7.3 are HDF5, transposed."""
    from scipy.io import loadmat

    with path.open("rb") as file:
        if b"MATLAB 7.3" in file.read(128):
            return {name: _column(value.T) for name, value in hdf5(path).items() if not name.startswith("#")}
    columns: dict[str, Any] = {}
    for name, value in loadmat(path, chars_as_strings=True).items():
        if value is not None and not name.startswith("__"):
            columns |= _fields(name, value)
    return columns


def _fields(name: str, value: Any) -> dict[str, Any]:
    """A variable, or those inside a structure as `name.field`."""
    names = getattr(getattr(value, "dtype", None), "names", None)
    if names is None or value.size != 1:
        return {name: _column(value)}
    found: dict[str, Any] = {}
    for field in names:
        found |= _fields(f"{name}.{field}", value[field].item())
    return found


def _column(value: np.ndarray) -> Any:
    if value.dtype.kind == "O":
        cells = [c.item() if isinstance(c, np.ndarray) and c.size == 1 else c for c in value.flat]
        value = np.array(cells)
    if value.dtype.kind == "U":
        texts = np.char.rstrip(value.reshape(-1))
        return texts if len(texts) != 1 else str(texts[0])
    if value.size == 1:
        return value.item()
    return value.reshape(-1) if value.ndim == 2 and 1 in value.shape else value
