"""The cells of a column -> its type, and its numbers: the rules, one function each.

Text that spells numbers, amounts, dates or lengths of time in a way that can be read only one way is these
(:mod:`.figures`); other text is words: two are binary, a known scale is ordered, others are categorical in sorted
order, and words that hardly repeat are the text of single rows. Codes with leading zeros are words. Numbers stay the
numbers that they are, whatever their kind. A column of which some cells are numbers and others words is unclear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from ppgen.data.figures import (
    AMBIGUOUS,
    MISSING,
    SAMPLE,
    date_formats,
    decimal_mark,
    kind_of_text,
    read_dates,
    read_numbers,
    read_spans,
)
from ppgen.data.number_notes import describe_numbers
from ppgen.data.scales import known_order
from ppgen.data.types import MARKS, NUMERIC, ColumnType
from ppgen.errors import nearest

FEW_ROWS = 20  # from which on words that hardly repeat are the text of single rows
LONG = 40.0  # characters of a word on average, above which they are sentences
STRAY = 0.1  # of the words of a column, so many may look like numbers
SHOWN = 3
_EPOCH = pd.Timestamp(0)


class Typed(NamedTuple):
    """A column's type, and its values: codes or numbers, nan where a cell is missing; None where it is unclear."""

    type: ColumnType
    values: np.ndarray | None


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
        found = _of_dates(name, _plain_dates(series), asked, "ISO8601")
    elif kind.kind == "m":
        seconds = pd.to_timedelta(series).dt.total_seconds().to_numpy(float)
        found = _of_numbers(name, seconds, replace(_blank(name, asked), kind="duration", unit="seconds"))
    elif pd.api.types.is_numeric_dtype(kind) or kind.kind == "b":
        found = _of_numeric(name, series, asked)
    else:
        found = _of_objects(name, series, asked, mark)
    rows, missing = len(series), int(np.isnan(found.values).sum()) if _floating(found.values) else 0
    if found.values is None:
        missing = int(series.isna().sum())
    return Typed(replace(found.type, rows=rows, missing=missing), found.values)


def evidence_of_mark(raw: Any) -> str:
    """What the cells of a text column say of the table's decimal mark: "," or "."; "" where nothing.

    >>> evidence_of_mark(["1,5", "2,25"]), evidence_of_mark(["1,234"]), evidence_of_mark(["oak"])
    (',', '', '')
    """
    texts = pd.Series(raw, dtype=None if isinstance(raw, pd.Series) else object)
    texts = texts.iloc[:: max(1, len(texts) // (4 * SAMPLE))].dropna()
    some = pd.Series(pd.unique(texts), dtype=object).map(str).astype("str").str.strip()
    some = some[~some.isin(MISSING)]
    if not len(some):
        return ""
    figures = some[[kind_of_text(t) == "number" for t in some]]
    if len(figures) <= len(some) / 2 or not bool(figures.str.contains("[.,]").any()):
        return ""
    found = decimal_mark(figures)
    return found if found in (",", ".") else ""


def _listed(raw: Any) -> Any:
    if isinstance(raw, np.ma.MaskedArray):
        return raw.astype(object).filled(None)
    array = np.asarray(raw) if isinstance(raw, np.ndarray) else np.array(raw, dtype=object)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    if array.dtype.kind == "O":
        array = np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in array], dtype=object)
    return array


def _blank(name: str, asked: ColumnType | None) -> ColumnType:
    return ColumnType(name, "real") if asked is None else replace(asked, name=name)


def _floating(values: np.ndarray | None) -> bool:
    return values is not None and values.dtype.kind == "f"


def _default_float(values: np.ndarray) -> np.ndarray:
    return values.astype(str(torch.get_default_dtype()).removeprefix("torch."), copy=False)


# -- columns that are no text ----------------------------------------------------------------------


def _of_categories(name: str, series: pd.Series, asked: ColumnType | None) -> Typed:
    levels = tuple(map(str, series.cat.categories))
    kind = "ordered" if series.cat.ordered else "binary" if len(levels) == 2 else "categorical"
    made = ColumnType(name, kind, levels, why=f"a {'n ordered' if series.cat.ordered else ''} categorical of the source")
    made = replace(made, why=made.why.replace("a n", "an").replace("a  ", "a "))
    codes = series.cat.codes.to_numpy(np.int64)
    if asked is not None and (asked.levels or asked.kind in ("text", *NUMERIC, "date")):
        return _of_objects(name, series.astype(object), asked, "")
    return Typed(made if asked is None else replace(asked, name=name, levels=levels), _coded(codes))


