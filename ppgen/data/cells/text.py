"""Columns of text: numbers, dates or lengths of time where all of it is, else words and their levels."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd

from ppgen.data.cells import figures
from ppgen.data.cells.scales import known_order
from ppgen.data.cells.typed import Typed, blank, coded, days_of, default_float, of_days, of_numbers
from ppgen.data.cells.types import ASKED, MARKS, NUMERIC, ColumnType
from ppgen.data.cells.word_notes import word_notes
from ppgen.errors import nearest

FEW_ROWS = 20  # from which on words that hardly repeat are the text of single rows
LONG = 40.0  # characters of a word on average, above which they are sentences
STRAY = 0.1  # of the words of a column, so many may look like numbers
SHOWN = 3
MOST_COMPARED = 1000  # words of a column that are held against each other
WORDS = ("categorical", "ordered", "text")
CENSORED = {"right", "left", "interval", "event"}  # beside which "none" is the word that it should be
DIGITS = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d"}  # forms of days that are asked for, by the number of digits
BEGINS = re.compile(r"(\d+)(?![\d.,:/])")  # a word's number: of "18-25", "65+", "3 - good"


class TextColumn:
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
        self.gone = gone.to_numpy(bool, copy=True)
        self.notes: list[str] = []

    def read(self) -> Typed:
        asked = self.asked
        if asked is not None and (asked.levels or asked.kind in (*WORDS, "binary")):
            return self._words(asked)
        if not len(self._left()):
            return Typed(replace(blank(self.name, asked), why="no cell has a value"), self._spread(np.array([])))
        none = self._left().isin(figures.AMBIGUOUS).to_numpy(bool)
        if none.any() and (asked is not None or "word" not in self._kinds(self._left()[~none])):
            self._lose(none)
        if asked is not None:
            return self._asked(asked)
        numbers = self._plain_numbers()
        wrong = np.isnan(numbers)
        zeros = self._left().str.fullmatch(r"[+\-]?0\d+").to_numpy(bool)
        if not wrong.any() and figures.are_thousands(self._left()) and self.mark != ".":
            return self._figures(None)
        if not wrong.any() and not zeros.any():
            return self._numbers(numbers, ColumnType(self.name, "real"), plain=True)
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
        some = pd.to_numeric(left.iloc[:: max(1, len(left) // figures.SAMPLE)], errors="coerce")
        if bool(some.isna().all()):
            return np.full(len(left), np.nan)
        numbers = pd.to_numeric(left, errors="coerce").to_numpy(float)
        return np.where(left.str.contains("_", regex=False), np.nan, numbers)

    # -- what they are -----------------------------------------------------------------------------

    def _mixed(self, wrong: np.ndarray) -> Typed:
        """Texts some of which are no plain numbers."""
        left = self._left()
        kinds = self._kinds(left)
        most, some = kinds.most_common(1)[0][0], kinds.total()
        in_figures = some - kinds["word"]
        if in_figures == some or in_figures > some / 2 and most != "word":
            read = {"number": self._figures, "date": self._dates, "duration": self._spans}[most]
            return read(None)
        if wrong.all() or (~wrong).mean() <= STRAY:
            if not wrong.all():
                stray = left[~wrong].iloc[0]
                self.notes.append(f"{stray!r} in row {self._row(~wrong)} looks like a number among words")
            return self._words(None)
        row, cell = self._row(wrong), left[wrong].iloc[0]
        return self._unclear(f"holds numbers, but {cell!r} in row {row} (counting from 0)", "correct that cell")

    def _kinds(self, texts: pd.Series) -> Counter[str]:
        """Of some of these texts, what each plainly is."""
        some = texts.iloc[:: max(1, len(texts) // figures.SAMPLE)]
        return Counter(map(figures.kind_of_text, some)) or Counter(["word"])

    def _asked(self, asked: ColumnType) -> Typed:
        if asked.kind == "date":
            return self._dates(asked)
        return self._spans(asked) if asked.kind == "duration" else self._figures(asked)

    def _figures(self, asked: ColumnType | None) -> Typed:
        left = self._left()
        mark: str | Typed = MARKS.get(asked.form, "") if asked is not None else ""
        if not mark or self.mark and asked is not None and asked.why != ASKED and figures.are_thousands(left):
            mark = self._own_mark(left)
        if isinstance(mark, Typed):
            return mark
        found = figures.read_numbers(left, mark)
        wrong = np.isnan(found.values)
        if wrong.any():
            row, cell = self._row(wrong), left[wrong].iloc[0]
            said = asked is not None and asked.why == ASKED
            there = f"is said to hold numbers, but has {cell!r}" if said else f"holds numbers, but {cell!r}"
            return self._unclear(f"{there} in row {row} (counting from 0)", "correct that cell")
        if found.mixed:
            units = found.unit if ";" in found.unit else f"{found.unit}, and none"
            return self._unclear(f"has cells in different units ({units})", "write all of them in one unit")
        form = next(word for word, m in MARKS.items() if m == mark)
        made = blank(self.name, asked)
        if asked is not None and asked.unit and found.unit not in ("", asked.unit):
            self.notes.append(f"is in {found.unit}, and was in {asked.unit}")
        if found.factor:
            value = figures.read_numbers(pd.Series([found.factor]), mark).values[0]
            self.notes.append(f"{found.factor!r} is read as {value:.12g} ({self.name}=categorical: words)")
        marked = bool(left.str.contains("[.,]").any())
        marked = marked and not (asked is None and mark == "." and figures.are_thousands(left))  # a later file may tell
        return self._numbers(found.values, replace(made, unit=made.unit or found.unit, form=form if marked else ""))

    def _own_mark(self, left: pd.Series) -> str | Typed:
        """The decimal mark of these texts, by the table's where they admit both; or what is unclear about it."""
        own = figures.decimal_mark(left)
        if own == "?":
            return self._unclear("has cells with a comma as the decimal mark, and others with a point", "correct them")
        thousands = own == "." and figures.are_thousands(left)
        if own and not (thousands and self.mark != "."):
            return own
        if not own and not self.mark:
            cell = left[left.str.contains(",", regex=False)].iloc[0]
            return self._unclear(
                f"has {cell!r}, which may be {figures.read_numbers(pd.Series([cell]), '.').values[0]:g} or "
                f"{figures.read_numbers(pd.Series([cell]), ',').values[0]:g}",
                f"say which with types={self.name}=real:point (a point is the decimal mark) or real:comma (--types)",
            )
        mark = self.mark or "."
        cell = left[left.str.contains("[.,]")].iloc[0]
        value = figures.read_numbers(pd.Series([cell]), mark).values[0]
        other = next(word for word, m in MARKS.items() if m != mark)
        by = "by the decimal mark of the table" if self.mark else "with a point as the decimal mark"
        self.notes.append(f"{cell!r} is read as {value:g}, {by} ({self.name}=real:{other} otherwise)")
        return mark

    def _dates(self, asked: ColumnType | None) -> Typed:
        left = self._left()
        forms = [asked.form] if asked is not None and asked.form else figures.date_formats(left)
        if not forms and asked is not None and asked.why == ASKED:
            forms = [form for digits, form in DIGITS.items() if bool(left.str.fullmatch(rf"\d{{{digits}}}").all())]
        if len(forms) > 1:
            return self._unclear(
                f"has {left.iloc[0]!r}, a date in more than one way ({', '.join(forms)})",
                f"say which with types={self.name}=date:{forms[0]} (--types)",
            )
        found = figures.read_dates(left, forms[0] if forms else figures.usual_form(left))
        if not forms or found.isna().any():
            example = (
                pd.Timestamp("2024-01-31").strftime(forms[0] if forms[0] != "ISO8601" else "%Y-%m-%d") if forms else ""
            )
            at = found.isna().to_numpy() if bool(found.isna().any()) else np.ones(len(left), bool)
            return self._unclear(
                f"holds dates, but {left[at].iloc[0]!r} in row {self._row(at)} (counting from 0) is none of their form",
                f"write all of them as {example}" if forms else "write all of them in one form",
                f", or say it with types={self.name}=date:%Y-%m-%d (--types)",
            )
        if "%I" in forms[0] and "%d" not in forms[0]:
            seconds = (found - found.dt.normalize()).dt.total_seconds().to_numpy(float)
            made = replace(blank(self.name, asked), kind="duration", unit="seconds", form=forms[0])
            return self._numbers(seconds, made)
        clocks = left[left.str.contains(":")]
        zoned = clocks.str.contains(r":\d{2}\S*\s?(?:Z|[+\-]\d{2}:?\d{2})$")
        if bool(zoned.any()) and not bool(zoned.all()):
            self.notes.append(
                f"{clocks[~zoned].iloc[0]!r} has no time zone, as {clocks[zoned].iloc[0]!r} has, and is taken as UTC"
            )
        rows = self._spread(days_of(found))
        return of_days(self.name, rows, asked, forms[0], self._notes())

    def _spans(self, asked: ColumnType | None) -> Typed:
        left = self._left()
        if (forms := figures.date_formats(left)) and "%I" in forms[0]:
            return self._dates(asked)
        seconds = figures.read_spans(left)
        wrong = np.isnan(seconds)
        if wrong.any():
            cell = left[wrong].iloc[0]
            return self._unclear(f"holds lengths of time, but {cell!r} in row {self._row(wrong)}", "correct that cell")
        return self._numbers(seconds, replace(blank(self.name, asked), kind="duration", unit="seconds"))

    def _numbers(self, values: np.ndarray, made: ColumnType, *, plain: bool = False) -> Typed:
        """
        Args:
            plain: whether whole numbers are int64: amounts, shares and lengths of time are floats.
        """
        rows = self._spread(values)
        whole = plain and not np.isnan(rows).any() and bool((rows == np.round(rows)).all())
        whole = whole and bool((np.abs(rows) < 2**53).all()) and not bool(self._left().str.contains("[.eE]").any())
        numbers = rows.astype(np.int64) if whole else default_float(rows)
        return of_numbers(self.name, numbers, made, self._notes())

    def _notes(self) -> list[str]:
        words = sorted({w for w in self.texts[self.gone] if w})
        shown = [f"{w!r} is taken as a missing cell" for w in words]
        return [*self.notes, *shown[:SHOWN]]

    def _words(self, asked: ColumnType | None) -> Typed:
        return _of_words(self, asked)

    def _unclear(self, what: str, remedy: str, say: str = "") -> Typed:
        """
        Args:
            remedy: in the table.
            say: or by a type that is asked for, where the column has none of a fit.
        """
        if self.asked is not None and self.asked.why != ASKED:
            there = {"date": "dates", "duration": "lengths of time"}.get(self.asked.kind, "numbers")
            return unclear(self.name, what, f"{remedy}: the column was {there} at the fit")
        words = f"make it words with types={self.name}=categorical (--types)"
        return unclear(self.name, what, f"{remedy}{say}, {words}, or leave the column out with columns=")


