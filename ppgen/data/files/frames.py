"""What holds columns by name, of any library -> raw columns: data frames, xarray's data sets and trees."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ppgen.errors import PpgenError
from ppgen.memory import require_memory

if TYPE_CHECKING:
    import narwhals as nw
    import pandas as pd

log = logging.getLogger("ppgen")

_LIBRARIES = ("pandas", "polars", "modin", "pyarrow", "cudf", "dask", "duckdb", "ibis")


def is_frame(value: Any) -> bool:
    """Whether it is a data frame: of pandas, or one that narwhals knows."""
    if type(value).__module__.partition(".")[0].strip("_") not in _LIBRARIES:
        return False
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return True
    import narwhals as nw

    return isinstance(nw.from_native(value, pass_through=True), nw.DataFrame | nw.LazyFrame)


def unpack(data: Any) -> dict[str, Any]:
    """Raw columns of a mapping, data frame, Dataset, DataTree, or of a bare array (``x``)."""
    xarray, pandas = sys.modules.get("xarray"), sys.modules.get("pandas")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        names = [_flat(name) for name in data.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PpgenError(f"two columns are called {twice[0]!r}; give each a name of its own")
        columns = {name: data.iloc[:, i] for i, name in enumerate(names)}
        return _named_index(data, columns) | columns
    if is_frame(data):
        return _series_of(data)
    if xarray is not None and isinstance(data, xarray.DataTree):
        return _tree(data)
    if xarray is not None and isinstance(data, xarray.Dataset):
        return {str(name): variable.to_numpy() for name, variable in data.data_vars.items()}
    if type(data).__name__ == "AnnData":
        return _of_anndata(data)
    if isinstance(data, Mapping):
        return dict(data)
    if isinstance(data, np.ndarray) and data.dtype.names:
        return {name: data[name].copy() for name in data.dtype.names}
    return {"x": data}


def _named_index(data: Any, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The levels of a DataFrame's index that have a name, as columns: `set_index` and `groupby` put columns there."""
    import pandas as pd

    names = {str(name): i for i, name in enumerate(data.index.names) if name is not None and str(name) not in columns}
    if names:
        log.info("the index %s of the table is a column as others are", ", ".join(map(repr, names)))
    return {name: pd.Series(data.index.get_level_values(i), index=data.index) for name, i in names.items()}


def _of_anndata(data: Any) -> dict[str, Any]:
    """x (cells, genes), the columns of obs, and the matrices of obsm."""
    columns = {} if data.X is None else {"x": dense("x", data.X)}
    others = {"obs": unpack(data.obs), "obsm": {str(name): dense(str(name), v) for name, v in data.obsm.items()}}
    for place, own in others.items():
        for name, value in own.items():
            if name in columns:
                log.warning(
                    "%s has a column %r beside one of that name (x are the counts), and is called %r here", place, name,
                    f"{place}.{name}",
                )  # fmt: skip
            columns[f"{place}.{name}" if name in columns else name] = value
    return columns


def dense(name: str, matrix: Any) -> Any:
    """A matrix in memory, with its zeros: it may lie in its file, or be sparse."""
    matrix = matrix.to_memory() if hasattr(matrix, "to_memory") else matrix
    matrix = matrix[()] if type(matrix).__module__.startswith("h5py") else matrix
    if not hasattr(matrix, "toarray"):
        return matrix
    rows, columns = matrix.shape
    require_memory(rows * columns * matrix.dtype.itemsize, f"the matrix {name!r} with its zeros", "take a part of it")
    return matrix.toarray()


def _flat(name: Any) -> str:
    """The name of a column; of one with several levels, joined by dots."""
    return ".".join(str(part) for part in name if str(part)) if isinstance(name, tuple) else str(name)


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


def _series_of(data: Any) -> dict[str, pd.Series]:
    """The columns of a frame that narwhals knows as pandas series; categories keep their order."""
    import narwhals as nw

    frame = nw.from_native(data)
    frame = frame.collect() if isinstance(frame, nw.LazyFrame) else frame
    return {name: _series(frame[name]) for name in frame.columns}


def _series(column: nw.Series[Any]) -> pd.Series:
    import narwhals as nw
    import pandas as pd

    kind = column.dtype
    if isinstance(kind, nw.Enum | nw.Categorical):
        words = column.cast(nw.String).to_list()
        levels = list(kind.categories) if isinstance(kind, nw.Enum) else sorted({w for w in words if w is not None})
        return pd.Series(pd.Categorical(words, levels, ordered=isinstance(kind, nw.Enum)))
    if isinstance(kind, nw.Datetime | nw.Date | nw.Duration):
        read = pd.to_timedelta if isinstance(kind, nw.Duration) else pd.to_datetime
        return pd.Series(read(column.to_list()))
    if kind.is_numeric() and not isinstance(kind, nw.Decimal) and not column.is_null().any():
        return pd.Series(column.to_numpy())
    if kind.is_integer() or kind.is_float():
        return pd.Series(column.cast(nw.Float64).to_numpy())
    return pd.Series(column.to_list(), dtype=None if isinstance(kind, nw.Boolean) else object)
