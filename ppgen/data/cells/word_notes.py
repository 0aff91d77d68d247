"""What may be wrong with a column of words, in sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_NUMBER = r"[<>~\u2264\u2265\u00b1+\-\u2212\u00a3$\u20ac]?\s*\d+([.,]\d+)?"
_BESIDE = r"\s*([a-zA-Z*/'\"]|[^\x00-\x7f\u2013])|\.\s*[a-zA-Z]|-$| \d+/\d"  # no bands, as 18-24 and 65+
FIGURE = re.compile(rf"{_NUMBER}({_BESIDE})|[~\u2248\u00b1]\s*\d")
YEAR = re.compile(r"(?<!\d)(1[89]|20)\d{2}(?!\d)")
ENOUGH_GAPS = 4


def word_notes(levels: Sequence[str], rows: np.ndarray) -> list[str]:
    """
    Args:
        levels: the words.
        rows: their codes, nan where a cell is missing.
    """
    notes = []
    folded = Counter(map(_folded, levels))
    for word in [w for w in levels if folded[_folded(w)] > 1][:1]:
        others = [w for w in levels if _folded(w) == _folded(word)]
        notes.append(f"{others[0]!r} and {others[1]!r} differ by capitals{_or_blanks(*others[:2])} alone")
    if levels and all(map(_has_day, levels)):
        notes.append(
            f"{levels[0]!r} looks like a time of a form that is not read; write it as 2024-01-31 to have numbers"
        )
    elif levels and all(w[0] == w[-1] == "'" and len(w) > 1 for w in levels):
        notes.append(f"{levels[0]} stands in single quotes, which are part of the word; write double quotes, or none")
    elif levels and all(map(FIGURE.match, levels)):
        notes.append(f"{levels[0]!r} begins with a number, and is taken as a word; write the number alone to have it")
    gaps = np.isnan(rows)
    if gaps.sum() >= ENOUGH_GAPS > 0 and not gaps[0] and len(levels) == (~gaps).sum() <= gaps.sum():
        notes.append("has each word once and gaps below it, as merged cells are written; fill them downwards if so")
    return notes


def _has_day(word: str) -> bool:
    """Whether a word has a year, and digits beside it."""
    year = YEAR.search(word)
    return year is not None and any(c.isdigit() for c in word[: year.start()] + word[year.end() :])


def _folded(word: str) -> str:
    return " ".join(word.casefold().split())


def _or_blanks(one: str, other: str) -> str:
    return "" if one.casefold() == other.casefold() else " or blanks"
