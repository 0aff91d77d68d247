"""Text that is plainly a number, an amount, a date or a length of time -> numbers, by stated rules.

Numbers: a sign (also the typographic ones), a currency, %, a unit of measure, a factor (k, M), brackets for a minus,
blanks between thousands, lakhs. Of commas and points the last is the decimal mark where both stand in a cell; where
only one does, what the other cells of the column, then of the table, can be: `decimal_mark` says what its cells admit.

Dates: one format for the whole column. Day and month that could be either way round are not guessed.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pandas as pd

from ppgen.errors import PpgenError

MISSING = frozenset(
    ["", "?", "NA", "N/A", "n/a", "na", "N.A.", "n.a.", "#N/A", "<NA>", "NaN", "nan", "-nan", "-NaN", "NULL", "null",
     "NaT", ".", "-", "--", "\u2013", "\u2014", "#NA", "#N/A N/A", "#NULL!", "#VALUE!", "#DIV/0!", "#REF!", "#NUM!",
     "#NAME?", "1.#IND", "1.#QNAN"]
)  # fmt: skip
AMBIGUOUS = frozenset(["None", "none", "NONE"])  # missing among numbers, a word among words
SAMPLE = 300  # texts that are looked at one by one, before all are

_SIGN = "[+\\-\u2212\u2013]?"
_MONEY = (
    r"([a-z]{0,2}\$|kr\.?|(?<![a-z])rs(?![a-z])\.?|z\u0142|k\u010d|sek|nok|dkk|pln|czk|[\u00a3\u00a5\u20a0-\u20cf\u5186\u5143\uc6d0]|usd|eur|gbp|chf|jpy|cny|inr|"
    r"aud|cad)"
)
_BLANKS = " '_\u00a0\u2009\u202f\u2019"
_DIGITS = (
    rf"(\d+([.,]\d+)?[.,]?|[.,]\d+|\d{{1,3}}(,\d{{2,3}})+(\.\d*)?|\d{{1,3}}(\.\d{{3}})+(,\d*)?"
    rf"|\d{{1,3}}([{_BLANKS}]\d{{3}})+([.,]\d+)?|inf(inity)?)"
    r"([eE][+\-]?\d+|d[+\-]\d+|\s?[\u00d7x*]\s?10\^[+\-]?\d+)?"
)
# Cells with these are numbers; with single capitals (5 A, 3 C) they may be grades or rooms.
_UNIT = (
    r"(?-i:(mm|cm|dm|m|km|mi|ft|in|yd|[m\u00b5\u03bck]?g|lbs?|oz|t|[mcd]?l|m[L]|months?|mos?|yrs?|years?|\u00b0[CF]?|km/h|"
    r"mph|m/s|[kMG]Wh?|k?cal|[kMG]?Hz|ppm|dB|bpm|mmHg|[mkhM]?Pa|px|pts|mg/d?[lL]|mmol/[lL]|k?m\u00b2|m\u00b3|ha))"
)
_FACTOR = r"(?-i:([kKM]|\s*(?:Mio\.?|mn|bn|million|billion)))"
FACTORS = {"k": 1e3, "K": 1e3, "M": 1e6, "Mio": 1e6, "Mio.": 1e6, "mn": 1e6, "million": 1e6, "bn": 1e9, "billion": 1e9}
_AFTER = rf"({_FACTOR}?(\s*{_MONEY})?|%|\u2030|{_UNIT})"
_NUMBER = rf"\(?{_SIGN}\s*{_MONEY}?\s*{_SIGN}{_DIGITS}\s*{_AFTER}\)?"
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_YEAR_MONTH = (
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?|"
    r"dec(ember)?)[ \-,.]+[12]\d{3}"
)
_WEEKDAY = r"((mon|tues?|wed(nes)?|thu(rs?)?|fri|sat(ur)?|sun)(day)?[., ]+)?"
_CLOCK = r"\d+:\d{2}(:\d{2}([.,]\d+)?)?\s*([ap]\.?m\.?)?(\s*(z|[+\-]\d{2}:?\d{2}))?"
_NAMED = rf"\d{{1,2}}[-/ ]{_MONTH}[-/ ,]+\d{{2,4}}|{_MONTH}\s+\d{{1,2}},?\s+\d{{4}}"
_DAY = rf"(\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}|[12]\d{{3}}[-/](0[1-9]|1[0-2])|{_YEAR_MONTH}|{_WEEKDAY}({_NAMED}))"
_TIME = r"(\d+([.,]\d+)?\s?(?-i:d|h|hrs?|hours?|mins?|minutes?|s|secs?|seconds?|ms|weeks?)|\d+\s?h\s?\d+\s?m(in)?)"
_SPAN = rf"-?\d+ days?,?\s*([+\-]?{_CLOCK})?|-?{_TIME}"
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
    bare = texts.str.replace(r"[eE][+\-]?\d+|[^\W\d_]+\.", "", regex=True).str.replace(r"[^\d.,]", "", regex=True)
    comma, point = bare.str.contains(",", regex=False), bare.str.contains(".", regex=False)
    if not bool(comma.any()):
        return "," if bool(bare.str.fullmatch(r"\d{1,3}(\.\d{3}){2,}").any()) else "."
    thousands = bare.str.fullmatch(r"[1-9]\d{0,2}(,\d{3})+(\.\d*)?|[1-9]\d?(,\d{2})+,\d{3}(\.\d*)?")
    decimals = bare.str.fullmatch(r"(\d+|\d{1,3}(\.\d{3})+)?,\d*")
    must_be_point = comma & (~decimals | bare.str.contains(r",.*,", regex=True))
    must_be_comma = comma & ~thousands
    must_be_point |= point & ~comma & ~bare.str.fullmatch(r"[1-9]\d{0,2}(\.\d{3})+")
    found = bool(must_be_comma.any()), bool(must_be_point.any())
    return {(True, True): "?", (True, False): ",", (False, True): ".", (False, False): ""}[found]


def are_thousands(texts: pd.Series) -> bool:
    """Whether a point may separate the thousands of all of these numbers, as in 1.234, and of one of them does if so.

    >>> [are_thousands(pd.Series(t)) for t in (["1.234", "12"], ["1.234", "0.5"], ["1.234", "1.2345"], ["12"])]
    [True, False, False, False]
    """
    bare = texts.str.replace(r"[^\W\d_]+\.|[^\d.,eE]", "", regex=True)
    point = bare.str.contains(".", regex=False)
    return bool(point.any()) and bool(bare.str.fullmatch(r"[1-9]\d{0,2}(\.\d{3})+|\d{1,3}").all())


class _Numbers(NamedTuple):
    """Numbers read from texts, nan where a text is none; the unit that stood beside them ("%", "$", "cm").

    mixed: whether there are several units, or only some of them have one that is no currency.
    factor: the first text with a factor ("1.2k"), or "".
    """

    values: np.ndarray
    unit: str
    mixed: bool
    factor: str = ""


def read_numbers(texts: pd.Series, mark: str = ".") -> _Numbers:
    """The numbers that texts spell, with this decimal mark.

    >>> read_numbers(pd.Series(["$1,234.5", "($7)", "\u22122"])).values.tolist()
    [1234.5, -7.0, -2.0]
    """
    other = "." if mark == "," else ","
    bare, units, lacking = _without_unit(texts.str.strip())
    mixed = len({u.lower() for u in units}) > 1 or bool(units) and lacking and not re.fullmatch(_MONEY, units[0], re.I)
    bare, factors = _without_factor(bare)
    bare = bare.str.replace("[\u2212\u2013]", "-", regex=True).str.replace(r"^\((.*)\)$", r"-\1", regex=True)
    bare = bare.str.replace(r"\s?[\u00d7x*]\s?10\^", "e", regex=True)
    bare = bare.str.replace(r"(?<=\d)[dD](?=[+\-]\d+$)", "e", regex=True)
    bare = bare.str.replace(rf"(?<=\d)[{_BLANKS}](?=\d{{3}})", "", regex=True)
    bare = bare.str.replace(r"^([+\-]) ", r"\1", regex=True)
    grouped = bare.str.contains(other, regex=False)
    lakh = r"|[+\-]?\d{1,2}(,\d{2})+,\d{3}(\.\d*)?" if mark == "." else ""
    wrong = grouped & ~bare.str.fullmatch(rf"[+\-]?\d{{1,3}}(\{other}\d{{3}})+(\{mark}\d*)?(e[+\-]?\d+)?{lakh}")
    bare = bare.str.replace(other, "", regex=False)
    bare = bare.str.replace(mark, ".", regex=False) if mark != "." else bare
    values = np.asarray(pd.to_numeric(bare, errors="coerce"), dtype=float) * factors
    with_factor = texts[factors != 1.0]
    return _Numbers(
        np.where(wrong, np.nan, values), "; ".join(units), mixed, with_factor.iloc[0] if len(with_factor) else ""
    )


def _without_unit(plain: pd.Series) -> tuple[pd.Series, list[str], bool]:
    """The texts without what stands beside their numbers, what does, and whether some have nothing beside them."""
    money, after = rf"{_MONEY}|%|\u2030", rf"(?<=[\d.,)])\s*{_UNIT}(?=\)?$)"
    beside = plain.str.extract(rf"({money})", flags=re.IGNORECASE)[0]
    bare = plain.str.replace(money, "", regex=True, flags=re.IGNORECASE).str.strip()
    measured = plain.str.extract(rf"(?:{after})")[0]
    if bool(measured.notna().any()):
        beside = beside.where(beside.notna(), measured)
        bare = bare.str.replace(after, "", regex=True)
    units = {u.lower(): u for u in sorted(beside.dropna().unique(), reverse=True)}
    return bare, sorted(units.values()), bool(beside.isna().any())


def _without_factor(bare: pd.Series) -> tuple[pd.Series, np.ndarray]:
    """The texts without k, M, ..., and what they stand for."""
    found = bare.str.extract(rf"(?<=[\d.,]){_FACTOR}(?=\)?$)")[0]
    if not bool(found.notna().any()):
        return bare, np.ones(len(bare))
    factors = np.array([FACTORS[f.strip()] if isinstance(f, str) else 1.0 for f in found])
    return bare.str.replace(rf"(?<=[\d.,]){_FACTOR}(?=\)?$)", "", regex=True), factors


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


def usual_form(texts: pd.Series) -> str:
    """The format in which most of these texts are dates, where none is that of all."""
    some = texts.iloc[:: max(1, len(texts) // SAMPLE)]
    forms = ["ISO8601", *(day + clock for day in _DAYS for clock in _CLOCKS)]
    return max(forms, key=lambda form: int(read_dates(some, form).notna().sum()))


def _fits(some: pd.Series, form: str) -> bool:
    try:
        datetime.strptime(some.iloc[0], form)
    except ValueError:
        return False
    return bool(read_dates(some, form).notna().all())


def read_dates(texts: pd.Series, form: str) -> pd.Series:
    """Dates in UTC, without it in the texts as they stand; NaT where a text is none."""
    try:
        found = pd.to_datetime(texts, format=form, errors="coerce", utc=True)
    except ValueError as error:  # of the format: texts that do not have it are NaT
        raise PpgenError(f"{form!r} is no format of dates ({error}); write one as %d.%m.%Y or %Y-%m-%d") from error
    return found.dt.tz_localize(None)


def read_spans(texts: pd.Series) -> np.ndarray:
    """Lengths of time ("3 days", "10:30", "1 days 02:00:00") in seconds; nan where a text is none."""
    bare = texts.str.replace(",", ".", regex=False)
    bare = bare.str.replace(r"^(\d+:\d{2})$", r"\1:00", regex=True)
    bare = bare.str.replace(r"(?<=\d)\s?(hrs?|secs?|mins?)$", lambda m: m[1][0] + "in" * (m[1][0] == "m"), regex=True)
    return pd.to_timedelta(bare, errors="coerce").dt.total_seconds().to_numpy(float)
