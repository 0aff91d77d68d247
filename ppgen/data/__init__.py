"""Data sets as columns: ``dict[str, torch.Tensor]``, whose keys are a program's argument names.

Columns as long as the longest one are *rows* (they are split and minibatched); the others are
*constants*, passed whole. ``x`` is the usual main column, ``y`` the label or response.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppgen.data.arguments import Nested, argument_of, is_literal, put_together, tensors
from ppgen.data.cells.categories import recoded, require_labels, warn_of_unseen_labels
from ppgen.data.cells.levels import Levels, encoded
from ppgen.data.cells.number_notes import ENOUGH_ROWS, SOME_ROWS, SQUEEZED
from ppgen.data.cells.typed import fits_float32
from ppgen.data.cells.types import ASKED, ColumnType, parse_types, type_of_record
from ppgen.data.columns import Asked, as_tensors, asked_types, in_shapes, parse_columns, select
from ppgen.data.files import csv, datasets, readers
from ppgen.data.files.large import Deferred, blocks, moments, taken
from ppgen.data.hashes import fingerprint
from ppgen.data.table import Table, words_of
from ppgen.errors import PpgenError, nearest, object_to

__all__ = [
    "Asked",
    "ColumnType",
    "Levels",
    "Nested",
    "Table",
    "argument_of",
    "as_tensors",
    "asked_types",
    "batch_index",
    "blocks",
    "encoded",
    "fingerprint",
    "fits_float32",
    "in_shapes",
    "is_literal",
    "load",
    "moments",
    "n_rows",
    "names",
    "on_device",
    "parse_columns",
    "parse_types",
    "put_together",
    "recoded",
    "require_labels",
    "row_columns",
    "splits",
    "take",
    "tensors",
    "type_of_record",
    "validate",
    "warn_of_unseen_labels",
    "words_of",
]

log = logging.getLogger("ppgen")

SPLITS = readers.SPLITS
BY_NAME = (".npz", ".safetensors")  # they hold arrays of differing lengths under free names, as split files do
LARGE = 2**28  # bytes in memory, from which on a look at a file reads its first rows only


def load(
    source: str | Path,
    split: str = "all",
    *,
    columns: Mapping[str, str | list[str]] | str | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    rows: int | None = None,
    types: Asked = None,
) -> Table:
    """Load a data set by name, or from a file.

    Args:
        source: a name out of :func:`names`, or the path of a file: .npz, .npy, .csv, .parquet,
            .json (an object of columns; .gz too), .nc (a data set, or the groups observed_data and
            constant_data), .safetensors, IDX (MNIST's format, .gz or not), .tsv, .jsonl, .feather, .xlsx, .h5, .h5ad
            or .mat; or a folder of .png and .jpg pictures (:mod:`ppgen.data.files.images`).
        split: ``"train"``, ``"valid"``, ``"test"``, or ``"all"``: every row, in the order of the
            source. Arrays called train, valid, test (column ``x``) or y_train, y_test, … are the
            source's own splits; where it has no valid, that is the last tenth of train in an order
            drawn from ``seed``. A source without splits is put in such an order and cut
            80 : 10 : 10.
        columns: argument name -> column of the source, or list of columns gathered into one matrix
            (also as text: ``"x=a+b+c,y=target"``); a name may hold ``*``. Only these are kept.
        types: what columns are, where the rules take them for something else (``"grade=ordered:a<b,zip=text"``); or the
            types of another table (``other.types``), whose words keep their codes and whose days their origin.
        data_dir: where the data sets that are not built in lie; by default ``$PPGEN_DATA``.
        seed: of the order above; nothing else is drawn, and the global generator is left alone.
        rows: of a file that is large in memory (256 MB), no more than the first so many: for a look at it.

    Returns:
        Column name -> tensor, as a `Table`: its `types` say what each column of a table is (:class:`ColumnType`: kind,
        levels, missing cells, range, why). Words are codes, integers int64, images of bytes uint8; see
        :mod:`ppgen.data.columns`. A column that cannot be read is an error once it is asked for.

    Raises:
        PpgenError: no such source, column or split; a file that is damaged, ragged or pickled.
    """
    if split not in (*SPLITS, "all"):
        choice = nearest(split, SPLITS) or "; choose train, valid, test or all"
        raise PpgenError(f"there is no split {split!r}{choice}")
    name, where, groups = _groups(source, data_dir, rows, asked_types(types))
    part = partial(_part, name, where, groups, columns, types)
    if split == "all":
        return _concatenate({key: part(key) for key in groups}, where)
    if "all" in groups:
        return _cut(part("all"), split, seed, where)
    if split not in groups and split != "valid":
        raise PpgenError(f"{where} has no split {split!r}; it has {', '.join(groups)}")
    if "valid" in groups or split == "test":
        return part(split)
    return _held_out(part("train"), split, seed, where)


def _part(
    name: str | None, where: str, groups: Mapping[str, dict[str, Any]], columns: Any, types: Asked, key: str
) -> Table:
    """The chosen columns of a group."""
    raw = dict(datasets.finish(name, groups[key]))
    mark = raw.pop(csv.MARK, "")
    tensors = select(raw, columns, where, types=types, lenient=readers.is_table(raw), mark=mark)
    try:
        n_rows(tensors)
        _require_real(tensors)
    except PpgenError as error:
        raise PpgenError(f"{where}: {error}") from error
    return tensors


def _require_real(data: Mapping[str, Any]) -> None:
    for name, column in tensors(data).items():
        if column.is_complex():
            raise PpgenError(
                f"column {name!r} holds complex numbers ({str(column.dtype).removeprefix('torch.')}), which no "
                "distribution has; write their real and imaginary parts as columns"
            )


def _cut(data: Table, split: str, seed: int, where: str) -> Table:
    """A split of rows that have none: 80 : 10 : 10."""
    n = n_rows(data)
    if n < 10:
        raise PpgenError(f"{where} has {n} rows, too few to split (10); use split 'all'")
    cuts = (0, 8 * n // 10, 9 * n // 10, n)
    at = SPLITS.index(split)
    return take(data, _order(n, seed)[cuts[at] : cuts[at + 1]])


def _held_out(train: Table, split: str, seed: int, where: str) -> Table:
    """Of rows to train on, the last tenth as valid, or the rest."""
    n = n_rows(train)
    held_out = max(1, n // 10)
    if held_out == n:
        raise PpgenError(f"{where} has one row in train, none to spare for valid; use split 'all'")
    order = _order(n, seed)
    return take(train, order[n - held_out :] if split == "valid" else order[: n - held_out])


def names() -> dict[str, str]:
    """The data sets that :func:`load` knows by name, each with one line on what it is."""
    return dict(datasets.NAMES)


def splits(source: str | Path, data_dir: str | Path | None = None) -> tuple[str, ...]:
    """The splits that come with a source, a valid held out of its train included; () if none.

    >>> splits("digits"), splits("eight_schools")
    (('train', 'valid', 'test'), ())
    """
    if isinstance(source, str) and source in datasets.WITH_SPLITS:
        return SPLITS
    path = Path(source)
    if source not in datasets.NAMES and path.exists() and path.suffix.lower() not in BY_NAME:
        return ()
    _, _, groups = _groups(source, data_dir)
    return () if "all" in groups else tuple(s for s in SPLITS if s in groups or s == "valid")


def _groups(
    source: str | Path,
    data_dir: str | Path | None,
    rows: int | None = None,
    types: Mapping[str, ColumnType] | None = None,
) -> tuple[str | None, str, dict[str, dict[str, Any]]]:
    """The built-in name or None, the source in words, and its raw columns by split."""
    if not isinstance(source, str | Path):
        raise PpgenError(
            f"source is a {type(source).__name__}, expected a name or a path; columns in memory need no loading"
        )
    if isinstance(source, str) and source in datasets.NAMES:
        return source, f"data set {source!r}", datasets.load_raw(source, data_dir)
    path = Path(source).expanduser()
    if not os.path.exists(path) and str(path) != "-":
        beside = os.listdir(path.parent) if os.path.isdir(path.parent) else []
        hint = nearest(path.name, [*datasets.NAMES, *beside])
        raise PpgenError(
            f"there is no file or data set {str(source)!r}"
            + (hint or f"; give a path, or one of {', '.join(datasets.NAMES)}")
        )
    asked = (types or {}).values()
    keep = {word for own in asked for word in own.levels}
    texts = {own.name for own in asked if own.form == "comma" and own.why == ASKED}
    raw = readers.read(path, rows if rows is not None and path.stat().st_size > LARGE else None, keep, texts)
    groups = readers.by_split(path, raw) if path.suffix.lower() in BY_NAME else {"all": raw}
    if rows is not None:
        groups = {key: _first_rows(group, rows, path) for key, group in groups.items()}
    return None, str(path), groups


def _first_rows(raw: dict[str, Any], rows: int, path: Path) -> dict[str, Any]:
    """The first rows of raw columns that are large in memory."""
    sizes = [v.size if isinstance(v, Deferred) else getattr(v, "nbytes", 0) for v in raw.values()]
    n = max((len(v) for v in raw.values() if getattr(v, "ndim", 0)), default=0)
    if sum(sizes) <= LARGE or n <= rows:
        return raw
    log.info("%s: the first %d of %d rows are looked at", path, rows, n)
    first = {k: v for k, v in raw.items() if getattr(v, "ndim", 0) and len(v) == n}
    return raw | {k: v.first(rows) if isinstance(v, Deferred) else v[:rows] for k, v in first.items()}


def _concatenate(parts: dict[str, Table], where: str) -> Table:
    if len(parts) == 1:
        return next(iter(parts.values()))
    first, *others = parts
    words = {n: sorted({w for part in parts.values() for w in part.words.get(n, ())}) for n in parts[first].words}
    types = {n: replace(own, levels=tuple(words.get(n, ()))) for n, own in parts[first].types.items()}
    parts = {split: recoded(part, types) for split, part in parts.items()}
    rows = row_columns(parts[first])
    for split in others:
        other = parts[split]
        odd = sorted(set(parts[first]) ^ set(other))
        odd += [n for n in rows if n in other and _row_shape(parts[first][n]) != _row_shape(other[n])]
        if odd:
            raise PpgenError(
                f"{where}: column {odd[0]!r} is not the same kind of column in {first} and {split} "
                "and so cannot be joined; load one split, or choose columns="
            )
    joined = {
        name: torch.cat([part[name] for part in parts.values()]) if name in rows else column
        for name, column in parts[first].items()
    }
    return Table(joined, parts[first].types)


def _row_shape(column: Tensor) -> tuple[int, ...] | None:
    return tuple(column.shape[1:]) if column.dim() else None


def _order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(int(seed)))


def n_rows(data: Mapping[str, Any], rows: Collection[str] = ()) -> int:
    """The number of rows: the largest leading dimension; 1 where there are no columns but scalars.

    Args:
        rows: the names of the row columns, where they are known from the whole data set: in a batch or in a few
            new rows a constant can be the longest.

    Raises:
        PpgenError: an all-zero-length data set.
    """
    columns = tensors(data)
    n = max((len(c) for name, c in columns.items() if c.dim() and (not rows or name in rows)), default=1)
    if n == 0:
        shapes = ", ".join(f"{name} {tuple(column.shape)}" for name, column in columns.items())
        raise PpgenError(f"an all-zero-length data set ({shapes}); give at least one row")
    return n


def row_columns(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that are rows, as against constants."""
    n = n_rows(data)
    return tuple(name for name, column in tensors(data).items() if column.dim() and len(column) == n)


def take(data: Mapping[str, Any], index: Tensor | slice, rows: Collection[str] = ()) -> Table:
    """Rows ``index`` of the row columns (``rows``, or those of these data), constants whole."""
    rows = rows or row_columns(data)
    part = {name: taken(column, index) if name in rows else column for name, column in data.items()}
    return Table(part, data.types if isinstance(data, Table) else None)


def on_device(data: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """The same data with the columns there."""
    return {name: column.to(device) if isinstance(column, Tensor) else column for name, column in data.items()}


def batch_index(step: int, n_rows: int, batch_size: int, seed: int) -> Tensor:
    """The rows of minibatch ``step``: int64, (batch_size,).

    Batch s is positions [s B, (s + 1) B) of an endless stream, one permutation of all rows after
    the other; permutation e is a function of (seed, e) alone. Nothing is kept between the steps, so
    a resumed run sees the rows that an unbroken one would have seen.
    """
    if step < 0 or n_rows < 1 or batch_size < 1:
        raise PpgenError(
            f"step={step}, n_rows={n_rows}, batch_size={batch_size} is no minibatch; "
            "step counts from 0, the others from 1"
        )
    position, end, parts = step * batch_size, (step + 1) * batch_size, []
    while position < end:
        epoch, offset = divmod(position, n_rows)
        parts.append(_epoch(n_rows, seed, epoch)[offset : offset + end - position])
        position += len(parts[-1])
    return torch.cat(parts)  # a copy: the cached permutation stays out of reach


@lru_cache(maxsize=2)
def _epoch(n_rows: int, seed: int, epoch: int) -> Tensor:
    # Hashed, because seeds that differ by one would otherwise meet in neighbouring epochs.
    digest = hashlib.sha256(f"ppgen epoch {seed} {epoch}".encode()).digest()
    return _order(n_rows, int.from_bytes(digest[:8], "big") >> 1)


def validate(
    data: Mapping[str, Any], missing: Callable[[], bool] | None = None, *, said: bool = False, fits: bool = True
) -> None:
    """Check columns before they are used.

    Args:
        missing: whether NaN stands for missing values, which the model leaves out.
        said: whether the log has said so.
        fits: whether they are to be fitted, so that rows can be dropped by `program.missing`.

    Raises:
        PpgenError: no row; a column that is not numeric; NaN or infinite values, with their number and first row;
            ``x`` and ``y`` of different lengths.
    """
    read = all(isinstance(v, Tensor | Nested) or is_literal(v) for v in data.values())
    columns = tensors(data if read else as_tensors(data))
    n_rows(columns)
    for name, column in columns.items():
        if column.is_complex():
            object_to(
                f"column {name!r} holds complex numbers, which no distribution has; pass their real and imaginary parts"
            )
            continue
        nan, infinite, row = _not_finite(column)
        if not nan and not infinite:
            continue
        counts = [f"{n} {kind}" for n, kind in ((nan, "NaN"), (infinite, "infinite")) if n]
        where = f", the first in row {row} (counting from 0)" if column.dim() else ""
        found = f"column {name!r} of shape {tuple(column.shape)} has {' and '.join(counts)} values{where}"
        if missing is not None and not infinite and missing():
            log.log(
                logging.DEBUG if said else logging.WARNING,
                "%s; they are taken as missing: the model leaves them out",
                found,
            )
            continue
        remedy = "drop these rows (program.missing = 'drop', --missing drop)" if fits else "leave these rows out"
        object_to(f"{found}, expected finite numbers; {remedy}, or fill the values in")
    for name, column in columns.items():
        _warn_of_huge_rows(name, column)
    x, y = columns.get("x"), columns.get("y")
    # One per group, or one per dimension of the other, is a constant; anything else is a slip.
    if x is not None and y is not None and x.dim() and y.dim() and len(x) != len(y):
        shorter, longer = sorted((x, y), key=len)
        if len(shorter) > 0.9 * len(longer) and len(shorter) not in longer.shape[1:]:
            raise PpgenError(
                f"x has {len(x)} rows and y has {len(y)}, expected as many of each; cut them to the same rows"
            )


def _warn_of_huge_rows(name: str, column: Tensor) -> None:
    """Says where one row is most of a column's spread: what is measured in that unit is squeezed to a point."""
    n = len(column) if column.dim() else 0
    if not column.is_floating_point() or column.dim() > 2 or n < ENOUGH_ROWS:
        return
    some = column[:: max(1, n // SOME_ROWS)].double().reshape(-1, column[0].numel())
    low, middle, high = some.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
    sd = (high - low) / 1.349  # of a normal of that interquartile range
    start = 0
    for block in blocks(column):
        flat = block.reshape(len(block), -1)
        ends = torch.stack([flat.amin(0), flat.amax(0)]).double()
        beyond = ((ends - middle).abs() / sd).nan_to_num(0.0, 0.0).amax(0)
        if beyond.max() > SQUEEZED * n**0.5:
            feature = int(beyond.argmax())
            row = int((flat[:, feature].double() - middle[feature]).abs().argmax())
            value = flat[row, feature].item()
            which = f"column {name!r}" if column.dim() == 1 else f"feature {feature} of column {name!r}"
            log.warning(
                "%s is %.4g in row %d (counting from 0), and the middle half of the rows lies within %.4g to %.4g: "
                "that row is most of the spread that data are scaled by; correct it, drop it, or take logarithms",
                which, value, start + row, low[feature].item(), high[feature].item(),
            )  # fmt: skip
            return
        start += len(block)


def _not_finite(column: Tensor) -> tuple[int, int, int]:
    """How many values are NaN, how many infinite, and the first row with one."""
    nan, infinite, first, start = 0, 0, -1, 0
    for block in blocks(column) if column.is_floating_point() else ():
        if not torch.isfinite(block.sum()) and (wrong := ~torch.isfinite(block)).any():  # the sum alone may overflow
            here = int(torch.isnan(block).sum())
            nan, infinite = nan + here, infinite + int(wrong.sum()) - here
            if first < 0 and block.dim():
                first = start + int(wrong.reshape(len(block), -1).any(1).nonzero()[0])
        start += len(block) if block.dim() else 0
    return nan, infinite, first