def _plain_dates(series: pd.Series) -> pd.Series:
    if isinstance(series.dtype, pd.PeriodDtype):
        return series.dt.to_timestamp()
    if isinstance(series.dtype, pd.DatetimeTZDtype):
        return series.dt.tz_convert("UTC").dt.tz_localize(None)
    return pd.to_datetime(series)


def _of_numeric(name: str, series: pd.Series, asked: ColumnType | None) -> Typed:
    """Numbers and booleans, pandas' nullable ones too."""
    gone = series.isna().to_numpy()
    if asked is not None and (asked.levels or asked.kind in ("categorical", "ordered", "date", "text")):
        whole = [None if g else _as_word(v) for v, g in zip(series, gone, strict=True)]
        return _of_objects(name, pd.Series(whole, dtype=object), asked, "")
    if isinstance(series.dtype, pd.SparseDtype):
        series = series.sparse.to_dense()
    boolean = pd.api.types.is_bool_dtype(series.dtype)
    if gone.any() and not isinstance(series.dtype, np.dtype):
        values = series.to_numpy(dtype=float, na_value=np.nan)
    else:
        values = series.to_numpy(dtype=bool if boolean else None)
    if boolean and asked is None:
        why = "true and false"
        return Typed(ColumnType(name, "binary", why=why, low=0.0, high=1.0), values)
    return _of_numbers(name, values, asked)


def _as_word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and value == int(value) else str(value)


# -- text ------------------------------------------------------------------------------------------


def _of_objects(name: str, series: pd.Series, asked: ColumnType | None, mark: str) -> Typed:
    """Text, and columns of Python's objects."""
    inferred = pd.api.types.infer_dtype(series, skipna=True)
    if inferred in ("boolean", "integer", "floating", "mixed-integer-float", "decimal"):
        return _of_numeric(name, _to_numbers(series, inferred), asked)
    if inferred == "empty":
        return Typed(replace(_blank(name, asked), why="no cell has a value"), np.full(len(series), np.nan, "f4"))
    if inferred in ("datetime", "datetime64", "date"):
        return _of_dates(name, _plain_dates(pd.to_datetime(series, utc=True)), asked, "ISO8601")
    if inferred in ("timedelta", "timedelta64"):
        return typed(name, pd.to_timedelta(series), asked)
    odd = sorted({type(v).__name__ for v in series.dropna() if not isinstance(v, str | int | float | bool | np.generic)})
    if odd:
        why = f"holds {', '.join(odd)}, expected a number or a text a row"
        return _unclear(name, why, "convert it, or leave it out with columns=")
    whole = series.astype(object).where(series.notna(), None) if inferred != "string" else series
    codes, unique = pd.factorize(whole.map(str, na_action="ignore") if inferred != "string" else whole)
    texts = pd.Series(np.asarray(unique, dtype=object), dtype="str").str.strip()
    kept = set(asked.levels) if asked is not None else set()
    gone = texts.isin([word for word in MISSING if word not in kept])
    return _Text(name, texts, codes, gone, asked, mark).read()


def _to_numbers(series: pd.Series, inferred: str) -> pd.Series:
    if inferred == "boolean":
        return series.astype("boolean" if bool(series.isna().any()) else bool)
    return pd.to_numeric(series.astype(float) if inferred == "decimal" else series)


