"""Files that a package reads -> raw columns: feather, Excel, HDF5, AnnData, Matlab."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ppgen.data.files.frames import dense, unpack
from ppgen.errors import PpgenError

log = logging.getLogger("ppgen")

NEEDS = {"feather": "pyarrow", "arrow": "pyarrow", "xlsx": "openpyxl", "h5": "h5py", "hdf5": "h5py", "h5ad": "anndata",
         "mat": "scipy"}  # fmt: skip


def feather(path: Path) -> dict[str, Any]:
    import pandas as pd

    return unpack(pd.read_feather(path))


def excel(path: Path) -> dict[str, Any]:
    """The first sheet with rows; its first row gives the names."""
    import pandas as pd

    from ppgen.data.files.csv import named_columns

    with pd.ExcelFile(path) as book:
        sheets = {name: _sheet(book, name) for name in book.sheet_names[:1]}
        for name in book.sheet_names[1:]:
            if len(list(sheets.values())[-1].dropna(how="all")) > 1:
                break
            sheets[name] = _sheet(book, name)
        (name, whole), n = list(sheets.items())[-1], len(book.sheet_names)
    if n > 1:
        which = "the first" if len(sheets) == 1 else "the first with rows"
        log.warning("%s has %d sheets, and %s, %r, is read", path, n, which, name)
    sheet = whole.dropna(how="all")
    if len(sheet) < len(whole):
        log.info("%s: %d rows without a value are left out", path, len(whole) - len(sheet))
    if len(sheet) < 2:
        which = "first sheet has" if n == 1 else "sheets have"
        raise PpgenError(f"its {which} no rows; write a row of names and the data under it")
    _require_computed(path, str(name), sheet)
    head, frame = sheet.iloc[0], sheet.iloc[1:].reset_index(drop=True)
    there = head.notna() | frame.notna().any()  # a column without a name and without a cell is none
    frame, head = frame.loc[:, there], head[there]
    frame.columns = pd.Index(named_columns(["" if cell != cell else str(cell) for cell in head]))
    return unpack(frame)


def _sheet(book: Any, name: Any) -> Any:
    import pandas as pd

    # as objects: pandas would read the text "007" as 7
    return pd.read_excel(book, sheet_name=name, header=None, keep_default_na=False, na_values=[""], dtype=object)


def _require_computed(path: Path, name: str, sheet: Any) -> None:
    """Refuses a column of formulas that no spreadsheet has computed: their cells are empty."""
    import openpyxl

    empty = [i for i in sheet if sheet[i].iloc[0] == sheet[i].iloc[0] and sheet[i].iloc[1:].isna().all()]
    if not empty:
        return
    book = openpyxl.load_workbook(path, read_only=True)
    for row in book[name].iter_rows(values_only=True):
        wrong = [i for i in empty if i < len(row) and isinstance(row[i], str) and row[i].startswith("=")]
        if wrong:
            raise PpgenError(
                f"the column {str(sheet[wrong[0]].iloc[0])!r} holds formulas ({row[wrong[0]]!r}) without values; open "
                "and save it in a spreadsheet, which computes them"
            )


def hdf5(path: Path) -> dict[str, Any]:
    """Its arrays by name, those in groups as `group.name`; the fields of a compound array as columns."""
    return _with_cells(_arrays_of(path))


def _with_cells(found: dict[str, Any]) -> dict[str, Any]:
    """The arrays, those of one number a row as the columns of a table, which have types."""
    import pandas as pd

    arrays = {name: v for name, v in found.items() if isinstance(v, np.ndarray) and v.ndim}
    rows = max(map(len, arrays.values()), default=0)
    cells = {n: v for n, v in arrays.items() if v.ndim == 1 and len(v) == rows and v.dtype.kind in "biuf"}
    return found | {n: pd.Series(v.astype(v.dtype.newbyteorder("="), copy=False)) for n, v in cells.items()}


def _arrays_of(path: Path) -> dict[str, Any]:
    import h5py

    found: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        if not isinstance(node, h5py.Dataset):
            return
        name = name.replace("/", ".")
        if node.shape is None:
            log.warning("%s: the array %r is empty, and is not read", path, name)
        elif node.dtype.names:
            found.update(
                {field if field not in found else f"{name}.{field}": node[field] for field in node.dtype.names}
            )
        elif node.ndim == 1 and (words := h5py.check_enum_dtype(node.dtype)):
            by_code = {code: word for word, code in words.items()}
            codes = node[()]
            found[name] = codes if set(words) == {"FALSE", "TRUE"} else _enumerated(codes, by_code)
        elif h5py.check_string_dtype(node.dtype) is not None:
            found[name] = node.asstr()[()]
        elif node.dtype.kind in "biuf":
            found[name] = node[()]
        else:
            log.warning("%s: the array %r holds %s, and is not read", path, name, node.dtype)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def _enumerated(codes: np.ndarray, words: dict[int, str]) -> Any:
    import pandas as pd

    order = [words[code] for code in sorted(words)]
    return pd.Series(pd.Categorical([words.get(int(code)) for code in codes.reshape(-1)], order))


def anndata(path: Path) -> dict[str, Any]:
    """x (cells, genes), the columns of obs, and the matrices of obsm."""
    import anndata as ad

    return unpack(ad.read_h5ad(path))


def matlab(path: Path) -> dict[str, Any]:
    """Its variables: columns of one as (n,), cells of text as text; files of version 7.3 are HDF5, transposed."""
    from scipy.io import loadmat

    with path.open("rb") as file:
        if b"MATLAB 7.3" in file.read(128):
            return _with_cells(
                {name: _column(value.T) for name, value in _arrays_of(path).items() if not name.startswith("#")}
            )
    columns: dict[str, Any] = {}
    for name, value in loadmat(path, chars_as_strings=True).items():
        if value is not None and not name.startswith("__"):
            columns |= _fields(name, value)
    return _with_cells(columns)


def _fields(name: str, value: Any) -> dict[str, Any]:
    """A variable, or those inside a structure as `name.field`."""
    names = getattr(getattr(value, "dtype", None), "names", None)
    if hasattr(value, "toarray"):
        return {name: dense(name, value)}
    if names is not None and value.size > 1:
        return {f"{name}.{field}": _column(value[field]) for field in names}
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