def unclear(name: str, what: str, remedy: str) -> Typed:
    return Typed(ColumnType(name, "unclear", why=f"the column {name!r} {what}; {remedy}"), None)


def _of_words(text: TextColumn, asked: ColumnType | None) -> Typed:
    left = text._left()
    levels, kind, why = _levels(left, text, asked)
    rows = text._spread(pd.Index(levels, dtype="str").get_indexer(left).astype(float))
    notes = text._notes()
    others = set(levels) - figures.AMBIGUOUS
    if (none := figures.AMBIGUOUS & set(levels)) and not others <= CENSORED and " < " not in why:
        notes.append(f"{min(none)!r} is taken as a word; write NA where it means that there is no value")
    notes += word_notes(levels, rows) if len(levels) <= MOST_COMPARED and not notes else []
    made = ColumnType(text.name, kind, levels, why=why, notes=tuple(notes))
    return Typed(made, coded(np.where(np.isnan(rows), -1, rows).astype(np.int64)))


def _levels(left: pd.Series, text: TextColumn, asked: ColumnType | None) -> tuple[tuple[str, ...], str, str]:
    """The words in order, the kind, and why."""
    words = _sorted(left.to_numpy(object) if left.is_unique else np.asarray(pd.unique(left), dtype=object))
    if asked is not None:
        rest = [word for word in words if word not in asked.levels]
        kind = "categorical" if asked.kind in NUMERIC else asked.kind
        if rest and asked.levels and (near := nearest(rest[0], asked.levels)):
            text.notes.append(f"{rest[0]!r} is a word of no level{near}")
        return (*asked.levels, *rest), kind, asked.why or "as the run keeps it"
    if len(words) <= figures.SAMPLE and (known := known_order(words)) is not None:
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


def _sorted(words: np.ndarray) -> tuple[str, ...]:
    """In the order of their characters; numbers, where all are or begin with numbers, in theirs ("9-17" < "18-25")."""
    begin = {w: m for w in words[: figures.SAMPLE] if (m := BEGINS.match(w))}
    if 0 < len(words) == len(begin):
        return tuple(sorted(words.tolist(), key=lambda w: (float(begin[w][1]), w)))
    some = pd.to_numeric(pd.Series(words[: figures.SAMPLE], dtype="str"), errors="coerce")
    if not len(words) or some.isna().any():
        return tuple(sorted(words.tolist()))
    numbers = pd.to_numeric(pd.Series(words, dtype="str"), errors="coerce")
    if numbers.notna().all() and numbers.nunique() == len(words):
        return tuple(words[i] for i in np.argsort(numbers.to_numpy(), kind="stable"))
    return tuple(sorted(words.tolist()))
