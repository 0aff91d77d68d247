"""Text as category codes, and codes that must be categories: which word is which number, here and in every later file.

Text that is plainly a number, a date or a time is never a category: "1,234", "$5", "10:30". Where it is meant as one,
a pandas categorical says so.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.data.table import Table, Words
from ppgen.errors import PpgenError, nearest

log = logging.getLogger("ppgen")

TEXT = "OSUT"  # numpy's kinds: objects, bytes, str, variable-width str

_SIGN = "[+\\-\u2212]?"
_MONEY = r"([a-z]{0,2}\$|kr\.?|sek|nok|dkk|[\u20ac\u00a3\u00a5\u20b9]|usd|eur|gbp|chf|jpy|cny|inr|aud|cad)"
_DIGITS = (
    r"(\d+([.,]\d+)*[.,]?|[.,]\d+|\d{1,3}([ '_\u00a0\u2009\u202f]\d{3})+([.,]\d+)?)"
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
_SPAN = rf"-?\d+ days?,?\s*({_CLOCK})?"
_FIGURE = re.compile(rf"\s*({_NUMBER}|{_DAY}([T ]+{_CLOCK})?|{_CLOCK}|{_SPAN})\s*", re.IGNORECASE)


def is_figure(text: str) -> bool:
    """Whether a text is plainly a number, an amount, a date or a time, in whatever spelling.

    >>> [is_figure(t) for t in ("1,234", "1,5", "$5", "CHF 5", "10%", "2024-01", "00:10:00", "3 Jan 2024")]
    [True, True, True, True, True, True, True, True]
    >>> [is_figure(t) for t in ("oak", "Q1", "18-25", "A-2", "1st", "St. Louis", "x1,5")]
    [False, False, False, False, False, False, False]
    """
    return _FIGURE.fullmatch(text) is not None


def number(text: str) -> int | float | None:
    """The number that a text spells as tables spell it, or None."""
    if "_" in text:  # Python reads 1_000 as a number, tables do not
        return None
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return None


def words_of(value: Any) -> tuple[str, ...] | None:
    """What the codes of a raw column stand for; None where it is numbers."""
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return None
    if pandas is not None and isinstance(getattr(value, "dtype", None), pandas.CategoricalDtype):
        return tuple(map(str, value.dtype.categories))
    listed = isinstance(value, list | tuple)
    if not (listed or isinstance(value, np.ndarray) or hasattr(value, "__array__")) or isinstance(value, Tensor):
        return None
    if listed and not all(isinstance(v, str | bytes) for v in value):
        return None
    array = np.asarray(value)
    if array.dtype.kind not in TEXT or array.ndim != 1:
        return None
    words = np.unique(decoded(array).astype(str))
    return None if any(number(word) is not None for word in words) else tuple(map(str, words))


def decoded(array: np.ndarray) -> np.ndarray:
    """Text in bytes as text."""
    return np.char.decode(array, "utf-8", "replace") if array.dtype.kind == "S" else array


def codes(name: str, array: np.ndarray, where: str, text: bool) -> np.ndarray:
    """Text -> category codes in sorted order; text that spells nothing but numbers -> those numbers.

    Args:
        text: whether categories are taken, and not numbers alone.

    Raises:
        PpgenError: numbers among words; text that is plainly numbers, dates or times in a spelling of its own.
    """
    categories, place = np.unique(array.astype(str), return_inverse=True)
    numbers = [number(category) for category in categories]
    wrong = np.array([n is None for n in numbers], bool)[place]
    if wrong.any() and not wrong.all():
        row = int(wrong.argmax())
        raise PpgenError(
            f"column {name!r} of {where} holds numbers, but {str(array[row])!r} in row {row} (counting "
            "from 0); correct that cell, or leave the column out with columns="
        )
    figures = np.array([is_figure(str(category)) for category in categories], bool)[place] if wrong.any() else wrong
    if figures.sum() > len(array) / 2:
        row = int(figures.argmax())
        raise PpgenError(
            f"column {name!r} of {where} is text that is plainly a number, a date or a time ({str(array[row])!r} in "
            f"row {row}, counting from 0), and no category; write plain numbers (1234.5, a date as days since a day), "
            "leave the column out with columns=, or, where these are names of groups, make it a pandas categorical "
            "(which parquet keeps)"
        )
    if wrong.any() and not text:
        raise PpgenError(
            f"column {name!r} of {where} is text and cannot be part of a matrix; give it an argument of its own"
        )
    return place.astype(np.int64) if wrong.any() else np.asarray(numbers)[place]


def recoded(
    data: Table, words: Words, *, new: bool = False, beyond: bool = False, only: Collection[str] | None = None
) -> Table:
    """The columns with the codes that `words` say: the same word is the same code in every table.

    Args:
        words: by column, as those of the table that was fitted.
        new: words that are not among them take the next codes, in sorted order, in place of an error.
        beyond: whether numbers that are the code of no word are let pass.
        only: the columns that are meant; None for all.

    Raises:
        PpgenError: a word that has no code; text where there were numbers; a number that is no code.

    >>> recoded(Table({"group": torch.tensor([1, 0])}, {"group": ("b", "c")}), {"group": ("a", "b", "c")})["group"]
    tensor([2, 1])
    """
    recodes: dict[str, Any] = dict(data)
    known: dict[str, tuple[str, ...]] = {name: tuple(own) for name, own in words.items() if name in data}
    for name in [n for n in known if n not in data.words]:
        recodes[name] = _by_number(name, data[name], known[name], new or beyond)
    for name, own in data.words.items():
        if only is not None and name not in only:
            known[name] = own
            continue
        if name not in words:
            raise PpgenError(
                f"the column {name!r} is text ({own[0]!r}, ...), and was numbers at the fit; pass the numbers of its "
                "groups, or fit with the text"
            )
        used = set(data[name].unique().tolist())  # a pandas categorical may have more categories than rows use
        unseen = [word for code, word in enumerate(own) if code in used and word not in words[name]]
        if unseen and not new:
            raise _unseen(name, unseen, words[name])
        known[name] = (*words[name], *unseen)
        place = {word: code for code, word in enumerate(known[name])}
        recodes[name] = torch.tensor([place.get(word, -1) for word in own])[data[name]]
    return Table(recodes, known)


def _unseen(name: str, unseen: list[str], words: tuple[str, ...]) -> PpgenError:
    shown = ", ".join(map(repr, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
    return PpgenError(
        f"the column {name!r} has {shown}, which the fit did not see{nearest(unseen[0], words)}; leave "
        "these rows out, or, to predict, draw new groups from their distribution with new_groups='draw' "
        "(--new-groups draw)"
    )


def _by_number(name: str, value: Any, words: tuple[str, ...], beyond: bool) -> Any:
    """A column that was words at the fit, passed without them: one word, or codes."""
    if isinstance(value, str):
        if value not in words:
            raise _unseen(name, [value], words)
        return torch.tensor(words.index(value))
    if not isinstance(value, Tensor) or not value.numel():
        return value
    wrong = (value < 0) | (value != value.round()) | ((value >= len(words)) & (not beyond))
    if bool(wrong.any()):
        raise PpgenError(
            f"the column {name!r} was words at the fit ({words[0]!r} is 0, ..., {words[-1]!r} is {len(words) - 1}), "
            f"and {value[wrong].flatten()[0].item():g} is the code of none; pass the words"
        )
    log.info("the column %r was words at the fit, and is passed as numbers: 0 is %r, and so on", name, words[0])
    return value


def require_labels(data: Mapping[str, Any], categories: Mapping[str, int], name: str, *, beyond: bool = False) -> Table:
    """The columns, those of labels and groups as int64.

    Args:
        categories: how many there are, by column: 0 .. n - 1.
        name: of the program.
        beyond: whether numbers from n on are let pass: groups that were not fitted, which the caller looks at.

    Raises:
        PpgenError: a label that is negative, beyond the last, or fractional; one-hot rows.
    """
    found = Table(data, data.words if isinstance(data, Table) else None)
    for column, n in categories.items():
        y = found.get(column)
        if not isinstance(y, Tensor) or not y.numel():
            continue
        expected = f"expected one whole number a row from 0 to {n - 1}"
        if y.dim() > 1:
            one_hot = y.shape[-1] == n and bool(((y == 0) | (y == 1)).all())
            remedy = f"it is one-hot: pass {column}.argmax(-1)" if one_hot else "pass one number a row"
            raise PpgenError(f"column {column!r} of {name} has the shape {tuple(y.shape)}, {expected}; {remedy}")
        wrong = torch.zeros_like(y, dtype=torch.bool) if y.dtype == torch.bool else (y < 0) | (y != y.round())
        wrong |= (y.long() >= n) if not beyond else False
        if bool(wrong.any()):
            row = int(wrong.reshape(-1).nonzero()[0])
            raise PpgenError(
                f"column {column!r} of {name} has {y.reshape(-1)[row].item():g} in row {row} (counting from 0), "
                f"{expected}; recode it, or make the program with as many as there are"
            )
        found[column] = y.long()
    return found
