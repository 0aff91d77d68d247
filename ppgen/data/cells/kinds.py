"""The cells of a column -> its type, and its numbers: the rules, one function each.

Text that spells numbers, amounts, dates or lengths of time in a way that can be read only one way is these
(:mod:`.figures`); other text is words: two are binary, a known scale is ordered, others are categorical in sorted
order, and words that hardly repeat are the text of single rows. Codes with leading zeros are words. Numbers stay the
numbers that they are, whatever their kind. A column of which some cells are numbers and others words is unclear.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from unicodedata import normalize

import numpy as np
import pandas as pd

from ppgen.data.cells.figures import MISSING, SAMPLE, are_thousands, decimal_mark, kind_of_text
from ppgen.data.cells.text import WORDS, TextColumn, unclear
from ppgen.data.cells.typed import Typed, blank, coded, days_of, of_days, of_numbers
from ppgen.data.cells.types import ASKED, NUMERIC, ColumnType, word_of


def typed(name: str, raw: Any, asked: ColumnType | None = None, mark: str = "") -> Typed:
    """One raw column by the rules.

    Args:
        raw: a pandas Series, an array or a list, one cell a row.
        asked: the type that it is to have: of a run, or asked for by name. Words beyond its levels follow them.
        mark: the decimal mark of the table that it stands in, where that is known.
    """
    series = raw if isinstance(raw, pd.Series) else pd.Series(_listed(raw))
    kind = series.dtype
    if isinstance(kind, pd.CategoricalDtype):
        found = _of_categories(name, series, asked)
    elif isinstance(kind, pd.DatetimeTZDtype | pd.PeriodDtype) or kind.kind == "M":
        found = of_days(name, days_of(_plain_dates(series)), asked, "ISO8601", [])
    elif kind.kind == "m":
        seconds = pd.to_timedelta(series).dt.total_seconds().to_numpy(float)
        found = of_numbers(name, seconds, replace(blank(name, asked), kind="duration", unit="seconds"))
    elif pd.api.types.is_numeric_dtype(kind) or kind.kind == "b":
        found = _of_numeric(name, series, asked)
    else:
        found = _of_objects(name, series, asked, mark)
    rows, values = len(series), found.values
    if values is None:
        missing = int(series.isna().sum())
    else:
        missing = int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0
    notes = (*found.type.notes, *_constant(found.type, values))
    return Typed(replace(found.type, rows=rows, missing=missing, notes=notes), found.values)


def _constant(own: ColumnType, values: np.ndarray | None) -> list[str]:
    """What is said of a column with one value alone."""
    there = np.zeros(0) if values is None else values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if len(there) < 2 or bool((there != there[0]).any()):
        return []
    value = repr(own.levels[int(there[0])]) if own.levels else f"{there[0]:g}" if own.kind != "date" else "the same day"
    return [f"is {value} in every row that has a value"]


def evidence_of_mark(raw: Any) -> str:
    """What the cells of a text column say of the table's decimal mark: "," or "."; "" where nothing.

    >>> evidence_of_mark(["1,5", "2,25"]), evidence_of_mark(["1,234"]), evidence_of_mark(["oak"])
    (',', '', '')
    """
    texts = pd.Series(raw, dtype=None if isinstance(raw, pd.Series) else object)
    texts = texts.iloc[:: max(1, len(texts) // (4 * SAMPLE))]
    some = {t.strip() for t in texts.to_numpy(object) if isinstance(t, str)} - MISSING
    if not any("," in t or "." in t for t in some):
        return ""
    figures = [t for t in sorted(some)[:SAMPLE] if kind_of_text(t) == "number"]
    if len(figures) <= min(len(some), SAMPLE) / 2 or not any("," in t or "." in t for t in figures):
        return ""
    own = pd.Series(figures, dtype="str")
    found = decimal_mark(own)
    return found if found == "," or found == "." and not are_thousands(own) else ""


def _listed(raw: Any) -> Any:
    if isinstance(raw, np.ma.MaskedArray):
        cells = raw.data.astype(object)
        cells[np.ma.getmaskarray(raw)] = None
        return cells
    array = np.asarray(raw) if isinstance(raw, np.ndarray) else np.array(raw, dtype=object)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    if array.dtype.kind == "O":
        array = np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in array], dtype=object)
    return array


# -- columns that are no text ----------------------------------------------------------------------


def _of_categories(name: str, series: pd.Series, asked: ColumnType | None) -> Typed:
    levels = tuple(map(str, series.cat.categories))
    kind = "ordered" if series.cat.ordered else "binary" if len(levels) == 2 else "categorical"
    why = "an ordered categorical of the source" if series.cat.ordered else "a categorical of the source"
    made = ColumnType(name, kind, levels, why=why)
    codes = series.cat.codes.to_numpy(np.int64)
    if asked is not None and (asked.levels or asked.kind in ("text", *NUMERIC, "date")):
        return _of_objects(name, series.astype(object), asked, "")
    return Typed(made if asked is None else replace(asked, name=name, levels=levels), coded(codes))


def _plain_dates(series: pd.Series) -> pd.Series:
    if isinstance(series.dtype, pd.PeriodDtype):
        return series.dt.to_timestamp()
    if isinstance(series.dtype, pd.DatetimeTZDtype):
        return series.dt.tz_convert("UTC").dt.tz_localize(None)
    return pd.to_datetime(series)


def _of_numeric(name: str, series: pd.Series, asked: ColumnType | None) -> Typed:
    """Numbers and booleans, pandas' nullable ones too."""
    gone = series.isna().to_numpy()
    boolean = pd.api.types.is_bool_dtype(series.dtype)
    if asked is not None and _are_words(series[~gone], asked, boolean):
        spelled = {float(w): w for w in asked.levels if _is_plain(w)}
        own = (None if g else word_of(v) for v, g in zip(series, gone, strict=True))
        whole = [w if w is None or boolean or w in asked.levels else spelled.get(float(w), w) for w in own]
        return _of_objects(name, pd.Series(whole, dtype=object), asked, "")
    if isinstance(series.dtype, pd.SparseDtype):
        series = series.sparse.to_dense()
    if gone.any() and not isinstance(series.dtype, np.dtype):
        values = series.to_numpy(dtype=float, na_value=np.nan)
    else:
        values = series.to_numpy(dtype=bool if boolean else None)
    asked = None if asked is not None and asked.levels else asked  # codes of words, as the caller says
    if boolean and asked is None:
        why = "true and false"
        return Typed(ColumnType(name, "binary", why=why, low=0.0, high=1.0), values)
    return of_numbers(name, values, asked)


