"""Which word is which code, here and in every later table; and codes that must be labels or groups."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppgen.data.cells.levels import not_fitted
from ppgen.data.cells.types import ColumnType, word_of
from ppgen.data.table import Table, Types
from ppgen.errors import PpgenError, first_of

log = logging.getLogger("ppgen")


def recoded(
    data: Table, types: Types, *, new: bool = False, beyond: bool = False, only: Collection[str] | None = None
) -> Table:
    """The columns as these types say: the same word is the same code in every table, a day the same number.

    Args:
        types: by column, as those of the table that was fitted.
        new: words that are not among them take the next codes, in sorted order, in place of an error.
        beyond: whether numbers that are the code of no word are let pass.
        only: the columns that are meant; None for all.

    Raises:
        PpgenError: a word that has no code; text where there were numbers; a number that is no code.

    >>> b_c, a_b_c = (ColumnType("group", "categorical", tuple(w)) for w in ("bc", "abc"))
    >>> recoded(Table({"group": torch.tensor([1, 0])}, {"group": b_c}), {"group": a_b_c})["group"]
    tensor([2, 1])
    """
    columns: dict[str, Any] = dict(data)
    known: dict[str, ColumnType] = {name: own for name, own in types.items() if name in data}
    for name in data:
        own, kept = data.types.get(name), known.get(name)
        if only is not None and name not in only:
            known |= {} if own is None else {name: own}
        elif kept is not None and own is None:
            columns[name] = _by_number(name, data[name], kept.levels, new or beyond) if kept.levels else data[name]
        elif own is not None:
            columns[name], known[name] = _as_fitted(name, data[name], own, kept, new, beyond)
    return Table(columns, known)


def _as_fitted(
    name: str, value: Any, own: ColumnType, kept: ColumnType | None, new: bool, beyond: bool
) -> tuple[Any, ColumnType]:
    """A column of a table in the codes and the unit of the one that was fitted."""
    if kept is not None and kept.levels:
        if not own.levels and not any(_is_number(word) for word in kept.levels):
            return _by_number(name, value, kept.levels, new or beyond, logging.WARNING), kept
        return _in_codes(name, value, own, kept, new)
    if own.levels:
        raise PpgenError(
            f"the column {name!r} is text ({own.levels[0]!r}, ...), and was numbers at the fit; pass numbers, or fit "
            "with the text"
        )
    if kept is None:
        return value, own
    if kept.kind == own.kind == "date" and kept.unit != own.unit:
        return value + _days_between(own.unit, kept.unit), kept
    if "date" in (kept.kind, own.kind) and kept.kind != own.kind:
        there, here = (("dates", "numbers"), ("numbers", "dates"))[own.kind == "date"]
        raise PpgenError(f"the column {name!r} was {there} at the fit, and is {here} here; pass it as it was")
    if own.unit != kept.unit and own.unit:
        log.warning("the column %r is in %s, and was in %s at the fit", name, own.unit, kept.unit or "no unit")
    return value, kept


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _days_between(own: str, kept: str) -> float:
    """What is to be added to days since one day, so that they are days since another."""
    import pandas as pd

    here, there = (pd.Timestamp(unit.rpartition(" since ")[2]) for unit in (own, kept))
    return float((here - there) / pd.Timedelta(1, "D"))


def _in_codes(name: str, value: Tensor, own: ColumnType, kept: ColumnType, new: bool) -> tuple[Tensor, ColumnType]:
    if not own.levels:  # numbers of a file, where the fitted one had words: those that spell these numbers
        numbers = value[~value.isnan()] if value.is_floating_point() else value
        words = {word_of(v): v for v in numbers.unique().tolist()}
        used = sorted(words, key=lambda w: words[w])
        codes = torch.full(value.shape, -1)
        for code, word in enumerate(used):
            codes[value == words[word]] = code
    else:  # a pandas categorical may have more categories than rows use
        codes = value.nan_to_num(-1).long() if value.is_floating_point() else value.long()
        there = set(codes.unique().tolist())
        used = [word if code in there else "" for code, word in enumerate(own.levels)]
    unseen = [word for word in used if word and word not in kept.levels]
    if unseen and not new:
        raise not_fitted(name, unseen, kept.levels)
    levels = (*kept.levels, *unseen)
    place = {word: code for code, word in enumerate(levels)}
    made = torch.tensor([*(place.get(word, -1) for word in used), -1])[codes]
    missing = codes < 0
    if bool(missing.any()):
        made = torch.where(missing, torch.nan, made)
    return made, replace(kept, levels=levels)


def _by_number(name: str, value: Any, words: tuple[str, ...], beyond: bool, level: int = logging.INFO) -> Any:
    """A column that was words at the fit, passed without them: one word, or codes.

    Args:
        level: that the log says it at: of a table, whose codes may be of another table's making, it is a warning.
    """
    if isinstance(value, str):
        if value not in words:
            raise not_fitted(name, [value], words)
        return torch.tensor(words.index(value))
    if not isinstance(value, Tensor) or not value.numel():
        return value
    if value.dtype == torch.bool:
        raise PpgenError(
            f"the column {name!r} was words at the fit ({words[0]!r}, ...), and is true or false here; pass the words"
        )
    wrong = ~value.isnan() & ((value < 0) | (value != value.round()) | ((value >= len(words)) & (not beyond)))
    if bool(wrong.any()):
        raise PpgenError(
            f"the column {name!r} was words at the fit ({words[0]!r} is 0, ..., {words[-1]!r} is {len(words) - 1}), "
            f"and {value[wrong].flatten()[0].item():g} is the code of none; pass the words"
        )
    log.log(
        level, "the column %r was words at the fit, and is passed as numbers: %s", name,
        first_of([f"{i} is {word!r}" for i, word in enumerate(words)], 5),
    )  # fmt: skip
    return value


def require_labels(
    data: Mapping[str, Any], categories: Mapping[str, int], name: str, *, beyond: bool = False, gaps: bool = False
) -> Table:
    """The columns, those of labels and groups as int64.

    Args:
        categories: how many there are, by column: 0 .. n - 1.
        name: of the program.
        beyond: whether numbers from n on are let pass: groups that were not fitted, which the caller looks at.
        gaps: whether nan is let pass: labels that are not known, in floats.

    Raises:
        PpgenError: a label that is negative, beyond the last, or fractional; one-hot rows.
    """
    found = Table(data, data.types if isinstance(data, Table) else None)
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
        missing = y.isnan() if gaps else torch.zeros_like(wrong)
        wrong &= ~missing
        if bool(wrong.any()):
            row = int(wrong.reshape(-1).nonzero()[0])
            raise PpgenError(
                f"column {column!r} of {name} has {y.reshape(-1)[row].item():g} in row {row} (counting from 0), "
                f"{expected}; recode it, or make the program with as many as there are"
            )
        found[column] = y if bool(missing.any()) else y.long()
    return found


def warn_of_unseen_labels(data: Mapping[str, Any], categories: Mapping[str, int], name: str) -> None:
    """Says which labels no row has: what a network gives for one has then been learned from nothing."""
    for column, n in categories.items():
        y = data.get(column)
        if not isinstance(y, Tensor) or not y.numel():
            continue
        unseen = (torch.bincount(y.long().flatten(), minlength=n) == 0).nonzero().flatten().tolist()
        if unseen:
            log.warning(
                "no row has the label %s of the column %r, of which %s has %d: what it draws given such a label is not "
                "learned; number the labels that there are", ", ".join(map(str, unseen[:5])), column, name, n,
            )  # fmt: skip