class _Text:
    """The texts of a column, each once, and where they stand.

    Attributes:
        texts: without blanks around them; two may be equal.
        codes: of the rows, in `texts`; -1 where there is no cell.
        gone: which of the texts mean that there is none.
    """

    def __init__(
        self, name: str, texts: pd.Series, codes: np.ndarray, gone: pd.Series, asked: ColumnType | None, mark: str
    ):
        self.name, self.texts, self.codes, self.asked, self.mark = name, texts, codes, asked, mark
        self.gone = gone.to_numpy()
        self.notes: list[str] = []

    def read(self) -> Typed:
        asked = self.asked
        if asked is not None and (asked.levels or asked.kind in ("categorical", "ordered", "binary", "text")):
            return self._words(asked)
        if not len(self._left()):
            return Typed(replace(_blank(self.name, asked), why="no cell has a value"), self._spread(np.array([])))
        if asked is not None:
            return self._asked(asked)
        numbers = self._plain_numbers()
        wrong = np.isnan(numbers)
        if wrong.any() and not wrong.all() and set(self._left()[wrong]) <= AMBIGUOUS:
            self._lose(wrong)
            numbers, wrong = numbers[~wrong], wrong[~wrong]
        zeros = self._left().str.fullmatch(r"[+\-]?0\d+").to_numpy(bool)
        if not wrong.any() and not zeros.any():
            return self._numbers(numbers, ColumnType(self.name, "real"))
        if not wrong.any():
            cell = self._left()[zeros].iloc[0]
            self.notes.append(f"{cell!r} has a leading zero, as codes have: they are words ({self.name}=real: numbers)")
            return self._words(None)
        return self._mixed(wrong)

    # -- which texts -------------------------------------------------------------------------------

    def _left(self) -> pd.Series:
        return self.texts[~self.gone]

    def _lose(self, which: np.ndarray) -> None:
        """Takes these of what is left as missing."""
        self.gone[np.flatnonzero(~self.gone)[which]] = True

    def _row(self, which: np.ndarray) -> int:
        """The first row with one of these of what is left."""
        return int(np.isin(self.codes, np.flatnonzero(~self.gone)[which]).argmax())

    def _spread(self, values: np.ndarray) -> np.ndarray:
        """From the texts that are left to the rows: nan where there is none."""
        whole = np.full(len(self.texts) + 1, np.nan)  # the last is for the code -1
        whole[:-1][~self.gone] = values
        return whole[self.codes]

    def _plain_numbers(self) -> np.ndarray:
        left = self._left()
        numbers = pd.to_numeric(left, errors="coerce").to_numpy(float)
        return np.where(left.str.contains("_", regex=False), np.nan, numbers)

    # -- what they are -----------------------------------------------------------------------------

    def _mixed(self, wrong: np.ndarray) -> Typed:
        """Texts some of which are no plain numbers."""
        left = self._left()
        some = left.iloc[:: max(1, len(left) // SAMPLE)]
        kinds = Counter(map(kind_of_text, some))
        most, n = kinds.most_common(1)[0]
        figures = len(some) - kinds["word"]
        if figures == len(some) or figures > len(some) / 2 and most != "word":
            read = {"number": self._figures, "date": self._dates, "duration": self._spans}[most]
            return read(None)
        if wrong.all() or (~wrong).mean() <= STRAY:
            if not wrong.all():
                stray = left[~wrong].iloc[0]
                self.notes.append(f"{stray!r} in row {self._row(~wrong)} looks like a number among words")
            return self._words(None)
        row, cell = self._row(wrong), left[wrong].iloc[0]
        return self._unclear(f"holds numbers, but {cell!r} in row {row} (counting from 0)", "correct that cell")

    def _asked(self, asked: ColumnType) -> Typed:
        if asked.kind == "date":
            return self._dates(asked)
        return self._spans(asked) if asked.kind == "duration" else self._figures(asked)

    def _figures(self, asked: ColumnType | None) -> Typed:
        left = self._left()
        own = decimal_mark(left)
        mark = MARKS.get(asked.form, "") if asked is not None else ""
        mark = mark or (own if own in (",", ".") else "")
        if not mark and own == "?":
            return self._unclear("has cells with a comma as the decimal mark, and others with a point", "correct them")
        if not mark and not self.mark:
            cell = left[left.str.contains(",", regex=False)].iloc[0]
            return self._unclear(
                f"has {cell!r}, which may be {read_numbers(pd.Series([cell]), '.').values[0]:g} or "
                f"{read_numbers(pd.Series([cell]), ',').values[0]:g}",
                f"say which with types={self.name}=real:point (a point is the decimal mark) or real:comma (--types)",
            )
        mark = mark or self.mark
        found = read_numbers(left, mark)
        wrong = np.isnan(found.values)
        if wrong.any():
            row, cell = self._row(wrong), left[wrong].iloc[0]
            return self._unclear(f"holds numbers, but {cell!r} in row {row} (counting from 0)", "correct that cell")
        form = next(word for word, m in MARKS.items() if m == mark)
        made = _blank(self.name, asked)
        if asked is not None and asked.unit and found.unit not in ("", asked.unit):
            self.notes.append(f"is in {found.unit}, and was in {asked.unit}")
        marked = bool(left.str.contains("[.,]").any())
        return self._numbers(found.values, replace(made, unit=made.unit or found.unit, form=form if marked else ""))

    def _dates(self, asked: ColumnType | None) -> Typed:
        left = self._left()
        forms = [asked.form] if asked is not None and asked.form else date_formats(left)
        if len(forms) > 1:
            return self._unclear(
                f"has {left.iloc[0]!r}, a date in more than one way ({', '.join(forms)})",
                f"say which with types={self.name}=date:{forms[0]} (--types)",
            )
        found = read_dates(left, forms[0]) if forms else None
        if found is None or found.isna().any():
            wrong = found.isna().to_numpy() if found is not None else np.array([kind_of_text(t) != "date" for t in left])
            at = wrong if wrong.any() else np.ones(len(left), bool)
            return self._unclear(
                f"holds dates, but {left[at].iloc[0]!r} in row {self._row(at)} (counting from 0) is none of their form",
                f"write all of them in one form, or say it with types={self.name}=date:%Y-%m-%d (--types)",
            )
        if "%I" in forms[0] and "%d" not in forms[0]:
            seconds = (found - found.dt.normalize()).dt.total_seconds().to_numpy(float)
            made = replace(_blank(self.name, asked), kind="duration", unit="seconds", form=forms[0])
            return self._numbers(seconds, made)
        rows = self._spread(((found - _EPOCH) / pd.Timedelta(1, "D")).to_numpy(float))
        return _of_days(self.name, rows, asked, forms[0], self._notes())

    def _spans(self, asked: ColumnType | None) -> Typed:
        left = self._left()
        if (forms := date_formats(left)) and "%I" in forms[0]:
            return self._dates(asked)
        seconds = read_spans(left)
        wrong = np.isnan(seconds)
        if wrong.any():
            cell = left[wrong].iloc[0]
            return self._unclear(f"holds lengths of time, but {cell!r} in row {self._row(wrong)}", "correct that cell")
        return self._numbers(seconds, replace(_blank(self.name, asked), kind="duration", unit="seconds"))

    def _numbers(self, values: np.ndarray, made: ColumnType) -> Typed:
        rows = self._spread(values)
        whole = not np.isnan(rows).any() and bool((rows == np.round(rows)).all()) and made.kind != "duration"
        whole = whole and bool((np.abs(rows) < 2**53).all()) and not bool(self._left().str.contains("[.eE]").any())
        numbers = rows.astype(np.int64) if whole else _default_float(rows)
        return _of_numbers(self.name, numbers, made, self._notes())

    def _notes(self) -> list[str]:
        words = sorted({w for w in self.texts[self.gone] if w})
        shown = [f"{w!r} is taken as a missing cell" for w in words]
        return [*self.notes, *shown[:SHOWN]]

    def _words(self, asked: ColumnType | None) -> Typed:
        return _of_words(self, asked)

    def _unclear(self, what: str, remedy: str) -> Typed:
        return _unclear(self.name, what, f"{remedy}, make it words with types={self.name}=categorical (--types), or "
                        "leave the column out with columns=")  # fmt: skip


def _unclear(name: str, what: str, remedy: str) -> Typed:
    return Typed(ColumnType(name, "unclear", why=f"the column {name!r} {what}; {remedy}"), None)


def _of_words(text: _Text, asked: ColumnType | None) -> Typed:
    left = text._left()
    levels, kind, why = _levels(left, text, asked)
    place = {word: code for code, word in enumerate(levels)}
    rows = text._spread(left.map(place).to_numpy(float))
    folded = Counter(word.casefold() for word in levels)
    notes = text._notes()
    for word in [w for w in levels if folded[w.casefold()] > 1][:1]:
        others = [w for w in levels if w.casefold() == word.casefold()]
        notes.append(f"{others[0]!r} and {others[1]!r} differ by capitals alone")
    made = ColumnType(text.name, kind, levels, why=why, notes=tuple(notes))
    return Typed(made, _coded(np.where(np.isnan(rows), -1, rows).astype(np.int64)))


def _levels(left: pd.Series, text: _Text, asked: ColumnType | None) -> tuple[tuple[str, ...], str, str]:
    """The words in order, the kind, and why."""
    words = _sorted(pd.unique(left))
    if asked is not None:
        rest = [word for word in words if word not in asked.levels]
        kind = "categorical" if asked.kind in NUMERIC else asked.kind
        if rest and asked.levels and (near := nearest(rest[0], asked.levels)):
            text.notes.append(f"{rest[0]!r} is a word of no level{near}")
        return (*asked.levels, *rest), kind, asked.why or "as the run keeps it"
    if len(words) <= SAMPLE and (known := known_order(words)) is not None:
        ordered, calendar = known
        kind = "binary" if len(words) == 2 else "categorical" if calendar else "ordered"
        return ordered, kind, f"its words are of the scale {' < '.join(ordered)}"
    if len(words) == 2:
        return words, "binary", "two words"
    rows = len(text.codes)
    if rows >= FEW_ROWS and len(words) > rows / 2:
        return words, "text", f"{len(words)} words in {rows} rows: hardly one repeats"
    length = left.str.len().mean()
    if length > LONG:
        return words, "text", f"{length:.0f} characters a row: sentences"
    return words, "categorical", f"{len(words)} word{'s' if len(words) > 1 else ''} in {rows} rows"


def _sorted(words: Sequence[str]) -> tuple[str, ...]:
    """In the order of their characters; numbers, where all are numbers, in theirs."""
    numbers = pd.to_numeric(pd.Series(words, dtype="str"), errors="coerce")
    if len(words) and numbers.notna().all() and numbers.nunique() == len(words):
        return tuple(words[i] for i in np.argsort(numbers.to_numpy(), kind="stable"))
    return tuple(sorted(words))


def _coded(codes: np.ndarray) -> np.ndarray:
    """Codes; as floats with nan where a cell is missing."""
    return _default_float(np.where(codes < 0, np.nan, codes)) if (codes < 0).any() else codes


# -- numbers and days ------------------------------------------------------------------------------


def _of_dates(name: str, dates: pd.Series, asked: ColumnType | None, form: str) -> Typed:
    days = ((dates - _EPOCH) / pd.Timedelta(1, "D")).to_numpy(float)
    return _of_days(name, days, asked, form, [])


def _of_days(name: str, days: np.ndarray, asked: ColumnType | None, form: str, notes: list[str]) -> Typed:
    """Days since the epoch -> days since the first, or since the day of the type that was asked for."""
    kept = asked.unit.rpartition(" since ")[2] if asked is not None and asked.unit else ""
    first = pd.Timestamp(kept) if kept else (_EPOCH + pd.Timedelta(float(np.floor(np.nanmin(days))), "D"))
    since = days - (first - _EPOCH) / pd.Timedelta(1, "D")
    whole = bool(np.all(np.isnan(since) | (since == np.round(since))))
    made = ColumnType(
        name, "date", unit=f"days since {first:%Y-%m-%d}", form=form, low=_end(np.nanmin, since),
        high=_end(np.nanmax, since), why=f"dates of the form {form}", notes=tuple(notes),
    )  # fmt: skip
    return Typed(made, _default_float(since) if whole else since)


def _end(of: Any, values: np.ndarray) -> float | None:
    return None if np.isnan(values).all() else float(of(values))


def _of_numbers(name: str, values: np.ndarray, asked: ColumnType | None, notes: Sequence[str] = ()) -> Typed:
    found = describe_numbers(name, values)
    made = found if asked is None else replace(
        asked, name=name, low=found.low, high=found.high, notes=found.notes,
        kind=found.kind if asked.kind == "real" and not asked.why else asked.kind,
        why=asked.why or found.why,
    )  # fmt: skip
    if asked is not None and asked.kind == "duration":
        made = replace(made, why=asked.why or "lengths of time, in seconds")
    elif asked is not None and asked.unit and not asked.why:
        made = replace(made, why=f"{found.why}, written with {asked.unit}")
    return Typed(replace(made, notes=(*notes, *made.notes)), values)