def _are_words(there: pd.Series, asked: ColumnType, boolean: bool) -> bool:
    """Whether numbers, or true and false, are words of the type that was asked for."""
    if asked.levels:
        return set(asked.levels) <= {"True", "False"} if boolean else any(map(_is_number, asked.levels))
    if asked.kind == "binary":
        return asked.why == ASKED and not boolean and not bool(there.isin([0, 1]).all())
    return asked.kind in (*WORDS, "date")


def _is_number(word: str) -> bool:
    return bool(np.isfinite(pd.to_numeric(word, errors="coerce")))


def _is_plain(word: str) -> bool:
    """Whether a word is a number without leading zeros, which codes have."""
    return _is_number(word) and not re.match(r"[+\-]?0\d", word)


# -- objects ---------------------------------------------------------------------------------------


def _of_objects(name: str, series: pd.Series, asked: ColumnType | None, mark: str) -> Typed:
    """Text, and columns of Python's objects."""
    inferred = pd.api.types.infer_dtype(series, skipna=True)
    if inferred in ("boolean", "integer", "floating", "mixed-integer-float", "decimal"):
        return _of_numeric(name, _to_numbers(series, inferred), asked)
    if inferred == "empty":
        return Typed(replace(blank(name, asked), why="no cell has a value"), np.full(len(series), np.nan, "f4"))
    if inferred in ("datetime", "datetime64", "date"):
        return of_days(name, days_of(_plain_dates(pd.to_datetime(series, utc=True))), asked, "ISO8601", [])
    if inferred in ("timedelta", "timedelta64"):
        return typed(name, pd.to_timedelta(series), asked)
    if inferred == "time":
        clock = pd.to_timedelta(series.map(str, na_action="ignore"))
        return typed(name, clock, asked)
    plain = str | int | float | bool | np.generic
    others = [v for v in series.dropna() if not isinstance(v, plain)] if inferred != "string" else []
    if others:
        odd = sorted({type(v).__name__ for v in others})
        why = f"holds {', '.join(odd)}, expected a number or a text a row"
        return unclear(name, why, "convert it, or leave it out with columns=")
    whole = series.astype(object).where(series.notna(), None) if inferred != "string" else series
    codes, unique = pd.factorize(whole.map(str, na_action="ignore") if inferred != "string" else whole)
    texts = pd.Series([_plain_text(t) for t in unique], dtype="str")
    kept = set(asked.levels) if asked is not None else set()
    gone = texts.isin([word for word in MISSING if word not in kept])
    return TextColumn(name, texts, codes, gone, asked, mark).read()


def _plain_text(cell: str) -> str:
    """A cell's text in one spelling: Unicode's composed form, no blanks around it, what spreadsheets write as ="01"."""
    text = cell.strip()
    if not text.isascii():
        text = normalize("NFC", text).replace("\u200b", "").replace("\ufeff", "").strip()
    return text[2:-1] if text.startswith('="') and text.endswith('"') else text


def _to_numbers(series: pd.Series, inferred: str) -> pd.Series:
    if inferred == "boolean":
        return series.astype("boolean" if bool(series.isna().any()) else bool)
    numbers = pd.to_numeric(series.astype(float) if inferred == "decimal" else series)
    return numbers.astype(float) if numbers.dtype == object else numbers  # whole numbers beyond 64 bits
