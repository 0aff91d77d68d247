"""Text that is plainly a number, an amount, a date or a length of time -> numbers, by stated rules.

Numbers: a sign (also the typographic one), a currency, %, brackets for a minus, blanks between thousands. Of commas and
points the last is the decimal mark where both stand in a cell; where only one does, what the other cells of the column,
then of the table, can be: `decimal_mark` says what a column's cells admit.

Dates: one format for the whole column. Day and month that could be either way round are not guessed.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pandas as pd

MISSING = frozenset(
    ["", "?", "NA", "N/A", "n/a", "na", "N.A.", "n.a.", "#N/A", "<NA>", "NaN", "nan", "-nan", "-NaN", "NULL", "null",
     "NaT", ".", "-", "--", "\u2013", "\u2014", "#NA", "#N/A N/A", "#NULL!", "#VALUE!", "#DIV/0!", "1.#IND", "1.#QNAN"]
)  # fmt: skip
AMBIGUOUS = frozenset(["None", "none", "NONE"])  # missing among numbers, a word among words
SAMPLE = 300  # texts that are looked at one by one, before all are

_SIGN = "[+\\-\u2212]?"
_MONEY = r"([a-z]{0,2}\$|kr\.?|sek|nok|dkk|[\u20ac\u00a3\u00a5\u20b9]|usd|eur|gbp|chf|jpy|cny|inr|aud|cad)"
_BLANKS = " '_\u00a0\u2009\u202f"
_DIGITS = (
    rf"(\d+([.,]\d+)*[.,]?|[.,]\d+|\d{{1,3}}([{_BLANKS}]\d{{3}})+([.,]\d+)?)"
    r"([eE][+\-]?\d+|\s?[\u00d7x*]\s?10\^[+\-]?\d+)?"
)
_NUMBER = rf"\(?{_SIGN}\s*{_MONEY}?\s*{_SIGN}{_DIGITS}\s*({_MONEY}|%|\u2030)?\)?"
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_YEAR_MONTH = (
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?|"
    r"dec(ember)?)[ \-,.]+[12]\d{3}"
)
_WEEKDAY = r"((mon|tues?|wed(nes)?|thu(rs?)?|fri|sat(ur)?|sun)(day)?[., ]+)?"
_CLOCK = r"\d+:\d{2}(:\d{2}([.,]\d+)?)?\s*([ap]\.?m\.?)?(\s*(z|[+\-]\d{2}:?\d{2}))?"
_NAMED = rf"\d{{1,2}}[-/ ]{_MONTH}[-/ ,]+\d{{2,4}}|{_MONTH}\s+\d{{1,2}},?\s+\d{{4}}"
_DAY = rf"(\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}|[12]\d{{3}}[-/](0[1-9]|1[0-2])|{_YEAR_MONTH}|{_WEEKDAY}({_NAMED}))"
_SPAN = rf"-?\d+ days?,?\s*([+\-]?{_CLOCK})?"
_IS_NUMBER, _IS_DATE, _IS_SPAN = (
    re.compile(rf"\s*({p})\s*", re.IGNORECASE) for p in (_NUMBER, rf"{_DAY}([T ]+{_CLOCK})?", rf"{_CLOCK}|{_SPAN}")
)
_IS_ISO = re.compile(r"\d{4}-\d{2}(-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?\s?(Z|[+\-]\d{2}:?\d{2})?)?)?")

_DAYS = (
    "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d.%m.%y", "%d/%m/%y",
    "%m/%d/%y", "%d-%m-%y", "%m-%d-%y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%d/%b/%Y", "%b %d, %Y",
    "%B %d, %Y", "%b %d %Y", "%B %d %Y", "%b %Y", "%B %Y", "%b-%Y", "%B-%Y", "%Y/%m", "%a %d %b %Y", "%A, %d %b %Y",
    "%a, %d %b %Y", "%A, %d %B %Y", "%A %d %B %Y", "%Y-%m-%d",
)  # fmt: skip
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", "T%H:%M:%S", " %I:%M%p")
_TIMES = ("%I:%M %p", "%I:%M:%S %p", "%I:%M%p")


def kind_of_text(text: str) -> str:
    """``"number"``, ``"date"``, ``"duration"`` for what is plainly one, in whatever spelling; else ``"word"``.

    >>> [kind_of_text(t) for t in ("1,234", "1,5", "$5", "CHF 5", "10%", "2024-01", "00:10:00", "3 Jan 2024")]
    ['number', 'number', 'number', 'number', 'number', 'date', 'duration', 'date']
    >>> {kind_of_text(t) for t in ("oak", "Q1", "18-25", "A-2", "1st", "St. Louis", "x1,5")}
    {'word'}
    """
    if _IS_DATE.fullmatch(text):
        return "date"
    if _IS_NUMBER.fullmatch(text):
        return "number"
    return "duration" if _IS_SPAN.fullmatch(text) else "word"


def decimal_mark(texts: pd.Series) -> str:
    """What the decimal mark of these numbers must be: "," or "."; "" where they admit both, "?" where they contradict.

    >>> [decimal_mark(pd.Series(t)) for t in (["1,234", "5,678"], ["1,234", "1,5"], ["1,234.5"], ["1.234,5"])]
    ['', ',', '.', ',']
    """
    bare = texts.str.replace(r"[^\d.,]", "", regex=True)
    comma, point = bare.str.contains(",", regex=False), bare.str.contains(".", regex=False)
    if not bool(comma.any()):
        return "," if bool(bare.str.fullmatch(r"\d{1,3}(\.\d{3}){2,}").any()) else "."
    thousands = bare.str.fullmatch(r"[1-9]\d{0,2}(,\d{3})+(\.\d*)?")
    decimals = bare.str.fullmatch(r"(\d+|\d{1,3}(\.\d{3})+)?,\d*")
    must_be_point = comma & (~decimals | bare.str.contains(r",.*,", regex=True))
    must_be_comma = comma & ~thousands
    must_be_point |= point & ~comma & ~bare.str.fullmatch(r"[1-9]\d{0,2}(\.\d{3})+")
    found = bool(must_be_comma.any()), bool(must_be_point.any())
    return {(True, True): "?", (True, False): ",", (False, True): ".", (False, False): ""}[found]


class Numbers(NamedTuple):
    """Numbers read from texts, nan where a text is none; the unit that stood beside them ("%", "$").

    mixed: whether there are several units, or only some of them are shares ("%").
    """

    values: np.ndarray
    unit: str
    mixed: bool


def read_numbers(texts: pd.Series, mark: str = ".") -> Numbers:
    """The numbers that texts spell, with this decimal mark.

    >>> read_numbers(pd.Series(["$1,234.5", "($7)", "\u22122"])).values.tolist()
    [1234.5, -7.0, -2.0]
    """
    other = "." if mark == "," else ","
    plain = texts.str.strip()
    beside = plain.str.extract(rf"({_MONEY}|%|\u2030)", flags=re.IGNORECASE)[0].str.lower()
    units = sorted(beside.dropna().unique())
    mixed = len(units) > 1 or units in (["%"], ["\u2030"]) and bool(beside.isna().any())
    bare = plain.str.replace(rf"{_MONEY}|%|\u2030", "", regex=True, flags=re.IGNORECASE).str.strip()
    bare = bare.str.replace("\u2212", "-", regex=False).str.replace(r"^\((.*)\)$", r"-\1", regex=True)
    bare = bare.str.replace(r"\s?[\u00d7x*]\s?10\^", "e", regex=True)
    bare = bare.str.replace(rf"(?<=\d)[{_BLANKS}](?=\d{{3}})", "", regex=True)
    bare = bare.str.replace(r"^([+\-]) ", r"\1", regex=True)
    grouped = bare.str.contains(other, regex=False)
    wrong = grouped & ~bare.str.fullmatch(rf"[+\-]?\d{{1,3}}(\{other}\d{{3}})+(\{mark}\d*)?(e[+\-]?\d+)?")
    bare = bare.str.replace(other, "", regex=False)
    bare = bare.str.replace(mark, ".", regex=False) if mark != "." else bare
    values = pd.to_numeric(bare, errors="coerce").to_numpy(float)
    values = np.where(wrong, np.nan, values)
    return Numbers(values, "; ".join(units), mixed)


def date_formats(texts: pd.Series) -> list[str]:
    """The formats in which every one of these texts is a date, those that give other days apart.

    >>> date_formats(pd.Series(["31.12.2023", "01.02.2024"])), date_formats(pd.Series(["01/02/2024"]))
    (['%d.%m.%Y'], ['%d/%m/%Y', '%m/%d/%Y'])
    """
    some = texts.iloc[:: max(1, len(texts) // SAMPLE)]
    if all(_IS_ISO.fullmatch(t) for t in some):
        return ["ISO8601"] if read_dates(texts, "ISO8601").notna().all() else []
    found: dict[tuple[int, ...], str] = {}
    for form in (*(day + clock for day in _DAYS for clock in _CLOCKS), *_TIMES):
        if _fits(some, form):
            days = read_dates(texts, form)
            if days.notna().all():
                found.setdefault(tuple(days.astype("int64").iloc[:SAMPLE]), form)
    return list(found.values())


def _fits(some: pd.Series, form: str) -> bool:
    try:
        datetime.strptime(some.iloc[0], form)
    except ValueError:
        return False
    return bool(read_dates(some, form).notna().all())


def read_dates(texts: pd.Series, form: str) -> pd.Series:
    """Dates in UTC, without it in the texts as they stand; NaT where a text is none."""
    found = pd.to_datetime(texts, format=form, errors="coerce", utc=True)
    return found.dt.tz_localize(None)


def read_spans(texts: pd.Series) -> np.ndarray:
    """Lengths of time ("3 days", "10:30", "1 days 02:00:00") in seconds; nan where a text is none."""
    bare = texts.str.replace(",", ".", regex=False)
    bare = bare.str.replace(r"^(\d+:\d{2})$", r"\1:00", regex=True)
    return pd.to_timedelta(bare, errors="coerce").dt.total_seconds().to_numpy(float)
