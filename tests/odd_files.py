"""Every combination of what pandas can write into a text file, and what each of its columns was."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
MARKS = {"point": ".", "decimal comma": ","}
QUOTES = {"quotes where needed": csv.QUOTE_MINIMAL, "all quoted": csv.QUOTE_ALL, "words quoted": csv.QUOTE_NONNUMERIC}
ENCODINGS = {"UTF-8": "utf-8", "UTF-8 with BOM": "utf-8-sig", "UTF-16": "utf-16", "Latin-1": "latin-1"}
INDEX = {"no index": False, "index": True}
HEADER = {"header": True, "no header": False}
GAPS = {"blank": "", "NA": "NA", "?": "?", "null": "null", "-": "-", "None": "None"}
DATES = {"2024-01-31": "%Y-%m-%d", "31.01.2024": "%d.%m.%Y", "01/31/2024": "%m/%d/%Y", "31 Jan 2024": "%d %b %Y",
         "2024-01-31T10:30:00": "%Y-%m-%dT%H:%M:%S", "20240131": "%Y%m%d"}  # fmt: skip
DIGITS = {"all digits": None, "three digits": "%.3f", "exponents": "%.5e"}

_DAYS = pd.date_range("2024-01-05", periods=14, freq="9D")
TABLE = pd.DataFrame(
    {
        "x": [1.25, -0.5, np.nan, 1234.125, 12.75, 0.125, -7.5, 100.0, 3.0, 2.5, 88.875, 0.75, 5.5, 6.25],
        "n": [0, 3, 7, 1200, 5, 5, 2, 1, 0, 9, 12, 4, 8, 30],
        "town": [
            "Köln",
            "Ulm",
            None,
            "Bonn",
            "Ulm",
            "Köln",
            "Bonn",
            "Ulm",
            "a, b",
            "Ulm",
            "Köln",
            "Bonn",
            "Ulm",
            "Bonn",
        ],
        "flag": [True, False] * 7,
        "day": _DAYS,
    }
)


class OddFile(NamedTuple):
    """What a file is like, by the dictionaries above, and its bytes."""

    traits: tuple[str, ...]
    content: bytes

    @property
    def name(self) -> str:
        return ", ".join(self.traits)


def odd_files() -> Iterator[OddFile]:
    """All of separator x mark x quoting x encoding, and all of index x header x gap x date, the others going round."""
    others = _round(INDEX, GAPS, DATES, DIGITS)
    for how in itertools.product(SEPARATORS, MARKS, QUOTES, ENCODINGS):
        index, gap, date, digits = next(others)
        yield _written(*how, index, "header", gap, date, digits)
    others = _round(SEPARATORS, MARKS, QUOTES, DIGITS)
    for index, header, gap, date in itertools.product(INDEX, HEADER, GAPS, DATES):
        separator, mark, quotes, digits = next(others)
        yield _written(separator, mark, quotes, "UTF-8", index, header, gap, date, digits)


def _round(*traits: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Their combinations without end, in an order that goes along with no other."""
    return itertools.islice(itertools.cycle(itertools.product(*traits)), 0, None, 7)


def _written(
    separator: str, mark: str, quotes: str, encoding: str, index: str, header: str, gap: str, date: str, digits: str
) -> OddFile:
    text = TABLE.to_csv(
        sep=SEPARATORS[separator], decimal=MARKS[mark], quoting=QUOTES[quotes], index=INDEX[index],
        header=HEADER[header], na_rep=GAPS[gap], date_format=DATES[date], float_format=DIGITS[digits],
    )  # fmt: skip
    return OddFile(
        (separator, mark, quotes, encoding, index, header, gap, date, digits), text.encode(ENCODINGS[encoding])
    )


def is_right(name: str, column: Any, own: Any) -> bool:
    """Whether a column that was read is that of `TABLE`."""
    truth = TABLE[name]
    values = np.asarray(column, dtype=float)
    if name == "town":
        said = any("'None' is taken as a word" in note for note in own.notes)
        words = [None if np.isnan(v) else own.levels[int(v)] for v in values]
        words = [None if said and word == "None" else word for word in words]
        return words == [None if pd.isna(t) else t for t in truth]
    if name == "day":
        if own.kind != "date":
            return values.astype(int).tolist() == [int(f"{t:%Y%m%d}") for t in truth] and bool(own.notes)
        first = pd.Timestamp(own.unit.rpartition(" since ")[2])
        return [(t - first).days for t in truth] == np.floor(values).tolist()
    return np.allclose(values, truth.astype(float), rtol=1e-5, equal_nan=True)
