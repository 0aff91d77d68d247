"""What numbers are of: their kind by range, and what may be wrong with them, in sentences."""

from __future__ import annotations

import re

import numpy as np

from ppgen.data.cells.types import ColumnType

ENOUGH_ROWS = 20  # from which on a row can be told from the others
SQUEEZED = 10.0  # times a column's spread that one row alone makes of it
SOME_ROWS = 500  # that quartiles are taken of
MOST_KINDS = 30  # codes that numbers from 1 may be
STAND_INS = (-9999, -999, -99, -9, 9, 99, 999, 9999, 99999, 999999)  # that people write for a missing cell


def describe_numbers(name: str, values: np.ndarray) -> ColumnType:
    """Their kind, range and why; the notes are about them alone."""
    number = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not number.size:
        return ColumnType(name, "real", why="no cell has a number")
    low, high = number.min(), number.max()
    whole = number.dtype.kind in "biu" or bool((number == np.round(number)).all())
    kind, why = _kind(number, float(low), float(high), whole)
    notes = _notes(name, number, values, float(low), float(high), whole, kind)
    return ColumnType(name, kind, low=float(low), high=float(high), why=why, notes=tuple(notes))


def _kind(number: np.ndarray, low: float, high: float, whole: bool) -> tuple[str, str]:
    if whole and low >= 0 and high <= 1 and low < high:
        return "binary", "0 and 1"
    if whole and low >= 0:
        codes = _codes_of_kinds(number, low, high)
        return ("categorical", codes) if codes else ("count", f"whole numbers from {low:.0f}")
    if whole:
        return "real", "whole numbers, some below 0"
    if low >= 0 and high <= 1:
        return "bounded", "numbers from 0 to 1"
    if low > 0:
        return "positive", "numbers above 0"
    return "real", "numbers, some of them 0" if low == 0 else "numbers, some below 0"


def _codes_of_kinds(number: np.ndarray, low: float, high: float) -> str:
    """Whether they are codes: few, from 0 or 1 without a gap, their frequencies up and down without an order."""
    if low > 1 or high > MOST_KINDS or high - low < 5 or number.size < 20 * (high - low + 1):
        return ""
    counts = np.bincount(number.astype(np.int64))[int(low) :]
    if (counts == 0).any() or _peaks(counts) < 3:
        return ""
    return f"whole numbers {low:.0f} to {high:.0f}, as often as codes of kinds are; passed as these numbers"


def _peaks(counts: np.ndarray) -> int:
    """Of frequencies, those beyond two standard errors of the valleys beside them."""
    peaks, up, end = 0, True, counts[0]
    for n in counts[1:]:
        if (n >= end) == up:
            end = n
        elif abs(float(n) - float(end)) > 2 * (float(n) + float(end)) ** 0.5:
            peaks += up
            up, end = not up, n
    return peaks + up


def _notes(
    name: str, number: np.ndarray, values: np.ndarray, low: float, high: float, whole: bool, kind: str
) -> list[str]:
    notes = [index] if whole and number.size == len(values) and (index := _index(name, number, low, high)) else []
    if whole and low >= 19000101 and high <= 21001231 and _are_days(number):
        notes.append("looks like days written as numbers (types: date:%Y%m%d reads them)")
    if values.dtype.kind == "f" and bool(np.isinf(values).any()):
        notes.append(f"has {int(np.isinf(values).sum())} infinite values")
    if values.dtype.kind == "f" and whole and max(abs(low), abs(high)) >= 2**53:
        notes.append("has whole numbers of 2^53 or more, of which floats keep the first 15 digits alone")
    stand_in = _stand_in(number, low, high)
    far = "" if stand_in or kind in ("binary", "categorical") else _far(number)
    return notes + [note for note in (stand_in, far) if note]


def _index(name: str, number: np.ndarray, low: float, high: float) -> str:
    """A number for each row: all from 0 or 1 on, or others in a column that is called so."""
    n = number.size
    counts = low in (0, 1) and high - low == n - 1
    if n >= 5 and counts and bool((np.diff(number) == 1).all()):
        return "counts the rows, as an index does"
    called = re.fullmatch(r"(.*[ _.])?(id|index|key|nr|no|row)|.*[a-z]ID|unnamed: ?\d+", name, re.IGNORECASE)
    if n >= ENOUGH_ROWS and (counts or called) and len(np.unique(number)) == n:
        return "has another number in each row, as an index does"
    return ""


def _are_days(number: np.ndarray) -> bool:
    some = number[:: max(1, number.size // SOME_ROWS)].astype(np.int64)
    month, day = some // 100 % 100, some % 100
    return bool(((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())


def _stand_in(number: np.ndarray, low: float, high: float) -> str:
    """A value such as -999 that stands far from all others, where people write it for a missing cell."""
    for value in (v for v in (low, high) if v in STAND_INS and low < high):
        if value in (9, 99) and number.size < ENOUGH_ROWS:
            continue
        others = number[number != value]
        least, most = float(others.min()), float(others.max())
        apart = least - value if value == low else value - most
        if apart > most - least and apart > 2:
            k = number.size - others.size
            return (
                f"{value:g} stands in {k} row{'s' if k > 1 else ''}, apart from the others ({least:g} to {most:g}); "
                "where it means that there is no value, write NA"
            )
    return ""


def _far(number: np.ndarray) -> str:
    if number.size < ENOUGH_ROWS:
        return ""
    low, middle, high = np.quantile(number[:: max(1, number.size // SOME_ROWS)], [0.25, 0.5, 0.75])
    spread = (high - low) / 1.349  # the standard deviation of a normal of that interquartile range
    at = int(np.abs(number - middle).argmax())
    if spread <= 0 or abs(number[at] - middle) <= SQUEEZED * spread * number.size**0.5:
        return ""
    return f"{number[at]:.4g} is far from the others, half of which lie within {low:.4g} to {high:.4g}"
